"""Number formats of weight matrices: how a row of numbers is stored in bytes.

A matrix of N rows of D numbers is kept as raw bytes (N, row_bytes), which are a copy or a view of a mapped file. Most
formats divide a row into blocks of 32 or 256 numbers, which are small whole numbers with their own scales. These are
the layouts of GGUF files (ggml-common.h of llama.cpp; their scales are float16, little-endian). `int8` is ours: a row
of int8 numbers, then its scale in float32; `FP8` is blocks of a float32 scale and 32 numbers in float8 (E4M3).

To add a format, add a function to `kernels/blocks.py` and a line to `FORMATS`: plain torch computes with it. Compiled
kernels refuse it until `native/formats.h` has its number, layout and reader; a reader in `native/units.h` makes its
products fast (docs/adding/format.md).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from handscroll.base.errors import ConfigError, nearest
from handscroll.kernels.blocks import (
    fp8,
    q2_k,
    q3_k,
    q4_0,
    q4_1,
    q4_k,
    q5_0,
    q5_1,
    q5_k,
    q6_k,
    q8_0,
    to_q4_0,
    to_q4_1,
    to_q8_0,
)
from handscroll.kernels.rounding import from_int8, to_int8

AT_ONCE = 1 << 22  # numbers that are dequantised at a time, so that intermediate results stay small


@dataclass(frozen=True)
class Format:
    """A number format: `block` numbers take `block_bytes` bytes; a row has `row_bytes_more` bytes besides its blocks.

    `number` is its number in the compiled kernels, `ggml` its type number in GGUF files (None: not in such files).
    """

    name: str
    number: int
    block: int
    block_bytes: int
    read: Callable[[Tensor], Tensor]
    write: Callable[[Tensor], Tensor] | None = None
    ggml: int | None = None
    row_bytes_more: int = 0

    def row_bytes(self, size: int) -> int:
        """Bytes of a row of `size` numbers.

        Raises:
            ConfigError: the row is not a whole number of blocks.
        """
        if size % self.block:
            raise ConfigError(
                f"{self.name} keeps {self.block} numbers a block, but a row has {size}, which is no multiple; use int8"
            )
        return size // self.block * self.block_bytes + self.row_bytes_more

    def row_size(self, row_bytes: int) -> int:
        """Numbers in a row of `row_bytes` bytes."""
        return (row_bytes - self.row_bytes_more) // self.block_bytes * self.block

    def dequantise(self, raw: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Raw uint8 (..., row_bytes) -> (..., D) in `dtype`; computed in float32, some rows at a time."""
        rows = raw.reshape(-1, raw.shape[-1])
        size = self.row_size(raw.shape[-1])
        step = max(1, AT_ONCE // max(1, size))
        if len(rows) <= step:
            return self.read(rows).to(dtype).reshape(*raw.shape[:-1], size)
        out = torch.empty(len(rows), size, dtype=dtype, device=raw.device)
        for first in range(0, len(rows), step):
            out[first : first + step] = self.read(rows[first : first + step])
        return out.unflatten(0, raw.shape[:-1]) if raw.dim() != 2 else out

    def quantise(self, weights: Tensor) -> Tensor:
        """(N, D) -> raw uint8 (N, row_bytes); each number becomes the nearest one that the format has.

        Raises:
            ConfigError: the format can only be read, or the rows are not whole numbers of blocks.
        """
        if self.write is None:
            raise ConfigError(f"{self.name} can only be read; formats that can be written: {', '.join(WRITTEN)}")
        out = torch.empty(len(weights), self.row_bytes(weights.shape[1]), dtype=torch.uint8, device=weights.device)
        step = max(1, AT_ONCE // max(1, weights.shape[1]))
        for first in range(0, len(weights), step):
            out[first : first + step] = self.write(weights[first : first + step].detach().to(torch.float32))
        return out


def _plain(dtype: torch.dtype) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Reads and writes the numbers of a torch dtype."""
    return (
        lambda raw: raw.contiguous().view(dtype).to(torch.float32),
        lambda wide: wide.to(dtype).contiguous().view(torch.uint8),
    )


def _read_int8(raw: Tensor) -> Tensor:
    return from_int8(raw[:, :-4].view(torch.int8), raw[:, -4:].contiguous().view(torch.float32)[:, 0], torch.float32)


def _write_int8(wide: Tensor) -> Tensor:
    numbers, scales = to_int8(wide)
    return torch.cat((numbers.view(torch.uint8), scales.unsqueeze(1).contiguous().view(torch.uint8)), dim=1)


def _of_blocks(size: int, read: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """From a function of blocks (N, blocks, size) -> (N, blocks, numbers) to one of rows (N, row_bytes)."""
    return lambda raw: read(raw.unflatten(1, (-1, size))).flatten(1)


def _to_blocks(size: int, write: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda wide: write(wide.unflatten(1, (-1, size))).flatten(1)


FORMATS: dict[str, Format] = {
    one.name: one
    for one in (
        Format("F32", 0, 1, 4, *_plain(torch.float32), ggml=0),
        Format("BF16", 1, 1, 2, *_plain(torch.bfloat16), ggml=30),
        Format("int8", 2, 1, 1, _read_int8, _write_int8, row_bytes_more=4),
        Format("F16", 3, 1, 2, *_plain(torch.float16), ggml=1),
        Format("Q4_0", 4, 32, 18, _of_blocks(18, q4_0), _to_blocks(32, to_q4_0), ggml=2),
        Format("Q4_1", 5, 32, 20, _of_blocks(20, q4_1), _to_blocks(32, to_q4_1), ggml=3),
        Format("Q5_0", 6, 32, 22, _of_blocks(22, q5_0), ggml=6),
        Format("Q5_1", 7, 32, 24, _of_blocks(24, q5_1), ggml=7),
        Format("Q8_0", 8, 32, 34, _of_blocks(34, q8_0), _to_blocks(32, to_q8_0), ggml=8),
        Format("Q2_K", 9, 256, 84, _of_blocks(84, q2_k), ggml=10),
        Format("Q3_K", 10, 256, 110, _of_blocks(110, q3_k), ggml=11),
        Format("Q4_K", 11, 256, 144, _of_blocks(144, q4_k), ggml=12),
        Format("Q5_K", 12, 256, 176, _of_blocks(176, q5_k), ggml=13),
        Format("Q6_K", 13, 256, 210, _of_blocks(210, q6_k), ggml=14),
        Format("FP8", 14, 32, 36, _of_blocks(36, fp8)),
    )
}
WRITTEN = tuple(name for name, one in FORMATS.items() if one.write is not None)
BY_GGML = {one.ggml: one for one in FORMATS.values() if one.ggml is not None}


def format_of(name: str) -> Format:
    """A format by its name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in FORMATS:
        raise ConfigError(f"unknown number format '{name}': {nearest(name, FORMATS)}")
    return FORMATS[name]
