"""Root-mean-square normalisation (Zhang & Sennrich 2019), computed in float32 whatever the input."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from handscroll.kernels.gpu import slots
from handscroll.kernels.native import calls


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension; the product with the weight is in the dtype of x."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        if not torch.is_grad_enabled() and calls.can_norm(x, self.weight):
            return calls.norm(x, self.weight, self.eps)
        if not torch.is_grad_enabled() and slots.can_norm(x, self.weight):
            return slots.norm(x, self.weight, self.eps)
        if x.device.type == "cuda" and x.dtype == self.weight.dtype != torch.float64:  # one pass, and x alone is kept
            return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps).to(x.dtype)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        scaled = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)
        return self.weight * scaled.to(x.dtype)


class LayerNorm(nn.LayerNorm):
    """Layer normalisation with bias in float32 (Ba et al. 2016)."""

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)
