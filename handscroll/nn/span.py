"""The spans that attention reads: contiguous keys and values with the marks of their tokens."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from handscroll.kernels.rounding import GROUP, from_int4, from_int4_columns, from_int8
from handscroll.nn.marks import Marks


@dataclass(frozen=True, eq=False)
class Observer:
    """What a cache wants to know of the attention to a span: how much weight each key got (`nn/observe.py`).

    `queries` (B or 1, T) says how much each query counts. `take(first, mass)` gets the mass (B, K, S) of a run of keys
    that begins at `first`: softmax weights summed over queries and over the query heads of a kv head, to be added up.
    """

    queries: Tensor
    take: Callable[[int, Tensor], None]


@dataclass(frozen=True, eq=False)
class Span:
    """Keys and values (B, K, S, E) with marks; `rotated` says whether the keys carry their rotary angle.

    Rounded keys and values have `scales`, one tensor for each: int8 (B, K, S); int4, whose S is a multiple of 32, what
    `to_int4_columns` and `to_int4` make of keys and values. Kernels read them through `read`, or as they are where they
    can.

    `accumulate(first, key_gradient, value_gradient)`, where given, takes the gradient of a run of the span that
    begins at `first`: such a span is no part of autograd's graph (earlier chunks of a long training step).
    `observer`, where given, is told the attention mass on the span's keys.
    """

    keys: Tensor
    values: Tensor
    marks: Marks
    rotated: bool = True
    accumulate: Callable[[int, Tensor, Tensor], None] | None = None
    scales: tuple[Tensor, Tensor] | None = None
    observer: Observer | None = None

    def read(self, first: int, last: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values (B, K, last - first, E) of a run; what is rounded is widened to `dtype`."""
        keys, values = self.keys[:, :, first:last], self.values[:, :, first:last]
        if self.scales is None:
            return keys, values
        if keys.dtype == torch.uint8:
            start = first - first % GROUP
            key_scales, value_scales = self.scales_of(start, last)
            groups = self.keys[:, :, start : start + GROUP * key_scales.shape[2]]
            wide = from_int4_columns(groups, key_scales, dtype)[:, :, first - start : last - start]
            return wide, from_int4(values, value_scales[:, :, first - start :], dtype)
        key_scales, value_scales = self.scales_of(first, last)
        return from_int8(keys, key_scales, dtype), from_int8(values, value_scales, dtype)

    def scales_of(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """The scales of a run; in int4 it begins at a multiple of 32."""
        assert self.scales is not None
        keys, values = self.scales
        each = GROUP if self.keys.dtype == torch.uint8 else 1
        return keys[:, :, first // each : -(-last // each)], values[:, :, first:last]

    def rows(self, batch: int) -> "Span":
        """The same span for every row of a batch, without a copy."""
        if self.keys.shape[0] == batch:
            return self
        keys, values = (x.expand(batch, -1, -1, -1) for x in (self.keys, self.values))
        scales = self.scales
        if scales is not None:
            scales = (scales[0].expand(batch, *scales[0].shape[1:]), scales[1].expand(batch, *scales[1].shape[1:]))
        return replace(self, keys=keys, values=values, scales=scales)

    def release(self) -> None:
        """Called when a kernel has read the span; spans on disk then give their pages back."""
