"""What caches have in common that keep new tokens as they are and put older ones away in blocks.

Blocks leave when a forward is complete, so a chunk of a prompt reads itself exactly and an aborted forward changes
nothing.
"""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from handscroll.base.errors import ConfigError
from handscroll.base.workload import Footprint
from handscroll.cache.full import Cache
from handscroll.nn.marks import Marks
from handscroll.nn.span import Span


@dataclass
class Blocked(Cache):
    """The newest `recent` tokens at least stay in the buffers; before them, whole blocks of `block` are put away.

    Subclasses say where to: `_put`, `_away`, `_forget` and `_copy_away`.
    """

    recordable: ClassVar[bool] = False

    block: int = 32
    recent: int = 0
    _stored: int = 0  # tokens that were put away
    _parts: dict[tuple[int, int], Marks] = field(default_factory=dict)

    def __post_init__(self):
        super().__post_init__()
        for name in ("block", "recent"):
            least = 1 if name == "block" else 0
            if getattr(self, name) < least:
                raise ConfigError(f"a cache with {name}={getattr(self, name)}: it must be at least {least}")

    def footprint(self, kv_heads: int, head_size: int, itemsize: int) -> Footprint:
        """The buffers of the newest tokens, as if none were put away; subclasses say what becomes of the others."""
        each = super().footprint(kv_heads, head_size, itemsize).each
        return Footprint(each=0, fixed=math.ceil(each * (self.recent + 2 * self.block)), reading=each)

    def append(self, layer: int, keys: Tensor, values: Tensor, marks: Marks) -> list[Span]:
        if torch.is_grad_enabled() and (keys.requires_grad or values.requires_grad):
            raise ConfigError(
                "this cache carries no gradients: run the model under torch.no_grad(), or use policy full"
            )
        if self._pending is None or layer == 0:  # of an aborted forward nothing is left
            parts = [self.marks, marks]
            self._pending = marks if not self.marks.length else Marks.join(parts, keys.shape[0], keys.device)
            self._parts.clear()
        store, held = self._store[layer], self.marks.length - self._stored
        end = held + keys.shape[2]
        store.keys = self._room(store.keys, keys, held, end)
        store.values = self._room(store.values, values, held, end)
        store.keys[:, :, held:end], store.values[:, :, held:end] = keys, values
        before = [span.rows(keys.shape[0]) for span in self.past[layer]] if self.past else []
        new = Span(store.keys[:, :, :end], store.values[:, :, :end], self._part(self._stored, self._stored + end))
        return [*before, *(self._away(layer) if self._stored else ()), new]

    def commit(self) -> None:
        if self._pending is None:
            return
        held = self._pending.length - self._stored
        leaving = max(0, held - self.recent) // self.block * self.block
        if leaving:
            stores = [(s.keys, s.values) for s in self._store]
            for layer, (keys, values) in enumerate(stores):  # all or none: a disk may be full
                assert keys is not None and values is not None
                self._put(layer, keys[:, :, :leaving], values[:, :, :leaving])
            self._stored += leaving
            for store, (keys, values) in zip(self._store, stores, strict=True):
                store.keys, store.values = (self._shifted(x, leaving, held) for x in (keys, values))
        super().commit()
        self._parts.clear()

    def trim(self, length: int) -> None:
        kept = length - self._before
        super().trim(length)
        self._parts.clear()
        if kept < self._stored:  # the rest of a block comes back
            first = kept // self.block * self.block
            for layer, store in enumerate(self._store):
                assert store.keys is not None and store.values is not None
                for buffer, back in zip((store.keys, store.values), self._read(layer, first, kept), strict=True):
                    buffer[:, :, : kept - first] = back
            self._stored = first
            self._forget(first)
            self._parts.clear()

    def clone(self) -> Self:
        return self._copy(None)

    def take_rows(self, rows: Tensor) -> Self:
        return self._copy(rows)

    # What a subclass does.

    def _put(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Put (B, K, n x block, E) away after what is there; counts only once `_stored` says so."""
        raise NotImplementedError

    def _away(self, layer: int) -> list[Span]:
        """Spans of the first `_stored` tokens; their marks come from `_part`."""
        raise NotImplementedError

    def _forget(self, length: int) -> None:
        """Drop what was put away past `length` tokens."""
        raise NotImplementedError

    def _copy_away(self, other: Self, rows: Tensor | None) -> None:
        """Give `other`, which is empty, a copy of what was put away, of all rows or of some."""
        raise NotImplementedError

    def _options(self) -> dict[str, Any]:
        """What a copy is made with besides layers and past."""
        return {"block": self.block, "recent": self.recent}

    def _part(self, first: int, last: int) -> Marks:
        """Marks of tokens first .. last - 1; one object for all layers of a forward, since kernels remember by it."""
        if (first, last) not in self._parts:
            whole = self.marks if self._pending is None else self._pending
            self._parts[first, last] = whole.part(first, last)
        return self._parts[first, last]

    def _read(self, layer: int, first: int, last: int) -> tuple[Tensor, Tensor]:
        """A copy of keys and values that were put away, in the dtype they came in."""
        held, at = self._store[layer].keys, 0
        assert held is not None
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

    def _copy(self, rows: Tensor | None) -> Self:
        other = type(self)(self.layers, past=self.past, **self._options())
        other.marks = self.marks if rows is None else self.marks.take_rows(rows)
        held = self.marks.length - self._stored
        for mine, theirs in zip(self._store, other._store, strict=True):
            for name in ("keys", "values"):
                buffer = getattr(mine, name)
                if buffer is not None:
                    setattr(theirs, name, buffer[:, :, :held].clone() if rows is None else buffer[rows, :, :held])
        if self._stored:
            self._copy_away(other, rows)
            other._stored = self._stored
        return other

    def _room(self, buffer: Tensor | None, like: Tensor, held: int, end: int) -> Tensor:
        """The buffer, or a larger one with what it holds."""
        if buffer is not None and buffer.shape[2] >= end:
            return buffer
        size = max(end, self.recent + 2 * self.block)
        grown = like.new_empty(like.shape[0], like.shape[1], size, like.shape[3])
        if buffer is not None:
            grown[:, :, :held] = buffer[:, :, :held]
        return grown

    def _shifted(self, buffer: Tensor | None, gone: int, end: int) -> Tensor:
        """A buffer of the usual size without the first tokens: that of a prompt's chunk is given back."""
        assert buffer is not None
        made = buffer.new_empty(*buffer.shape[:2], self.recent + 2 * self.block, buffer.shape[3])
        made[:, :, : end - gone] = buffer[:, :, gone:end]
        return made
