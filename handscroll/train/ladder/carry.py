"""What passes between the chunks of a long step: keys and values, or states, forwards, their gradients backwards.

To the model a carry is its cache. In the first pass (`collect`) chunks leave their keys and values; in the second
(`recompute`, from the last chunk to the first) a chunk reads those of earlier ones, adds its gradient to them, and
adds to its own keys and values what later chunks left there.

Where tokens see later ones (`whole`), all chunks leave keys and values first (`Collect`); then every chunk reads all of
them and leaves gradients on all of them (`Known`); then each chunk takes the gradient of its own (`Made`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import Tensor

from handscroll.nn.marks import Marks
from handscroll.nn.recurrence import State
from handscroll.nn.span import Span
from handscroll.train.ladder.blocks import Blocks


class States:
    """Recurrent states before each chunk, by layer, and their gradients: two vectors a row, so always on the device.

    Back through time, chunk by chunk, is exact: the state before a chunk is a leaf whose gradient becomes that of the
    state behind the chunk before.
    """

    def __init__(self):
        self._before: dict[tuple[int, int], State] = {}
        self._slopes: dict[tuple[int, int], list[Tensor | None]] = {}

    def before(self, layer: int, chunk: int, tracked: bool = False) -> State | None:
        """The state before a chunk; `tracked`: as leaves whose gradients are taken up here."""
        state = self._before.get((layer, chunk))
        if state is None or not tracked:
            return state
        leaves = [tensor.detach().requires_grad_() for tensor in (state.hidden, state.cell)]
        slopes = self._slopes[layer, chunk] = [None, None]

        def take(at: int) -> Callable[[Tensor], None]:
            def put(slope: Tensor) -> None:
                slopes[at] = slope

            return put

        for at, leaf in enumerate(leaves):
            leaf.register_hook(take(at))
        return State(leaves[0], leaves[1], state.segment)

    def put(self, layer: int, chunk: int, state: State) -> None:
        self._before[layer, chunk] = state.each(lambda tensor: tensor.detach())

    def joined(self, layer: int, chunk: int, out: Tensor, after: State) -> Tensor:
        """`out`, through whose backward the state behind the chunk gets what later chunks left."""
        slopes = self._slopes.pop((layer, chunk + 1), None)
        return out if slopes is None else _Joined.apply(out, after.hidden, after.cell, slopes)

    def drop(self) -> None:
        self._before.clear()
        self._slopes.clear()


class Carry(Protocol):
    """Keys, values and their gradients by layer and chunk; of recurrent layers their states."""

    states: States

    def put(self, layer: int, chunk: int, keys: Tensor, values: Tensor) -> None: ...

    def past(self, layer: int, chunk: int) -> list[Span]:
        """The spans before `chunk` (the number of chunks: all of them); gradients of them are taken up here, outside
        autograd."""
        ...

    def left(self, layer: int, chunk: int) -> tuple[Tensor, Tensor] | None:
        """What other chunks left as gradient of this chunk's keys and values."""
        ...

    def drop(self, chunk: int) -> None:
        """Nobody will ask for this chunk, or a later one, any more."""
        ...


class HeldCarry:
    """On the device: per layer one run of keys and values, so that the past is one span and no join is needed.

    Memory per token and layer: keys, values, and their gradients in float32.
    """

    def __init__(self, marks: list[Marks], like: Tensor, whole: bool = False):
        """`marks` of each chunk's tokens on this rank; `like` (B, T) tells rows and device.

        `whole`: the last chunk's keys and values are kept too; otherwise they are never anybody's past.
        """
        self.edges = [0, *accumulate(part.length for part in marks)]
        self._end = self.edges[-1] if whole else self.edges[-2]
        every = Marks.join(marks, like.shape[0], like.device)
        self._past = [every.part(0, end) for end in self.edges]
        self.states = States()
        self._keys: dict[int, tuple[Tensor, Tensor]] = {}
        self._grads: dict[int, tuple[Tensor, Tensor]] = {}

    def put(self, layer: int, chunk: int, keys: Tensor, values: Tensor) -> None:
        if self.edges[chunk] >= self._end:
            return
        if layer not in self._keys:
            shape = (*keys.shape[:2], self._end, keys.shape[3])
            self._keys[layer] = (keys.new_empty(shape), keys.new_empty(shape))
        for held, new in zip(self._keys[layer], (keys, values), strict=True):
            held[:, :, self.edges[chunk] : self.edges[chunk + 1]] = new

    def past(self, layer: int, chunk: int) -> list[Span]:
        end = self.edges[chunk]
        if not end:
            return []
        keys, values = (held[:, :, :end] for held in self._keys[layer])

        def take(first: int, *changes: Tensor) -> None:
            for held, change in zip(self._gradients(layer), changes, strict=True):
                held[:, :, first : first + change.shape[2]] += change

        return [Span(keys, values, self._past[chunk], accumulate=take)]

    def left(self, layer: int, chunk: int) -> tuple[Tensor, Tensor] | None:
        if layer not in self._grads or self.edges[chunk] >= self._end:
            return None
        here = slice(self.edges[chunk], self.edges[chunk + 1])
        keys, values = self._grads[layer]
        return keys[:, :, here], values[:, :, here]

    def drop(self, chunk: int) -> None:
        if not chunk:
            self._keys.clear()
            self._grads.clear()
            self.states.drop()

    def _gradients(self, layer: int) -> tuple[Tensor, Tensor]:
        if layer not in self._grads:
            keys, _ = self._keys[layer]
            wide = torch.float64 if keys.dtype == torch.float64 else torch.float32
            self._grads[layer] = (torch.zeros_like(keys, dtype=wide), torch.zeros_like(keys, dtype=wide))
        return self._grads[layer]


