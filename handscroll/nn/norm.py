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


class LayerNorm(nn.LayerNorm):
    """Layer normalisation with bias in float32 (Ba et al. 2016)."""

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)
