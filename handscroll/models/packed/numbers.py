"""Matrices of quantised folders as they are read: small numbers, and scales of groups of columns.

They become number formats (`kernels/formats.py`) that hold exactly the same values: whole numbers of 4, 5 or 8 bits
with a float16 scale for 32 of them, 8 bits with a float32 scale for a row, or float8 with a float32 scale for 32.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from handscroll.base.errors import CheckpointError
from handscroll.kernels.formats import FORMATS, Format

# Formats of blocks of 32 and the whole numbers that they hold, the smallest first.
_WHOLE = (("Q4_0", -8, 7), ("Q5_0", -16, 15), ("Q8_0", -128, 127))
_STORED_PLUS = {"Q4_0": 8, "Q5_0": 16, "Q8_0": 0}


@dataclass(eq=False)
class Packed:
    """A matrix (N, K): numbers (N, K) times scales (N, G), each for `width` columns (0: K / G).

    Numbers are int16, zero points subtracted, or float8. `groups` (K,) is the group of each column where these are not
    runs of columns (act-order).
    """

    numbers: Tensor
    scales: Tensor
    groups: Tensor | None = None
    width: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        return self.numbers.shape[0], self.numbers.shape[1]

    def scale_of_columns(self) -> Tensor:
        """Scales (N, K) in float32."""
        scales = self.scales.to(torch.float32)
        if self.groups is not None:
            return scales[:, self.groups]
        return scales.repeat_interleave(self._width, 1)[:, : self.shape[1]]

    def floats(self, dtype: torch.dtype) -> Tensor:
        """The values (N, K), computed in float32."""
        return (self.numbers.to(torch.float32) * self.scale_of_columns()).to(dtype)

    def raw(self) -> tuple[Format, Tensor] | None:
        """A format that holds exactly these values, and the rows in it; None if none does."""
        rows, columns = self.shape
        whole = not self.numbers.is_floating_point()
        few = whole and self._fits_halves(columns) and self._within(-16, 15)
        if whole and self.scales.shape[1] == 1 and self._within(-128, 127) and not few:
            numbers = self.numbers.to(torch.int8).view(torch.uint8)
            return FORMATS["int8"], torch.cat((numbers, _bytes(self.scales.to(torch.float32))), 1)
        if columns % 32 or self.groups is not None or (self._width % 32 and self.scales.shape[1] > 1):
            return None
        each = (
            self.scales.to(torch.float32).repeat_interleave(-(-self._width // 32), 1)[:, : columns // 32].unsqueeze(-1)
        )
        if not whole:
            blocks = _bytes(self.numbers).view(rows, -1, 32)
            return FORMATS["FP8"], torch.cat((_bytes(each), blocks), -1).flatten(1)
        if not self._fits_halves(columns):
            return None
        name = next((name for name, low, high in _WHOLE if self._within(low, high)), None)
        if name is None:
            return None
        halves = _bytes(each.to(torch.float16))
        return FORMATS[name], torch.cat((halves, _packed(self.numbers.view(rows, -1, 32), name)), -1).flatten(1)

    @property
    def _width(self) -> int:
        """Columns of a group."""
        return self.width or self.shape[1] // self.scales.shape[1]

    def _within(self, low: int, high: int) -> bool:
        return low <= int(self.numbers.min()) and int(self.numbers.max()) <= high

    def _fits_halves(self, columns: int) -> bool:
        return columns % 32 == 0 and torch.equal(self.scales.to(torch.float16).float(), self.scales.float())


def _bytes(tensor: Tensor) -> Tensor:
    """The bytes of numbers, row by row; `contiguous` leaves the strides of a single column as they are."""
    return tensor.clone(memory_format=torch.contiguous_format).view(torch.uint8)


def _packed(numbers: Tensor, name: str) -> Tensor:
    """Whole numbers (..., 32) in the bytes of a format, without its scale."""
    stored = (numbers + _STORED_PLUS[name]).to(torch.uint8)
    if name == "Q8_0":
        return stored
    low, high = (stored & 15).chunk(2, dim=-1)
    nibbles = low | high << 4
    if name == "Q4_0":
        return nibbles
    bits = (stored >> 4).unflatten(-1, (4, 8)) << torch.arange(8, dtype=torch.uint8)
    return torch.cat((bits.sum(-1, dtype=torch.uint8), nibbles), dim=-1)


def nibbles(words: Tensor, bits: int, dim: int) -> Tensor:
    """Unsigned numbers of `bits` bits in int32 words, the lowest bits first, as int16, unpacked along `dim` (0, 1).

    Raises:
        CheckpointError: they are no words, or not in two dimensions.
    """
    if words.dtype is not torch.int32 or words.dim() != 2:
        raise CheckpointError(
            f"packed numbers are {words.dtype} {tuple(words.shape)}; expected int32 in two dimensions"
        )
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    mask = (1 << bits) - 1
    out = (words.unsqueeze(-1) >> shifts & mask).to(torch.int16)  # (rows, columns, in a word)
    return out.transpose(1, 2).flatten(0, 1) if dim == 0 else out.flatten(1)
