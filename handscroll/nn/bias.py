"""Symbolic attention biases: small frozen descriptions of the numbers added to the scores, computed on tiles like
masks.

A bias is a number per head and pair of positions. Kernels ask for it piece by piece and never hold it whole.
"""

import math
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from handscroll.nn.marks import Marks


class Bias:
    """A term added to the scaled scores of every head. Subclasses implement `values`; a learned one also `gradient`."""

    @property
    def learned(self) -> Tensor | None:
        """The parameter from which the values are computed; None if nothing is learned."""
        return None

    def values(self, query: Marks, key: Marks, device: torch.device) -> Float[Tensor, "rows H T S"]:
        """Float32 (B or 1, H, T, S), from the positions of queries and keys. Called on tiles only."""
        raise NotImplementedError

    def gradient(self, slope: Float[Tensor, "B H T S"], query: Marks, key: Marks) -> Tensor:
        """The gradient of `learned`, in its shape, from the gradient `slope` of the scores of one tile.

        It has the dtype of the slope.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class ALiBi(Bias):
    """m_h * (key position - query position): keys further back count less, at each head's own rate.

    For n heads, n a power of two, the slopes are m_h = 2^(-8 h / n), h = 1 .. n. For another number of heads, the first
    slopes are those of the power of two below it; the rest are every other slope of the power of two above it.
    `factor` divides all slopes, which is position interpolation for such models.
    Source: Press et al. 2022, "Train Short, Test Long", arXiv:2108.12409, section 3 and its released code;
    Al-Khateeb et al. 2023, "Position Interpolation Improves ALiBi Extrapolation", arXiv:2310.13017.
    """

    heads: int
    factor: float = 1.0

    @property
    def slopes(self) -> tuple[float, ...]:
        """One positive number per head."""
        whole = 1 << (self.heads.bit_length() - 1)  # the largest power of two that is not above the number of heads
        rest = _slopes(2 * whole)[::2][: self.heads - whole]
        return tuple(slope / self.factor for slope in (*_slopes(whole), *rest))

    def values(self, query: Marks, key: Marks, device: torch.device) -> Float[Tensor, "rows H T S"]:
        q, k = query.tensors(device)[2], key.tensors(device)[2]
        distances = (k[:, None, None, :] - q[:, None, :, None]).to(torch.float32)
        return distances * torch.tensor(self.slopes, dtype=torch.float32, device=device)[:, None, None]


def _slopes(heads: int) -> list[float]:
    return [math.pow(2.0, -8.0 * (head + 1) / heads) for head in range(heads)]


@dataclass(frozen=True)
class Buckets:
    """Distances sorted into `count` buckets: a short distance has its own, long ones share, from `reach` on all share
    one.

    In a causal decoder (`both` False) all buckets are for keys behind, and keys ahead count as distance 0. Otherwise
    half of the buckets are for keys behind and half for keys ahead. A direction has n buckets: the first n / 2 hold one
    distance each, and the others grow logarithmically up to `reach` tokens. Before that, distances are divided by
    `factor` and rounded down. Source: Raffel et al. 2020, "Exploring the Limits of Transfer Learning",
    arXiv:1910.10683, section 2.1 and its released code, whose rounding in float32 is kept.
    """

    count: int
    reach: int
    both: bool
    factor: float = 1.0

    @property
    def last(self) -> int:
        """The distance from which on the bucket no longer changes."""
        return math.ceil(self.reach * self.factor)

    def of(self, distance: Tensor) -> Tensor:
        """The bucket (int64) of each distance (key position minus query position)."""
        side = self.count // 2 if self.both else self.count
        single = side // 2
        far = distance.abs() if self.both else (-distance).clamp_min(0)
        far = (far / self.factor).floor().long() if self.factor != 1.0 else far
        share = torch.log(far.clamp_min(1).float() / single) / math.log(self.reach / single) * (side - single)
        bucket = torch.where(far < single, far, (single + share.long()).clamp_max(side - 1))
        return bucket + side * (distance > 0) if self.both else bucket


@cache
def _sorted(buckets: Buckets) -> Tensor:
    """The buckets of the distances -last .. last, in order."""
    return buckets.of(torch.arange(-buckets.last, buckets.last + 1))


@dataclass(frozen=True, eq=False)
class Relative(Bias):
    """T5's learned bias: one number per head and bucket of distances, in `table` (buckets, H).

    Source: see `Buckets`.
    """

    table: Tensor
    buckets: Buckets

    @property
    def learned(self) -> Tensor:
        return self.table

    def values(self, query: Marks, key: Marks, device: torch.device) -> Float[Tensor, "rows H T S"]:
        wide = self.table.to(torch.promote_types(self.table.dtype, torch.float32))
        by_distance = wide[_sorted(self.buckets).to(device)].T  # (H, distances)
        places = self._places(query, key, device)
        if places.dim() > 1:
            return by_distance[:, places].transpose(0, 1)
        return by_distance[:, places].unfold(1, key.length, 1).flip(1)[None]  # each query's keys lie one further on

    def gradient(self, slope: Float[Tensor, "B H T S"], query: Marks, key: Marks) -> Tensor:
        places, (_, heads, count, keys) = self._places(query, key, slope.device), slope.shape
        order = _sorted(self.buckets).to(slope.device)
        if places.dim() > 1:
            slope = slope if len(places) > 1 else slope.sum(dim=0, keepdim=True)
            each = slope.transpose(0, 1).flatten(1)
        else:  # when each row is shifted by one, equal distances lie below each other
            apart = F.pad(slope.sum(dim=0).flip(1), (0, count)).flatten(1)[:, :-count]
            each = apart.view(heads, count, count + keys - 1).sum(dim=1)
        by_distance = slope.new_zeros(heads, len(order)).index_add_(1, places.flatten(), each)
        return slope.new_zeros(self.table.shape).index_add_(0, order, by_distance.T)

    def _places(self, query: Marks, key: Marks, device: torch.device) -> Tensor:
        """Distance of each pair, counted from -last: (B or 1, T, S).

        For two plain runs it is (T + S - 1), with the last query first.
        """
        last = self.buckets.last
        if query.start is not None and key.start is not None:
            first = key.start - (query.start + query.length - 1)
            distances = torch.arange(first, first + query.length + key.length - 1, device=device)
        else:
            q, k = query.tensors(device)[2], key.tensors(device)[2]
            distances = k[:, None, :] - q[:, :, None]
        return distances.clamp(-last, last) + last
