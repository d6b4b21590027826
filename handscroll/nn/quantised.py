"""Weights in few bits: less to read for every decoded token. Approximate; no gradient reaches them.

A few rows go through the compiled product, which reads them as they are; more rows widen the weights once and multiply
as ever.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from handscroll.kernels.formats import Format
from handscroll.kernels.native import calls, tables
from handscroll.kernels.native.calls import LANES
from handscroll.kernels.registry import Kernel, Operation, always
from handscroll.kernels.rounding import GROUP, from_int4, from_int8, to_int4, to_int8
from handscroll.kernels.rows import PRODUCT
from handscroll.nn.addresses import Addresses, Unfit, product, whole
from handscroll.nn.linear import TokenTable

WIDENED = 1 << 22  # weights that are dequantised at a time, so that the matrix never exists in floats


class Quantised(nn.Module):
    """A projection whose weights (N, D) stay in the bytes of a number format.

    `raw` uint8 (N, row_bytes) may be a view of a mapped file, of which nothing is copied. `dtype` is that of the inputs
    and outputs.
    """

    raw: Tensor
    bias: Tensor | None

    def __init__(self, format: Format, raw: Tensor, bias: Tensor | None = None, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.format, self.dtype = format, dtype
        self.inner = format.row_size(raw.shape[1])
        self.register_buffer("raw", raw)
        self.register_buffer("bias", None if bias is None else bias.detach().to(dtype))

    @classmethod
    def of(cls, format: Format, weight: Tensor, bias: Tensor | None = None) -> "Quantised":
        """Weights (N, D) rounded to a format; inputs and outputs are of their dtype."""
        return cls(format, format.quantise(weight), bias, weight.dtype)

    @property
    def weight(self) -> Tensor:
        """The weights (N, D) in `dtype`, dequantised anew at every call."""
        return self.format.dequantise(self.raw, self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(x)

    def project(self, x: Tensor) -> Tensor:
        """x (..., D) times the weights (N, D) transposed, plus bias."""
        step = max(1, WIDENED // self.inner)
        parts = [PRODUCT(x, self.format.dequantise(rows, self.dtype), None) for rows in self.raw.split(step)]
        out = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        return out if self.bias is None else out + self.bias

    def extra_repr(self) -> str:
        return f"{self.inner}, {self.raw.shape[0]}, format={self.format.name}"


class QuantisedTable(Quantised):
    """A token table in a number format, of which the rows asked for are dequantised; `project` is the tied head."""

    def forward(self, tokens: Tensor) -> Tensor:
        return self.format.dequantise(self.raw[tokens], self.dtype)


class Rounded(nn.Module):
    """A projection whose weights (N, D) are kept as rounded numbers with scales.

    Subclasses say how: `narrow(weights)` gives numbers and scales, `widen` takes them back.
    """

    narrow: Callable[[Tensor], tuple[Tensor, Tensor]]
    widen: Callable[[Tensor, Tensor, torch.dtype], Tensor]
    numbers: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        super().__init__()
        numbers, scales = self.narrow(weight.detach())
        self.dtype = weight.dtype
        self.register_buffer("numbers", numbers)
        self.register_buffer("scales", scales)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    @property
    def weight(self) -> Tensor:
        """The weights that are meant, widened anew at every call."""
        return self.widen(self.numbers, self.scales, self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(x)

    def project(self, x: Tensor) -> Tensor:
        """x (..., D) times the weights (N, D) transposed, plus bias."""
        return ROUNDED(x, self)

    def table(self, addresses: Addresses, dtype: torch.dtype) -> tables.Product:
        """As compiled layers in `dtype` multiply by it."""
        numbers, scales, bias = (addresses.tensor(self, name) for name in ("numbers", "scales", "bias"))
        assert numbers is not None and scales is not None
        packed = numbers.dtype == torch.uint8
        if self.dtype != dtype or scales.dtype != (torch.bfloat16 if packed else torch.float32):
            raise Unfit("a rounded projection is in another dtype than the norms")
        inner = numbers.shape[1] * (2 if packed else 1)
        whole("projection", inner, of=GROUP if packed else LANES)
        return product(numbers, scales, bias, dtype, inner)


def _multiply(x: Tensor, by: Rounded) -> Tensor:
    return calls.multiply(x, by.numbers, by.bias, by.scales)


def _refuses(x: Tensor, by: Rounded) -> str:
    return calls.refuses_rounded(x, by.numbers, by.scales)


def _widened(x: Tensor, by: Rounded) -> Tensor:
    return PRODUCT(x, by.weight, by.bias)


ROUNDED = Operation(
    "product of rows with a rounded matrix",
    Kernel("compiled", "a few rows: the rounded matrix is read as it lies", _refuses, _multiply),
    Kernel("widened", "many rows: the matrix is widened once, then multiplied as ever", always, _widened),
)


class Int8Linear(Rounded):
    """In int8 with a scale per output: half of bfloat16's bytes."""

    narrow = staticmethod(to_int8)
    widen = staticmethod(from_int8)


class Int4Linear(Rounded):
    """In int4 with a scale and a lowest number for 32 weights of an output: five bits a weight."""

    narrow = staticmethod(to_int4)
    widen = staticmethod(from_int4)


class Int8Embedding(Int8Linear):
    """A token table in int8, one scale a token; as a projection it is the tied head."""

    def forward(self, tokens: Tensor) -> Tensor:
        return from_int8(self.numbers[tokens], self.scales[tokens], self.dtype)


PROJECTIONS: dict[str, type[Rounded]] = {"int8": Int8Linear, "int4": Int4Linear}


def quantise(model: nn.Module, weights: str = "int8") -> nn.Module:
    """Replace every linear layer and token table of a model by its rounded form, one after the other, in place.

    `weights` names the form of the projections. The token table and the head are in int8 always: in int4 they would be
    a third to a half of the whole distance (docs/log.md).

    Raises:
        ConfigError: int4, and a width is odd.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                kind = Int8Linear if name == "projection" else PROJECTIONS[weights]
                setattr(parent, name, kind(child.weight, child.bias))
            elif isinstance(child, TokenTable):
                setattr(parent, name, Int8Embedding(child.weight))
    return model
