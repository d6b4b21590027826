"""Keepers that look at a cache while a forward reads it, or hide a part of it. The cache itself stays as it is."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from handscroll.cache.cache import Cache
from handscroll.nn.keeper import Keeper
from handscroll.nn.marks import Marks
from handscroll.nn.span import Observer, Span

Take = Callable[[int, int, Tensor], None]
Ranges = Sequence[tuple[int, int]]  # places in the text: first and last + 1, in order, not overlapping


class Watched(Keeper):
    """A cache whose keys tell how much attention they get.

    `queries` (T,) says how much each token of the forward counts. `take(layer, first, mass)` receives the mass (K, S)
    of the keys that stand at `first`, `first` + 1, ... in the text (`nn/observe.py`).
    """

    def __init__(self, cache: Cache, queries: Tensor, take: Take):
        self._cache, self._queries, self._take = cache, queries, take

    def append(self, layer: int, keys: Tensor, values: Tensor, marks: Marks) -> list[Span]:
        return [self._watched(layer, span) for span in self._cache.append(layer, keys, values, marks)]

    def commit(self) -> None:
        self._cache.commit()

    def _watched(self, layer: int, span: Span) -> Span:
        assert span.marks.start is not None, "explanations read one row without padding"
        begin = span.marks.start

        def take(first: int, mass: Tensor) -> None:
            self._take(layer, begin + first, mass[0])

        return replace(span, observer=Observer(self._queries[None], take))


class Hiding(Keeper):
    """A cache without the keys and values at some places of the text: no token of the forward sees them.

    What was read after them has seen them and stays as it is. Places beyond the `past` of the cache cannot be hidden.
    """

    def __init__(self, cache: Cache, hidden: Ranges):
        self._cache, self._hidden = cache, hidden

    def append(self, layer: int, keys: Tensor, values: Tensor, marks: Marks) -> list[Span]:
        return [part for span in self._cache.append(layer, keys, values, marks) for part in self._left(span)]

    def commit(self) -> None:
        self._cache.commit()

    def _left(self, span: Span) -> list[Span]:
        """The runs of a span that are not hidden."""
        assert span.marks.start is not None, "explanations read one row without padding"
        begin, at, left = span.marks.start, 0, list[Span]()
        length = span.keys.shape[2]
        for first, last in self._hidden:
            cut = min(max(first - begin, at), length)
            left += [_run(span, at, cut)] if cut > at else []
            at = max(at, min(last - begin, length))
        return [*left, *([_run(span, at, length)] if at < length else [])]


def _run(span: Span, first: int, last: int) -> Span:
    """A run of a span's keys and values, without a copy."""
    if first == 0 and last == span.keys.shape[2]:
        return span
    here = slice(first, last)
    scales = None if span.scales is None else (span.scales[0][:, :, here], span.scales[1][:, :, here])
    assert span.keys.dtype != torch.uint8, "keys of four bits are kept by policies that cannot be branched"
    return replace(
        span,
        keys=span.keys[:, :, here],
        values=span.values[:, :, here],
        marks=span.marks.part(first, last),
        scales=scales,
    )