class BlockCarry:
    """In host memory or on disk: one block per layer, chunk and kind, brought to the device one at a time."""

    def __init__(self, marks: list[Marks], blocks: Blocks, whole: bool = False):
        self.marks, self.blocks, self.whole, self.states = marks, blocks, whole, States()
        self._layers: set[int] = set()

    def put(self, layer: int, chunk: int, keys: Tensor, values: Tensor) -> None:
        if chunk == len(self.marks) - 1 and not self.whole:
            return
        self._layers.add(layer)
        self.blocks.write(("keys", layer, chunk), keys)
        self.blocks.write(("values", layer, chunk), values)

    def past(self, layer: int, chunk: int) -> list[Span]:
        return [_BlockSpan(self.blocks, layer, before, self.marks[before]) for before in range(chunk)]

    def left(self, layer: int, chunk: int) -> tuple[Tensor, Tensor] | None:
        names = [("key gradients", layer, chunk), ("value gradients", layer, chunk)]
        if names[0] not in self.blocks:
            return None
        keys, values = (self.blocks.read(name).clone() for name in names)
        for name in names:
            self.blocks.discard(name)
        return keys, values

    def drop(self, chunk: int) -> None:
        if not chunk:
            self.states.drop()
        for later in range(chunk, len(self.marks)):
            for layer in self._layers:
                for kind in ("keys", "values", "key gradients", "value gradients"):
                    self.blocks.discard((kind, layer, later))


class _BlockSpan(Span):
    """A span whose tensors are fetched while a kernel reads them."""

    def __init__(self, blocks: Blocks, layer: int, chunk: int, marks: Marks):
        fields = {"blocks": blocks, "place": (layer, chunk), "marks": marks, "rotated": True}
        for name, value in fields.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "accumulate", self._accumulate)

    @property
    def keys(self) -> Tensor:  # type: ignore[override]
        return self.blocks.read(("keys", *self.place))  # type: ignore[attr-defined]

    @property
    def values(self) -> Tensor:  # type: ignore[override]
        return self.blocks.read(("values", *self.place))  # type: ignore[attr-defined]

    def rows(self, batch: int) -> Span:
        return self  # of every row already

    def release(self) -> None:
        for kind in ("keys", "values"):
            self.blocks.release((kind, *self.place))  # type: ignore[attr-defined]

    def _accumulate(self, first: int, keys: Tensor, values: Tensor) -> None:
        for kind, change, like in (("key", keys, self.keys), ("value", values, self.values)):
            self.blocks.add((f"{kind} gradients", *self.place), first, change, like)  # type: ignore[attr-defined]


@dataclass(eq=False)
class Collect:
    """The cache of the first pass: keeps what a chunk appends."""

    carry: Carry
    chunk: int

    def append(self, layer: int, keys: Tensor, values: Tensor, marks: Marks) -> list[Span]:
        self.carry.put(layer, self.chunk, keys, values)
        return [*self.carry.past(layer, self.chunk), Span(keys, values, marks)]

    def state(self, layer: int) -> State | None:
        return self.carry.states.before(layer, self.chunk)

    def keep(self, layer: int, out: Tensor, after: State) -> Tensor:
        self.carry.states.put(layer, self.chunk + 1, after)
        return out

    def commit(self) -> None:
        """Nothing is pending: chunks are complete by construction."""


@dataclass(eq=False)
class Known:
    """The cache of a pass over queries alone: reads the keys and values of all `chunks`, and makes none."""

    carry: Carry
    chunks: int

    def known(self, layer: int) -> list[Span]:
        return self.carry.past(layer, self.chunks)

    def append(self, layer: int, keys: Tensor, values: Tensor, marks: Marks) -> list[Span]:
        raise AssertionError("the keys and values of this layer are known")

    def commit(self) -> None:
        """Nothing is pending."""


class Made:
    """The cache of a pass over keys and values alone: gives those of one chunk back, for their gradient.

    As bare tensors, not spans, so that sharded layers see that a gradient will come through them.
    """

    def append(self, layer: int, keys: Tensor, values: Tensor, marks: Marks) -> Any:
        return [keys, values]

    def commit(self) -> None:
        """Nothing is pending."""


@dataclass(eq=False)
class Recompute:
    """The cache of the second pass: gradients of the past go to the carry, and come back for this chunk."""

    carry: Carry
    chunk: int

    def append(self, layer: int, keys: Tensor, values: Tensor, marks: Marks) -> list[Span]:
        def left() -> tuple[Tensor, Tensor] | None:
            return self.carry.left(layer, self.chunk)

        keys, values = _Returned.apply(keys, values, left)
        return [*self.carry.past(layer, self.chunk), Span(keys, values, marks)]

    def state(self, layer: int) -> State | None:
        return self.carry.states.before(layer, self.chunk, tracked=True)

    def keep(self, layer: int, out: Tensor, after: State) -> Tensor:
        return self.carry.states.joined(layer, self.chunk, out, after)

    def commit(self) -> None:
        """Nothing is pending."""


class _Returned(torch.autograd.Function):
    """Identity; its backward adds the gradients that later chunks left."""

    @staticmethod
    def forward(ctx: Any, keys: Tensor, values: Tensor, left: Callable[[], tuple[Tensor, Tensor] | None]) -> Any:
        ctx.left = left
        return keys.view_as(keys), values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        left = ctx.left()
        if left is None:
            return (*slopes, None)
        return (*((slope + more).to(slope.dtype) for slope, more in zip(slopes, left, strict=True)), None)


class _Joined(torch.autograd.Function):
    """Identity of the outputs; its backward gives the state behind them the gradients that later chunks left."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, hidden: Tensor, cell: Tensor, slopes: list[Tensor | None]) -> Tensor:
        ctx.slopes = slopes
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        return (slopes[0], *ctx.slopes, None)
