"""The spans that attention reads: contiguous keys and values with the marks of their tokens."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from handscroll.kernels.rounding import GROUP, from_int4, from_int4_columns, from_int8
from handscroll.nn.marks import Marks


@dataclass(frozen=True, eq=False)
class Observer:
    """A cache's request for the attention mass on a span: the weight that each key got (`nn/observe.py`).

    `queries` (B or 1, T) says how much each query counts. `take(first, mass)` receives the mass (B, K, S) of a run of
    keys that begins at `first`. Mass is the softmax weight, summed over queries and over the query heads of a kv head;
    the receiver adds up the masses of several calls.
    """

    queries: Tensor
    take: Callable[[int, Tensor], None]


@dataclass(frozen=True, eq=False)
class Span:
    """Keys and values (B, K, S, E) with marks; `rotated` says whether the keys carry their rotary angle.

    Rounded keys and values have `scales`, one tensor for each. In int8 the scales are (B, K, S). In int4, S is a
    multiple of 32, and keys and values are the results of `to_int4_columns` and `to_int4`. Kernels read rounded numbers
    through `read`, or directly if they can.

    `accumulate(first, key_gradient, value_gradient)`, if given, takes the gradient of a run of the span that begins at
    `first`. Such a span is no part of autograd's graph (earlier chunks of a long training step).
    `observer`, if given, receives the attention mass on the span's keys.
    """

    keys: Tensor
    values: Tensor
    marks: Marks
    rotated: bool = True
    accumulate: Callable[[int, Tensor, Tensor], None] | None = None
    scales: tuple[Tensor, Tensor] | None = None
    observer: Observer | None = None

    def read(self, first: int, last: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values (B, K, last - first, E) of a run; rounded ones are widened to `dtype`."""
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
        """The scales of a run; an int4 run begins at a multiple of 32."""
        assert self.scales is not None
        keys, values = self.scales
        each = GROUP if self.keys.dtype == torch.uint8 else 1
        return keys[:, :, first // each : -(-last // each)], values[:, :, first:last]

    def rows(self, batch: int) -> "Span":
        """The same span expanded to `batch` rows, without a copy."""
        if self.keys.shape[0] == batch:
            return self
        keys, values = (x.expand(batch, -1, -1, -1) for x in (self.keys, self.values))
        scales = self.scales
        if scales is not None:
            scales = (scales[0].expand(batch, *scales[0].shape[1:]), scales[1].expand(batch, *scales[1].shape[1:]))
        return replace(self, keys=keys, values=values, scales=scales)

    def release(self) -> None:
        """Called when a kernel has read the span; spans on disk then give their pages back."""
