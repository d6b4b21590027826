"""Rounding to few bits with scales, for quantised caches and weights.

int8 has one float32 scale per row. int4 has a scale and a lowest number, both bfloat16, for every group of 32 numbers.
A group lies in a row (weights, values), or in a channel over 32 tokens (keys, whose channels differ more than their
tokens: KIVI, Liu et al. 2024, arXiv:2402.02750). The reasons are in docs/log.md.
"""

import torch
from torch import Tensor

from handscroll.base.errors import ConfigError

GROUP = 32  # numbers that share a scale in int4


def to_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """(..., E) -> int8 (..., E) and scales (...). x is about number times scale, with an error of at most half a scale.

    The rounding is symmetric: the largest magnitude of a row becomes 127. A row of zeros has scale 0.
    """
    wide = x.to(torch.float32)
    scales = wide.abs().amax(dim=-1) / 127
    numbers = wide / scales.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(-1)
    return numbers.round_().clamp_(-127, 127).to(torch.int8), scales


def from_int8(numbers: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """The inverse of `to_int8`, in `dtype`; computed in float32 at least."""
    wide = torch.promote_types(dtype, torch.float32)
    return (numbers.to(wide) * scales.to(wide).unsqueeze(-1)).to(dtype)


def to_int4(x: Tensor) -> tuple[Tensor, Tensor]:
    """(..., E) -> two numbers a byte, uint8 (..., E / 2), and bfloat16 (..., 2, G): scales, then lowest numbers.

    x is about lowest + number times scale, with an error of little more than half a scale. A row whose size is not a
    multiple of 32 is one group.

    Raises:
        ConfigError: E is odd.
    """
    size = _even(x.shape[-1])
    wide = x.to(torch.float32).unflatten(-1, (-1, size))
    numbers, scales = _rounded(wide, -1)
    return _packed(numbers.flatten(-2)), scales


def from_int4(numbers: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """The inverse of `to_int4`, in `dtype`; computed in float32 at least."""
    wide = torch.promote_types(dtype, torch.float32)
    step, lowest = scales.to(wide).unsqueeze(-1).unbind(-3)
    return (_unpacked(numbers).to(wide).unflatten(-1, (step.shape[-2], -1)) * step + lowest).flatten(-2).to(dtype)


def to_int4_columns(x: Tensor) -> tuple[Tensor, Tensor]:
    """(..., S, E) -> uint8 (..., S, E / 2) and bfloat16 (..., S / 32, 2, E); a group is one channel of 32 tokens.

    S is a multiple of 32.

    Raises:
        ConfigError: E is odd.
    """
    _even(x.shape[-1])
    numbers, scales = _rounded(x.to(torch.float32).unflatten(-2, (-1, GROUP)), -2)
    return _packed(numbers.flatten(-3, -2)), scales


def from_int4_columns(numbers: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """The inverse of `to_int4_columns`, in `dtype`; computed in float32 at least."""
    wide = torch.promote_types(dtype, torch.float32)
    step, lowest = scales.to(wide).unsqueeze(-2).unbind(-3)
    return (_unpacked(numbers).to(wide).unflatten(-2, (-1, GROUP)) * step + lowest).flatten(-3, -2).to(dtype)


def _rounded(groups: Tensor, along: int) -> tuple[Tensor, Tensor]:
    """Numbers 0 .. 15 of float32 groups along a dimension, with their scales and lowest numbers.

    Scales and lowest numbers are stacked in the last dimension but one.
    """
    lowest = groups.amin(dim=along).to(torch.bfloat16)
    scales = ((groups.amax(dim=along) - lowest.to(torch.float32)) / 15).to(torch.bfloat16)
    steps = scales.to(torch.float32).clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(along)
    numbers = (groups - lowest.to(torch.float32).unsqueeze(along)) / steps
    return numbers.round_().clamp_(0, 15).to(torch.uint8), torch.stack((scales, lowest), dim=-2)


def _even(size: int) -> int:
    """The number of numbers in a group, for a row of `size`."""
    if size % 2:
        raise ConfigError(f"int4 keeps two numbers a byte: a row of {size} is odd (head size, or width); use int8")
    return GROUP if size % GROUP == 0 else size


def _packed(numbers: Tensor) -> Tensor:
    """(..., N) of 0 .. 15 -> (..., N / 2): the first half of a run of 32 (or of the row) goes into the low bits."""
    low, high = numbers.unflatten(-1, (-1, _even(numbers.shape[-1]))).chunk(2, dim=-1)
    return (low | high << 4).flatten(-2)


def _unpacked(packed: Tensor) -> Tensor:
    runs = packed.unflatten(-1, (-1, _even(2 * packed.shape[-1]) // 2))
    return torch.cat((runs & 15, runs >> 4), dim=-1).flatten(-2)
