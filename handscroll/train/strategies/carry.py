"""The carry: the data that passes between the chunks of a long step.

Keys and values (or recurrent states) pass forwards, and their gradients pass backwards. The model uses a carry as its
cache. In the first pass (`Collect`) each chunk stores its keys and values. The second pass (`Recompute`) goes from the
last chunk to the first: a chunk reads the keys and values of earlier chunks, adds its gradient to theirs, and adds the
gradient that later chunks stored to that of its own keys and values.

If tokens see later ones (`whole`), all chunks first store their keys and values (`Collect`). Then every chunk reads all
of them and adds a gradient to all of them (`Known`). Last, each chunk computes its own keys and values again and
backpropagates their gradient.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from handscroll.nn.keeper import Keeper
from handscroll.nn.marks import Marks
from handscroll.nn.recurrence import State
from handscroll.nn.span import Span
from handscroll.train.strategies.blocks import Blocks


class States:
    """Recurrent states before each chunk, by layer, and their gradients.

    A state is two vectors a row, so it always stays on the device. Backpropagation through time, chunk by chunk, is
    exact: the state before a chunk is a leaf, and its gradient becomes the gradient of the state after the previous
    chunk.
    """

    def __init__(self):
        self._before: dict[tuple[int, int], State] = {}
        self._slopes: dict[tuple[int, int], list[Tensor | None]] = {}

    def before(self, layer: int, chunk: int, tracked: bool = False) -> State | None:
        """The state before a chunk. If `tracked`, its tensors are leaves whose gradients are stored here."""
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
        """`out`, whose backward gives the state after the chunk the gradients that later chunks stored."""
        slopes = self._slopes.pop((layer, chunk + 1), None)
        return out if slopes is None else _Joined.apply(out, after.hidden, after.cell, slopes)

    def drop(self) -> None:
        self._before.clear()
        self._slopes.clear()


@dataclass(frozen=True)
class Reach:
    """Which tokens of a chunk later chunks see.

    Layer n of a stack sees `windows[n]` tokens. None, or an empty `windows`, means that it sees all of them. Chunk c of
    a row holds the tokens edges[c] .. edges[c + 1] - 1. This rank has the part `mine[c]` of them (first, last + 1).
    """

    windows: Sequence[int | None]
    edges: Sequence[int]
    mine: Sequence[tuple[int, int]]

    def window(self, layer: int) -> int | None:
        return self.windows[layer] if self.windows else None

    def kept(self, layer: int, chunk: int) -> int:
        """How many of this rank's last tokens in a chunk any later chunk sees."""
        (first, last), window = self.mine[chunk], self.window(layer)
        return last - first if window is None else max(0, last - max(first, self.edges[chunk + 1] - window + 1))

    def seen(self, layer: int, chunk: int) -> range:
        """The earlier chunks of which `chunk` sees at least one token."""
        window = self.window(layer)
        begin = 0 if window is None else self.edges[min(chunk, len(self.mine))] - window + 1
        return range(sum(end <= begin for end in self.edges[1 : chunk + 1]), chunk)


class Carry(Protocol):
    """Keys, values and their gradients by layer and chunk, as far as later chunks see them.

    For recurrent layers it holds their states instead.
    """

    states: States

    def put(self, layer: int, chunk: int, keys: Tensor, values: Tensor) -> None: ...

    def past(self, layer: int, chunk: int) -> list[Span]:
        """The spans before `chunk`; the number of chunks gives all spans.

        Their gradients are collected here, outside autograd.
        """
        ...

    def left(self, layer: int, chunk: int) -> tuple[Tensor, Tensor] | None:
        """The gradients that other chunks stored for this chunk's keys and values.

        They cover the chunk's last tokens, as far as any other chunk sees them.
        """
        ...

    def drop(self, chunk: int) -> None:
        """Free the data of this chunk and of all later ones."""
        ...


