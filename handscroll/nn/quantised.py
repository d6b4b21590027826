"""Weights in a number format: decoding reads fewer bytes and does not widen the weights. They get no gradient."""

import torch
from torch import Tensor, nn

from handscroll.kernels.formats import FORMATS, Format
from handscroll.kernels.native import tables
from handscroll.kernels.rows import QUANTISED
from handscroll.nn.addresses import Addresses, Unfit, product
from handscroll.nn.linear import TokenTable

# From the names of `weights=` to the format of the projections. The token table and the head are always in int8: in
# four bits they would cause a third to a half of the whole error (docs/log.md).
PROJECTIONS = {"int8": FORMATS["int8"], "int4": FORMATS["Q4_1"]}


class Quantised(nn.Module):
    """A projection whose weights (N, D) stay in the bytes of a number format.

    `raw` uint8 (N, row_bytes) may be a view of a mapped file, of which nothing is copied. `dtype` is the dtype of
    inputs and outputs.
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
        """A projection with weights (N, D) rounded to a format; inputs and outputs have their dtype."""
        return cls(format, format.quantise(weight), bias, weight.dtype)

    @property
    def weight(self) -> Tensor:
        """The weights (N, D) in `dtype`, dequantised again at every call."""
        return self.format.dequantise(self.raw, self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(x)

    def project(self, x: Tensor) -> Tensor:
        """x (..., D) times the weights (N, D) transposed, plus bias."""
        return QUANTISED(x, self.format, self.raw, self.bias)

    def table(self, addresses: Addresses, dtype: torch.dtype) -> tables.Product:
        """How compiled layers in `dtype` multiply by it."""
        if self.dtype != dtype:
            raise Unfit("a quantised projection is in another dtype than the norms")
        raw, bias = addresses.tensor(self, "raw"), addresses.tensor(self, "bias")
        assert raw is not None
        return product(raw, bias, dtype, self.inner, self.format.number)

    def extra_repr(self) -> str:
        return f"{self.inner}, {self.raw.shape[0]}, format={self.format.name}"


class QuantisedTable(Quantised):
    """A token table in a number format; a lookup dequantises only its rows, and `project` is the tied head."""

    def forward(self, tokens: Tensor) -> Tensor:
        return self.format.dequantise(self.raw[tokens], self.dtype)


def quantise(model: nn.Module, weights: str = "int8") -> nn.Module:
    """Round every linear layer and token table of a model, one after the other, in place.

    `weights` is a name of `PROJECTIONS`.

    Raises:
        ConfigError: a width is not a multiple of 32 (int4).
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                format = PROJECTIONS["int8" if name == "projection" else weights]
                setattr(parent, name, Quantised.of(format, child.weight, child.bias))
            elif isinstance(child, TokenTable):
                setattr(parent, name, QuantisedTable.of(PROJECTIONS["int8"], child.weight))
    return model
