"""The base of caches that keep new tokens as they are and put older ones away in blocks.

Blocks are put away when a forward is complete. So a chunk of a prompt reads itself exactly, and an aborted forward
changes nothing.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch
from torch import Tensor

from handscroll.base.errors import ConfigError
from handscroll.base.workload import Footprint
from handscroll.cache.cache import Cache
from handscroll.cache.columns import PLAIN, Columns, copied, nbytes, part, put, roomy
from handscroll.nn.keeper import Room
from handscroll.nn.marks import Marks
from handscroll.nn.span import Span


@dataclass(eq=False)
class Blocked(Cache):
    """At least the newest `recent` tokens of a full layer stay in the buffers; older ones are put away in whole blocks
    of `block` tokens.

    Subclasses decide where blocks go, with `_put`, `_away`, and `_copy_away`.
    """

    least_options: ClassVar[dict[str, int]] = {"block": 1, "recent": 0}  # options that are numbers, and their minimum

    block: int = 32
    recent: int = 0
    _store: dict[int, Columns] = field(init=False, default_factory=dict)
    _stored: int = field(init=False, default=0)  # number of tokens that were put away
    _parts: dict[tuple[int, int], Marks] = field(init=False, default_factory=dict)
    _spans: dict[int, tuple[Span, ...]] = field(init=False, default_factory=dict)  # of the tokens put away, for `room`

    def __post_init__(self):
        super().__post_init__()
        for name, least in self.least_options.items():
            if getattr(self, name) < least:
                raise ConfigError(f"a cache with {name}={getattr(self, name)}: it must be at least {least}")

    def append(self, layer: int, keys: Tensor, values: Tensor, marks: Marks) -> list[Span]:
        if torch.is_grad_enabled() and (keys.requires_grad or values.requires_grad):
            raise ConfigError("this cache has no gradients: run the model under torch.no_grad(), or use policy full")
        if self._pending is None or layer == 0:
            self._parts.clear()
        return super().append(layer, keys, values, marks)

    # Methods of a subclass.

    def _put(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Put (B, K, n x block, E) away after the stored tokens; they count only when `_stored` is raised."""
        raise NotImplementedError

    def _away(self, layer: int) -> list[Span]:
        """Spans of the first `_stored` tokens; their marks come from `_part`."""
        raise NotImplementedError

    def _copy_away(self, other: Self, rows: Tensor | None) -> None:
        """Give the empty cache `other` a copy of the tokens put away, for all rows or for the given ones."""
        raise NotImplementedError

    # Methods that all subclasses share.

    def _append(self, layer: int, keys: Tensor, values: Tensor, marks: Marks) -> list[Span]:
        held = self.marks.length - self._stored
        end = held + keys.shape[2]
        self._store[layer] = put(self._store.get(layer), (keys, values), held, self._room)
        new = PLAIN.span(part(self._store[layer], 0, end), self._part(self._stored, self._stored + end))
        return [*(self._away(layer) if self._stored else ()), new]

    def _room_of(self, layer: int, like: Tensor) -> Room:
        assert self._pending is not None
        start, end = self.marks.length - self._stored, self._pending.length - self._stored
        held = self._store.get(layer)
        if held is None or held[0].shape[2] < end:
            self._store[layer] = roomy(held, (like, like), start, self._room(end, 0))
        if self._stored and layer not in self._spans:
            self._spans[layer] = tuple(self._away(layer))
        return Room(self._store[layer], start, self._spans.get(layer, ()))

    def _commit(self) -> None:
        assert self._pending is not None
        held = self._pending.length - self._stored
        leaving = max(0, held - self.recent) // self.block * self.block
        if leaving:
            self._spans.clear()
            for layer in self.full:  # for all layers or for none: a disk may be full
                keys, values = part(self._store[layer], 0, leaving)
                self._put(layer, keys, values)
            self._stored += leaving
            for layer in self.full:  # in buffers of the usual size; the larger one of a prompt's chunk is freed
                left = part(self._store[layer], leaving, held)
                self._store[layer] = put(roomy(None, left, 0, self._room(0, 0)), left, 0, self._room)
        self._parts.clear()

    def _trim(self, length: int) -> None:
        self._parts.clear()
        self._spans.clear()
        if length < self._stored:  # the rest of a block returns to the buffers
            first = length // self.block * self.block
            for layer in self.full:
                back = self._read(layer, first, length)
                for buffer, x in zip(self._store[layer], back, strict=True):
                    buffer[:, :, : length - first] = x
            self._stored = first
            self._parts.clear()

    def _part(self, first: int, last: int) -> Marks:
        """Marks of tokens first .. last - 1.

        All layers of a forward get the same object, since kernels store results in it.
        """
        if (first, last) not in self._parts:
            whole = self.marks if self._pending is None else self._pending
            self._parts[first, last] = whole.part(first, last)
        return self._parts[first, last]

    def _read(self, layer: int, first: int, last: int) -> tuple[Tensor, Tensor]:
        """A copy of keys and values that were put away, in their original dtype."""
        held, at = self._store[layer][0], 0
        found: list[tuple[Tensor, Tensor]] = []
        for span in self._away(layer):
            here = (max(first - at, 0), min(last - at, span.marks.length))
            if here[0] < here[1]:
                keys, values = span.read(*here, held.dtype)
                found.append((keys.clone(), values.clone()))
                span.release()
            at += span.marks.length
        if not found:
            nothing = held[:, :, :0]
            return nothing, nothing
        keys, values = (torch.cat(parts, dim=2) for parts in zip(*found, strict=True))
        return keys, values

    def _copy(self, other: Self, rows: Tensor | None) -> None:
        held = self.marks.length - self._stored
        other._store = {layer: copied(columns, 0, held, rows) for layer, columns in self._store.items()}
        if self._stored:
            self._copy_away(other, rows)
            other._stored = self._stored

    def _nbytes(self) -> int:
        return sum(nbytes(columns) for columns in self._store.values())

    def _footprint(self, kv_heads: int, head_size: int, itemsize: int) -> Footprint:
        """The buffers, as if no token were put away; subclasses add the memory of the tokens that are."""
        each = super()._footprint(kv_heads, head_size, itemsize).each
        return Footprint(each=0, fixed=math.ceil(each * self._room(0, 0)), reading=each)

    def _room(self, needed: int, had: int) -> int:
        """Tokens to allocate for `needed` tokens: the buffers have room for two blocks besides the newest tokens."""
        return max(needed, self.recent + 2 * self.block)
