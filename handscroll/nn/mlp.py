"""The two feed-forward blocks: gated (Llama form) and plain (GPT-2, BERT)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handscroll.kernels.native import tables
from handscroll.nn.addresses import Addresses, Unfit
from handscroll.nn.linear import Linear
from handscroll.nn.shapes import Embeddings


class GatedMLP(nn.Module):
    """down(silu(gate x) * up x), or another `activation` (Shazeer 2020, "GLU Variants Improve Transformer")."""

    def __init__(self, width: int, hidden: int, bias: bool, activation: Callable[[Tensor], Tensor] = F.silu):
        super().__init__()
        self.activation = activation
        self.gate = Linear(width, hidden, bias=bias)
        self.up = Linear(width, hidden, bias=bias)
        self.down = Linear(hidden, width, bias=bias)

    def forward(self, x: Embeddings) -> Embeddings:
        return self.down(self.activation(self.gate(x)) * self.up(x))

    def table(self, addresses: Addresses, dtype: torch.dtype) -> tuple[int, list[tables.Product]]:
        """How compiled layers in `dtype` compute it: the number of the activation; the products gate, up and down."""
        if self.activation not in COMPILED:
            raise Unfit("the gate's activation is not compiled")
        parts = [addresses.table(self, name, dtype) for name in ("gate", "up", "down")]
        return COMPILED.index(self.activation), parts


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh form of GELU (Hendrycks & Gimpel 2016); foreign configurations call it `gelu_new`."""
    return F.gelu(x, approximate="tanh")


COMPILED = (F.silu, gelu_tanh)  # in the order of their numbers in `kernels/native/tables.py`


class MLP(nn.Module):
    """down(gelu(up x)) with the tanh form of GELU as in GPT-2, or another `activation`."""

    def __init__(self, width: int, hidden: int, bias: bool = True, activation: Callable[[Tensor], Tensor] = gelu_tanh):
        super().__init__()
        self.activation = activation
        self.up = Linear(width, hidden, bias=bias)
        self.down = Linear(hidden, width, bias=bias)

    def forward(self, x: Embeddings) -> Embeddings:
        return self.down(self.activation(self.up(x)))
