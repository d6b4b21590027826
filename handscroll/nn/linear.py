"""Projections. For a few rows on a CPU the time is that of reading the weights once; a compiled product does that."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handscroll.kernels.native import calls
from handscroll.kernels.native.calls import FEW


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., D) times weight (N, D) transposed, plus bias (N,); sums in float32 at least."""
    if not torch.is_grad_enabled() and x.numel() <= FEW * x.shape[-1] and calls.can_multiply(x, weight):
        return calls.multiply(x, weight, bias)
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """`nn.Linear` through `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class TokenTable(nn.Embedding):
    """A vector (D,) for each of V tokens; tied, it is also the projection to the vocabulary."""

    def project(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., D)."""
        return linear(hidden, self.weight)
