"""Rows of numbers in int8 with one float32 scale a row: what quantised caches and weights are made of."""

import torch
from torch import Tensor


def to_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """(..., E) -> int8 (..., E) and scales (...): x is about number times scale, off by at most half a scale.

    Symmetric, with the largest absolute number of a row at 127; a row of zeros has scale 0.
    """
    wide = x.to(torch.float32)
    scales = wide.abs().amax(dim=-1) / 127
    numbers = wide / scales.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(-1)
    return numbers.round_().clamp_(-127, 127).to(torch.int8), scales


def from_int8(numbers: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """What `to_int8` stands for, in `dtype`; computed in float32 at least."""
    wide = torch.promote_types(dtype, torch.float32)
    return (numbers.to(wide) * scales.to(wide).unsqueeze(-1)).to(dtype)
