"""Dropout (Srivastava et al. 2014) whose masks depend on the token alone, not on the order of computation.

A bit of a mask is a hash of (seed, update, site, row, order in the row, feature). So chunked, checkpointed, tiled and
sharded steps drop the same elements as a plain step, a recomputed forward drops the same elements as the first one,
and no mask is kept in memory. The mixing is the finaliser of MurmurHash3 (Appleby 2011).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from handscroll.nn.marks import Marks


@dataclass(frozen=True, eq=False)
class Noise:
    """The dropout of one update.

    `first_row` is the number of the batch's first row within the update, over all micro-batches. `first_site` is the
    first site of this part of the model (an encoder's sites come after its decoder's).
    """

    probability: float
    seed: int
    update: int
    first_row: int = 0
    first_site: int = 0

    def drop(self, x: Tensor, marks: Marks, site: int) -> Tensor:
        """`x` (B, T, D) with elements zeroed with `probability` and the rest divided by 1 - probability."""
        return x if self.probability == 0 else _Dropout.apply(x, self, marks, site)

    def kept(self, x: Tensor, marks: Marks, site: int) -> Tensor:
        """Boolean like `x`: True for the elements that stay."""
        index = marks.tensors(x.device)[0].expand(x.shape[0], -1)
        rows = torch.arange(self.first_row, self.first_row + x.shape[0], device=x.device)[:, None]
        tokens = _mixed64(
            _mixed64(_mixed64(index + _number(self.seed, self.update, self.first_site + site)) + rows) + index
        )
        features = torch.arange(x.shape[-1], device=x.device, dtype=torch.int32) * -1640531527
        bits = (tokens & 0x7FFFFFFF).to(torch.int32)[..., None] ^ features
        limit = round(self.probability * 2**31)
        return (_mixed32(bits) & 0x7FFFFFFF) >= limit


def _number(seed: int, update: int, site: int) -> int:
    """Mix three numbers into one of 62 bits, with Python's integers."""
    value = 0
    for part in (seed, update, site):
        value = ((value ^ part) * 0x9E3779B97F4A7C15 + 0x7F4A7C15) & ((1 << 64) - 1)
        value ^= value >> 29
    return value >> 2


def _mixed64(x: Tensor) -> Tensor:
    x = (x ^ ((x >> 33) & 0x7FFFFFFF)) * -49064778989728563
    return x ^ ((x >> 33) & 0x7FFFFFFF)


def _mixed32(x: Tensor) -> Tensor:
    """Mix int32 numbers in place; masking the copies of the sign bit makes the shifts logical."""
    x ^= (x >> 16) & 0xFFFF
    x *= -2048144789
    x ^= (x >> 13) & 0x7FFFF
    x *= -1028477387
    x ^= (x >> 16) & 0xFFFF
    return x


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, noise: Noise, marks: Marks, site: int) -> Tensor:
        ctx.noise, ctx.marks, ctx.site = noise, marks, site
        return torch.where(noise.kept(x, marks, site), x / (1 - noise.probability), 0.0)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = slopes
        kept = ctx.noise.kept(slope, ctx.marks, ctx.site)
        return torch.where(kept, slope / (1 - ctx.noise.probability), 0.0), None, None, None