class HeldCarry:
    """A carry on the device.

    A full layer has one tensor of keys and one of values for the whole row, so its past is one span and needs no
    concatenation. A windowed layer keeps, for each chunk, the last tokens that later chunks see. Memory per kept token
    and layer: keys, values, and their gradients in float32.
    """

    def __init__(self, marks: list[Marks], like: Tensor, reach: Reach, whole: bool = False):
        """`marks`: one entry for each chunk, for its tokens on this rank. `like` (B, T) gives the rows and the device.

        `whole`: the keys and values of the last chunk are kept too. Under a causal mask no chunk reads them.
        """
        self.edges = [0, *accumulate(part.length for part in marks)]
        self._end = self.edges[-1] if whole else self.edges[-2]
        every = Marks.join(marks, like.shape[0], like.device)
        self._past = [every.part(0, end) for end in self.edges]
        self._reach, self._marks = reach, marks
        self.states = States()
        self._keys: dict[int, tuple[Tensor, Tensor]] = {}
        self._grads: dict[int, tuple[Tensor, Tensor]] = {}
        self._windowed: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}  # by layer and chunk
        self._slopes: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and gradients."""
        held = (self._keys, self._grads, self._windowed, self._slopes)
        return sum(x.numel() * x.element_size() for kept in held for pair in kept.values() for x in pair)

    def put(self, layer: int, chunk: int, keys: Tensor, values: Tensor) -> None:
        if self.edges[chunk] >= self._end:
            return
        if self._reach.window(layer) is not None:
            first = keys.shape[2] - self._reach.kept(layer, chunk)
            self._windowed[layer, chunk] = (keys[:, :, first:].clone(), values[:, :, first:].clone())
            return
        if layer not in self._keys:
            shape = (*keys.shape[:2], self._end, keys.shape[3])
            self._keys[layer] = (keys.new_empty(shape), keys.new_empty(shape))
        for held, new in zip(self._keys[layer], (keys, values), strict=True):
            held[:, :, self.edges[chunk] : self.edges[chunk + 1]] = new

    def past(self, layer: int, chunk: int) -> list[Span]:
        if self._reach.window(layer) is not None:
            return [self._tail(layer, n) for n in self._reach.seen(layer, chunk) if self._reach.kept(layer, n)]
        end = self.edges[chunk]
        if not end:
            return []
        keys, values = (held[:, :, :end] for held in self._keys[layer])

        def take(first: int, *changes: Tensor) -> None:
            if layer not in self._grads:
                self._grads[layer] = _slopes(self._keys[layer])
            _add(self._grads[layer], first, changes)

        return [Span(keys, values, self._past[chunk], accumulate=take)]

    def left(self, layer: int, chunk: int) -> tuple[Tensor, Tensor] | None:
        if self._reach.window(layer) is not None:
            return self._slopes.pop((layer, chunk), None)
        if layer not in self._grads or self.edges[chunk] >= self._end:
            return None
        here = slice(self.edges[chunk], self.edges[chunk + 1])
        keys, values = self._grads[layer]
        return keys[:, :, here], values[:, :, here]

    def drop(self, chunk: int) -> None:
        for held in (self._windowed, self._slopes):
            for key in [key for key in held if key[1] >= chunk]:
                del held[key]
        if not chunk:
            self._keys.clear()
            self._grads.clear()
            self.states.drop()

    def _tail(self, layer: int, chunk: int) -> Span:
        """The kept tokens of a chunk in a windowed layer."""
        held, place = self._windowed[layer, chunk], (layer, chunk)

        def take(first: int, *changes: Tensor) -> None:
            if place not in self._slopes:
                self._slopes[place] = _slopes(held)
            _add(self._slopes[place], first, changes)

        return Span(*held, tail(self._marks[chunk], held[0].shape[2]), accumulate=take)


def tail(marks: Marks, count: int) -> Marks:
    """The marks of the last `count` tokens. All layers get the same object, because kernels cache by its identity."""
    if count >= marks.length:  # marks must not hold themselves: a sharded model looks through all that a layer is given
        return marks
    if ("tail", count) not in marks.pieces:
        marks.pieces["tail", count] = marks.part(marks.length - count, marks.length)
    return marks.pieces["tail", count]


def _slopes(held: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Zeros for the gradients of keys and values."""
    wide = torch.float64 if held[0].dtype == torch.float64 else torch.float32
    return torch.zeros_like(held[0], dtype=wide), torch.zeros_like(held[1], dtype=wide)


