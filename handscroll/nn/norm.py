"""Root-mean-square normalisation (Zhang & Sennrich 2019), computed in float32 for inputs of any dtype."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from handscroll.kernels.native import tables
from handscroll.kernels.rows import NORM
from handscroll.nn.addresses import Addresses, Unfit, whole


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension; the product with the weight is in the dtype of x."""

    offset = False  # True: the factor is 1 + weight, in float32

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        return NORM(x, self.weight, self.eps, self.offset)

    def table(self, addresses: Addresses, dtype: torch.dtype) -> tables.Norm:
        """How compiled layers in `dtype` compute it."""
        weight = addresses.tensor(self, "weight")
        if weight is None or weight.dtype != dtype:
            raise Unfit("the norms are in several dtypes")
        whole("norm", weight.shape[0])
        return tables.Norm(weight.data_ptr(), self.eps, self.offset)


class OffsetRMSNorm(RMSNorm):
    """x / rms(x) * (1 + weight) over the last dimension, all of it in float32 before it is rounded to the dtype of x.

    This is Gemma's norm: its weight is learned around 0 (Gemma Team 2024, arXiv:2403.08295, and its released code).
    """

    offset = True

    def __init__(self, width: int, eps: float):
        super().__init__(width, eps)
        nn.init.zeros_(self.weight)


class LayerNorm(nn.LayerNorm):
    """Layer normalisation with bias in float32 (Ba et al. 2016)."""

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


class Times(nn.Module):
    """A fixed factor, at a place where other families have a norm (Granite's branches)."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        return x * self.factor
