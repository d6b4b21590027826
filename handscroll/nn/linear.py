"""Projections. For a few rows on a CPU, reading the weights takes all the time; a compiled product reads them once."""

import torch
from torch import Tensor, nn

from handscroll.kernels.native import tables
from handscroll.kernels.native.calls import KINDS
from handscroll.kernels.rows import PRODUCT
from handscroll.nn.addresses import Addresses, Unfit, product


class Linear(nn.Linear):
    """An `nn.Linear` whose product is chosen by the registry."""

    def table(self, addresses: Addresses, dtype: torch.dtype) -> tables.Product:
        """How compiled layers in `dtype` multiply by it."""
        weight, bias = addresses.tensor(self, "weight"), addresses.tensor(self, "bias")
        assert weight is not None
        if weight.dtype != dtype:
            raise Unfit("a projection is in another dtype than the norms")
        return product(weight, bias, dtype, weight.shape[1], KINDS[dtype])

    def forward(self, x: Tensor) -> Tensor:
        return PRODUCT(x, self.weight, self.bias)


class TokenTable(nn.Embedding):
    """A vector (D,) for each of V tokens; if tied, it is also the projection to the vocabulary."""

    def project(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., D)."""
        return PRODUCT(hidden, self.weight, None)