def _add(held: tuple[Tensor, Tensor], first: int, changes: Sequence[Tensor]) -> None:
    for total, change in zip(held, changes, strict=True):
        total[:, :, first : first + change.shape[2]] += change


class BlockCarry:
    """A carry in host memory or on disk: one block per layer, chunk and kind, copied to the device one at a time."""

    def __init__(self, marks: list[Marks], blocks: Blocks, reach: Reach, whole: bool = False):
        self.marks, self.blocks, self.whole, self.states = marks, blocks, whole, States()
        self._reach = reach
        self._layers: set[int] = set()

    def put(self, layer: int, chunk: int, keys: Tensor, values: Tensor) -> None:
        count = self._reach.kept(layer, chunk)
        if (chunk == len(self.marks) - 1 and not self.whole) or not count:
            return
        self._layers.add(layer)
        first = keys.shape[2] - count
        self.blocks.write(("keys", layer, chunk), keys[:, :, first:])
        self.blocks.write(("values", layer, chunk), values[:, :, first:])

    def past(self, layer: int, chunk: int) -> list[Span]:
        kept = [(seen, self._reach.kept(layer, seen)) for seen in self._reach.seen(layer, chunk)]
        return [_BlockSpan(self.blocks, layer, seen, tail(self.marks[seen], count)) for seen, count in kept if count]

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
        return self  # it holds every row already

    def release(self) -> None:
        for kind in ("keys", "values"):
            self.blocks.release((kind, *self.place))  # type: ignore[attr-defined]

    def _accumulate(self, first: int, keys: Tensor, values: Tensor) -> None:
        for kind, change, like in (("key", keys, self.keys), ("value", values, self.values)):
            self.blocks.add((f"{kind} gradients", *self.place), first, change, like)  # type: ignore[attr-defined]


@dataclass(eq=False)
class Collect(Keeper):
    """The cache of the first pass: it stores the keys and values that a chunk appends."""

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


@dataclass(eq=False)
class Known(Keeper):
    """The cache of a pass over queries alone: it reads the keys and values of all `chunks` and adds none."""

    complete: ClassVar[bool] = True

    carry: Carry
    chunks: int

    def known(self, layer: int) -> list[Span]:
        return self.carry.past(layer, self.chunks)


@dataclass(eq=False)
class Recompute(Keeper):
    """The cache of the second pass: it sends gradients of the past to the carry and takes those of its own chunk."""

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


class _Returned(torch.autograd.Function):
    """The identity. Its backward adds the gradients that later chunks stored."""

    @staticmethod
    def forward(ctx: Any, keys: Tensor, values: Tensor, left: Callable[[], tuple[Tensor, Tensor] | None]) -> Any:
        ctx.left = left
        return keys.view_as(keys), values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        left = ctx.left()
        if left is None:
            return (*slopes, None)
        return (*(_plus(slope, more) for slope, more in zip(slopes, left, strict=True)), None)


def _plus(slope: Tensor, more: Tensor) -> Tensor:
    """The gradient of a chunk, with `more` added to its last tokens."""
    first = slope.shape[2] - more.shape[2]
    added = (slope[:, :, first:] + more).to(slope.dtype)
    return added if not first else torch.cat([slope[:, :, :first], added], dim=2)


class _Joined(torch.autograd.Function):
    """The identity on the outputs. Its backward gives the state after them the gradients that later chunks stored."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, hidden: Tensor, cell: Tensor, slopes: list[Tensor | None]) -> Tensor:
        ctx.slopes = slopes
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        return (slopes[0], *ctx.slopes, None)
