"""The exact full cache: one span per layer in a buffer that grows by doubling."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from handscroll.base.workload import Footprint
from handscroll.nn.marks import Marks
from handscroll.nn.span import Span


@dataclass
class _Layer:
    keys: Tensor | None = None  # (B, K, capacity, E)
    values: Tensor | None = None


@dataclass(eq=False)
class Cache:
    """Exact full cache of `layers` layers.

    A forward calls `append` once per layer and `commit` once at its end; an aborted forward leaves the
    committed part untouched. `capacity` (tokens) reserves the buffers at once instead of doubling.

    `past` are spans (1, K, S, E) per layer that come before all else and are only read, by every row (a saved
    reading, mapped from its file). `marks` are those of the tokens after it.
    """

    recordable: ClassVar[bool] = True  # whether a CUDA graph can be recorded over its buffers

    layers: int
    capacity: int = 0
    marks: Marks = field(default_factory=lambda: Marks.run(0, 0))
    past: Sequence[Sequence[Span]] = ()
    tables: dict[str, Any] = field(
        default_factory=dict, repr=False, compare=False
    )  # what `nn/compiled/stack.py` remembers
    _store: list[_Layer] = field(default_factory=list)
    _pending: Marks | None = None

    def __post_init__(self):
        self._store = self._store or [_Layer() for _ in range(self.layers)]

    @property
    def length(self) -> int:
        """Tokens gone by per row, padding and past included; all of them are held here."""
        return self._before + self.marks.length

    @property
    def nbytes(self) -> int:
        """Bytes of the allocated buffers; the past is not its own."""
        held = [t for layer in self._store for t in (layer.keys, layer.values) if t is not None]
        return sum(t.numel() * t.element_size() for t in held)

    def footprint(self, kv_heads: int, head_size: int, itemsize: int) -> Footprint:
        """Bytes of a cache like this of one row, its past excepted, where numbers come in `itemsize` bytes."""
        return Footprint(each=2 * self.layers * kv_heads * head_size * itemsize)

    def expect(self, marks: Marks) -> None:
        """Tokens with these marks are about to be read, in one forward or several: for caches that wait for the end."""

    def report(self) -> str:
        """What there is to say at the end of a generation; nothing of an exact cache."""
        return ""

    def append(self, layer: int, keys: Tensor, values: Tensor, marks: Marks) -> list[Span]:
        """Add (B, K, T, E) keys and values of one layer; returns all spans of the layer, the new tokens last."""
        if self._pending is None or layer == 0:  # of an aborted forward nothing is left
            self._pending = self.marks.joined(marks, keys.shape[0], keys.device)
        store, end = self._store[layer], self.marks.length + keys.shape[2]
        store.keys = self._write(store.keys, keys, end)
        store.values = self._write(store.values, values, end)
        before = [span.rows(keys.shape[0]) for span in self.past[layer]] if self.past else []
        return [*before, Span(store.keys[:, :, :end], store.values[:, :, :end], self._pending)]

    def extend(self, like: Tensor, marks: Marks) -> list[tuple[Tensor, ...]]:
        """Room for tokens with these marks in every layer, shaped (B, K, any, E) and of the dtype of `like`.

        Returns each layer's buffers: keys and values, and their scales where they are rounded. The caller fills the
        slots after those that are committed. A subclass that keeps tokens in such buffers has an `extend` of its own.
        """
        self._pending = self.marks.joined(marks, like.shape[0], like.device)
        found, end = [], self._pending.length
        for store in self._store:
            store.keys, store.values = self._grown(store.keys, like, end), self._grown(store.values, like, end)
            found.append((store.keys, store.values))
        return found

    def commit(self) -> None:
        """Make the tokens appended by this forward part of the cache."""
        if self._pending is not None:
            self.marks, self._pending = self._pending, None

    def trim(self, length: int) -> None:
        """Forget every token after the first `length`."""
        if not self._before <= length <= self.length:
            first = f", of which {self._before} are only read" if self._before else ""
            raise ValueError(f"cannot trim a cache of {self.length} tokens{first} to {length}")
        self.marks, self._pending = self.marks.part(0, length - self._before), None

    def clone(self) -> "Cache":
        """An independent copy (branches of one prompt)."""
        stores = [
            _Layer(*(None if t is None else t[:, :, : self.marks.length].clone() for t in (s.keys, s.values)))
            for s in self._store
        ]
        return Cache(self.layers, marks=self.marks, past=self.past, _store=stores)

    def take_rows(self, rows: Tensor) -> "Cache":
        """A copy that holds the given batch rows, in their order."""
        stores = [
            _Layer(*(None if t is None else t[rows, :, : self.marks.length] for t in (s.keys, s.values)))
            for s in self._store
        ]
        return Cache(self.layers, marks=self.marks.take_rows(rows), past=self.past, _store=stores)

    def branch(self, capacity: int = 0) -> "Cache":
        """A cache of any number of rows that goes on after the one row of this, which becomes its `past`, uncopied.

        This cache must not be written to any more while a branch is in use.
        """
        past = [
            [*(self.past[layer] if self.past else ()), *([self._held(layer)] if self.marks.length else [])]
            for layer in range(self.layers)
        ]
        return type(self)(self.layers, capacity=capacity, past=past)

    def state_dict(self) -> dict[str, Tensor]:
        """Named tensors from which `from_state` rebuilds the cache: keys, values and marks; not the past."""
        state: dict[str, Tensor] = {"layers": torch.tensor(self.layers)}
        for number, store in enumerate(self._store):
            for name, tensor in (("keys", store.keys), ("values", store.values)):
                if tensor is not None:
                    state[f"{number}.{name}"] = tensor[:, :, : self.marks.length].contiguous()
        if self.marks.start is not None:
            return state | {"start": torch.tensor(self.marks.start), "length": torch.tensor(self.marks.length)}
        index, segment, positions = self.marks.tensors(torch.device("cpu"))
        return state | {"index": index, "segment": segment, "positions": positions}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> "Cache":
        layers = int(state["layers"])
        stores = [_Layer(state.get(f"{n}.keys"), state.get(f"{n}.values")) for n in range(layers)]
        if "start" in state:
            marks = Marks.run(int(state["start"]), int(state["length"]))
        else:
            marks = Marks.of(state["index"], state["segment"], state["positions"])
        return cls(layers, marks=marks, _store=stores)

    def _held(self, layer: int) -> Span:
        """What was appended to a layer and committed."""
        store, end = self._store[layer], self.marks.length
        assert store.keys is not None and store.values is not None, "nothing was appended"
        return Span(store.keys[:, :, :end], store.values[:, :, :end], self.marks)

    @property
    def _before(self) -> int:
        return sum(span.marks.length for span in self.past[0]) if self.past else 0

    def _write(self, buffer: Tensor | None, new: Tensor, end: int) -> Tensor:
        buffer = self._grown(buffer, new, end)
        buffer[:, :, self.marks.length : end] = new
        return buffer

    def _grown(self, buffer: Tensor | None, new: Tensor, end: int) -> Tensor:
        """The buffer, or a larger one with the same committed tokens, with room for `end`."""
        if buffer is not None and buffer.shape[2] >= end:
            return buffer
        size = self._room(end, 0 if buffer is None else buffer.shape[2])
        grown = new.new_empty(new.shape[0], new.shape[1], size, new.shape[3])
        if buffer is not None:
            grown[:, :, : self.marks.length] = buffer[:, :, : self.marks.length]
        return grown

    def _room(self, end: int, before: int) -> int:
        """Tokens to allocate for `end` of them where there was room for `before`."""
        return max(end, self.capacity, 2 * before)
