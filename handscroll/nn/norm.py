"""Root-mean-square normalisation (Zhang & Sennrich 2019), computed in float32 whatever the input."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from handscroll.kernels.rows import NORM


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension; the product with the weight is in the dtype of x."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        return NORM(x, self.weight, self.eps)


class OffsetRMSNorm(nn.Module):
    """x / rms(x) * (1 + weight) over the last dimension, all of it in float32 before it is rounded to the dtype of x.

    Gemma's norm: its weight is learned around 0 (Gemma Team 2024, arXiv:2403.08295, and its released code).
    """

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        scaled = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)
        return (scaled * (1.0 + self.weight.to(scaled.dtype))).to(x.dtype)


class LayerNorm(nn.LayerNorm):
    """Layer normalisation with bias in float32 (Ba et al. 2016)."""

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)
