"""The base of policies that keep every token of the full layers, plain or rounded, in buffers that grow."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from handscroll.base.workload import Footprint
from handscroll.cache.cache import Cache
from handscroll.cache.columns import Columns, copied, nbytes, part, put, roomy
from handscroll.nn.keeper import Room
from handscroll.nn.marks import Marks
from handscroll.nn.span import Span


@dataclass(eq=False)
class Buffered(Cache):
    """A cache that keeps all layers in its `form`, with one buffer per column.

    It can be cut back, shared by branches, and filled by a compiled pass; a subclass says whether it is saved.
    """

    rewinds: ClassVar[bool] = True
    fillable: ClassVar[bool] = True

    _store: dict[int, Columns] = field(init=False, default_factory=dict)

    def branch(self, capacity: int = 0) -> Self:
        past: list[Sequence[Span]] = [
            [*(self.past[layer] if self.past else ()), *([self._held(layer)] if self._gone else ())]
            for layer in range(self.layers)
        ]
        return replace(self, capacity=capacity, past=past, before=self.length)

    def columns(self, layer: int) -> dict[str, Tensor]:
        """The columns of a layer by name, without spare room and without the past."""
        return dict(zip(self.form.names, self._kept(layer), strict=True))

    def saving(self, layer: int) -> dict[str, Tensor]:
        """The columns of a layer that a saved reading keeps.

        For a full layer these are the cache's own tokens; for a windowed one the last tokens, with those of the past.
        """
        group, own = self._rolling.get(layer), self._kept(layer)
        if group is not None:
            count = own[0].shape[2]
            before = [(span.keys, span.values, *(span.scales or ())) for span in self.past[layer]] if self.past else []
            if count < group.kept:
                own = tuple(torch.cat(column, dim=2) for column in zip(*before, own, strict=True))
            own = part(own, max(0, own[0].shape[2] - group.kept), own[0].shape[2])
        return dict(zip(self.form.names, own, strict=True))

    def _append(self, layer: int, keys: Tensor, values: Tensor, marks: Marks) -> list[Span]:
        assert self._pending is not None
        held = self._store.get(layer)
        self._store[layer] = put(held, self.form.made(keys, values), self.marks.length, self._room)
        return [self.form.span(part(self._store[layer], 0, self._pending.length), self._pending)]

    def _room_of(self, layer: int, like: Tensor) -> Room:
        assert self._pending is not None
        start, end = self.marks.length, self._pending.length
        held = self._store.get(layer)
        had = 0 if held is None else held[0].shape[2]
        if held is None or had < end:
            self._store[layer] = roomy(held, self.form.made(like, like), start, self._room(end, had))
        return Room(self._store[layer], start)

    def _copy(self, other: Self, rows: Tensor | None) -> None:
        other._store = {layer: copied(held, 0, self.marks.length, rows) for layer, held in self._store.items()}

    def _nbytes(self) -> int:
        return sum(nbytes(columns) for columns in self._store.values())

    def _footprint(self, kv_heads: int, head_size: int, itemsize: int) -> Footprint:
        return Footprint(each=len(self.full) * kv_heads * self.form.head_bytes(head_size, itemsize))

    def _held(self, layer: int) -> Span:
        """The cache's own committed tokens of a layer."""
        group = self._rolling.get(layer)
        return self.form.span(self._kept(layer), self.marks if group is None else group.marks)

    def _kept(self, layer: int) -> Columns:
        group = self._rolling.get(layer)
        return part(self._store[layer], 0, self.marks.length) if group is None else group.held(layer)

    def _room(self, needed: int, had: int) -> int:
        """Tokens to allocate for `needed` tokens, after a buffer of `had` tokens."""
        return self.capacity if needed <= self.capacity else max(needed, 2 * had)
