"""Projections. For a few rows on a CPU the time is that of reading the weights once; a compiled product does that."""

import torch
from torch import Tensor, nn

from handscroll.kernels.native import tables
from handscroll.kernels.native.calls import KINDS
from handscroll.kernels.rows import PRODUCT
from handscroll.nn.addresses import Addresses, Unfit, product


class Linear(nn.Linear):
    """`nn.Linear` through the registry."""

    def table(self, addresses: Addresses, dtype: torch.dtype) -> tables.Product:
        """As compiled layers in `dtype` multiply by it."""
        weight, bias = addresses.tensor(self, "weight"), addresses.tensor(self, "bias")
        assert weight is not None
        if weight.dtype != dtype:
            raise Unfit("a projection is in another dtype than the norms")
        return product(weight, bias, dtype, weight.shape[1], KINDS[dtype])

    def forward(self, x: Tensor) -> Tensor:
        return PRODUCT(x, self.weight, self.bias)


class TokenTable(nn.Embedding):
    """A vector (D,) for each of V tokens; tied, it is also the projection to the vocabulary."""

    def project(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., D)."""
        return PRODUCT(hidden, self.weight, None)
