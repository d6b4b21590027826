"""The layers of a model that see a window: they keep the tokens of the window and a few more for texts of any length.

A query sees itself and the window - 1 tokens before it, so a layer needs only the last window - 1 tokens. It keeps
`rewind` more, so that a cache can be cut back by that many (wrongly guessed tokens). The tokens lie in order in buffers
with some spare slots. When these are full, the tokens that stay move to the front. A forward of many tokens reads the
tokens kept before it and its own. So the text may be read in chunks of any size, and the results are those of a cache
that keeps all tokens.

Rows of different lengths each keep their own last tokens: padding is dropped first, and masks read marks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from handscroll.base.errors import ConfigError
from handscroll.cache.columns import PLAIN, Columns, Form, copied, gathered, nbytes, part, put, roomy
from handscroll.nn.keeper import Room
from handscroll.nn.marks import Marks
from handscroll.nn.span import Span

FEW = 8  # tokens for which there are free slots after every forward (a new token, or a draft)


def slots(window: int, rewind: int) -> int:
    """Slots of a layer's buffers; an eighth of them is spare, so that a token is moved eight times at most."""
    kept = window - 1 + rewind
    return kept + max(4 * FEW, kept // 8)


@dataclass(eq=False)
class Rolling:
    """Keys and values of the `layers` (their numbers, in order) with the window `window`.

    `marks` are those of the kept tokens; `gone` counts all tokens read so far, padding included.
    """

    window: int
    layers: Sequence[int]
    rewind: int
    capacity: int = 0
    form: Form = PLAIN
    marks: Marks = field(default_factory=lambda: Marks.run(0, 0))
    gone: int = 0
    columns: dict[int, Columns] = field(default_factory=dict)
    _pending: Marks | None = None
    _next: dict[int, Columns] = field(default_factory=dict)  # of a forward for which there are too few slots
    _stay: Tensor | None = None  # slots (B, kept) of the tokens of such a forward that stay; None: the last ones

    @property
    def kept(self) -> int:
        """The most tokens that stay."""
        return self.window - 1 + self.rewind

    @property
    def slots(self) -> int:
        return slots(self.window, self.rewind)

    @property
    def nbytes(self) -> int:
        return sum(nbytes(columns) for columns in self.columns.values())

    @property
    def least(self) -> int:
        """The smallest number of tokens to which the layers can be cut back."""
        dropped = self.gone - self.marks.length
        if not dropped:
            return 0
        return min(self.gone, dropped + self.window - 1) if self.marks.plain else self.gone

    def append(self, layer: int, new: Columns, marks: Marks) -> list[Span]:
        start, count = self.marks.length, new[0].shape[2]
        if layer == self.layers[0]:
            self._begin(marks, new[0])
        assert self._pending is not None
        if start + count <= self.slots:
            self.columns[layer] = put(self.columns.get(layer), new, start, self._room)
            return [self.form.span(part(self.columns[layer], 0, start + count), self._pending)]
        # The tokens that stay go into new buffers, so that an aborted forward changes nothing.
        self._next[layer] = self._after(self.columns.get(layer), new)
        spans = [self.form.span(new, marks)]
        return [self.form.span(part(self.columns[layer], 0, start), self.marks), *spans] if start else spans

    def fits(self, count: int) -> bool:
        """Whether there are free slots for `count` tokens."""
        return self.marks.length + count <= self.slots

    def room(self, like: Columns, marks: Marks) -> dict[int, Room]:
        """Buffers with free slots for tokens with these marks."""
        start, count = self.marks.length, marks.length
        assert self.fits(count), (start, count, self.slots)
        self._begin(marks, like[0])
        for layer in self.layers:
            held = self.columns.get(layer)
            if held is None or held[0].shape[2] < start + count:
                had = 0 if held is None else held[0].shape[2]
                self.columns[layer] = roomy(held, like, start, self._room(start + count, had))
        return {layer: Room(self.columns[layer], start) for layer in self.layers}

    def commit(self) -> None:
        if self._pending is None:
            return
        self.gone += self._pending.length - self.marks.length
        self.marks, self._pending = self._pending, None
        if self._next:
            self.columns, self._next = self._next, {}
            self.marks = self._left(self.marks, self._stay)
        elif self.marks.length + FEW > self.slots:
            self._move()

    def trim(self, count: int) -> None:
        """Forget the last `count` tokens; `least` limits their number."""
        self._pending, self._next = None, {}
        if count:
            self.marks, self.gone = self.marks.part(0, self.marks.length - count), self.gone - count

    def copy(self, rows: Tensor | None) -> "Rolling":
        """A copy, for all rows or for the given ones."""
        end = self.marks.length
        made = Rolling(self.window, self.layers, self.rewind, self.capacity, self.form, gone=self.gone)
        made.marks = self.marks if rows is None else self.marks.take_rows(rows)
        made.columns = {layer: copied(held, 0, end, rows) for layer, held in self.columns.items()}
        return made

    def held(self, layer: int) -> Columns:
        """The columns of a layer without the spare slots."""
        return part(self.columns[layer], 0, self.marks.length)

    def _begin(self, marks: Marks, like: Tensor) -> None:
        """Begin a forward of tokens with these marks, and drop those of an aborted forward."""
        self._pending = self.marks.joined(marks, like.shape[0], like.device)
        self._next, self._stay = {}, None
        if self._pending.length > self.slots and not self._pending.plain:
            self._stay = _last(self._pending, self.kept, like.shape[0])

    def _room(self, needed: int, had: int) -> int:
        """Slots to allocate: no more than a short request needs, and no more than a window needs."""
        return max(needed, min(self.slots, max(self.capacity, 2 * had)))

    def _after(self, held: Columns | None, new: Columns) -> Columns:
        """Buffers with the held tokens that stay and the new ones after them."""
        start, count = self.marks.length, new[0].shape[2]
        before = None if held is None else part(held, 0, start)
        if self._stay is not None:
            both = new if before is None else tuple(torch.cat(x, dim=2) for x in zip(before, new, strict=True))
            left = gathered(both, self._stay)
        else:
            left = part(new, max(0, count - self.kept), count)
            if before is not None and count < self.kept:
                tail = part(before, start - (self.kept - count), start)
                left = tuple(torch.cat(x, dim=2) for x in zip(tail, new, strict=True))
        return put(None, left, 0, lambda *_: self.slots)

    def _move(self) -> None:
        """Free the slots of tokens that no later query sees, within the same buffers."""
        length = self.marks.length
        stay = None if self.marks.plain else _last(self.marks, self.kept, self._rows)
        for held in self.columns.values():
            left = copied(held, length - self.kept, length) if stay is None else gathered(held, stay)
            for buffer, x in zip(held, left, strict=True):
                buffer[:, :, : self.kept] = x
        self.marks = self._left(self.marks, stay)

    def _left(self, marks: Marks, stay: Tensor | None) -> Marks:
        if stay is None:
            return marks.part(max(0, marks.length - self.kept), marks.length)
        return Marks.of(*(x.expand(stay.shape[0], -1).gather(1, stay) for x in marks.tensors(stay.device)))

    @property
    def _rows(self) -> int:
        return next(iter(self.columns.values()))[0].shape[0]


def groups(windows: Sequence[int | None], rewind: int, capacity: int, form: Form) -> dict[int, Rolling]:
    """The windowed layers by number; those of the same window share a `Rolling`, since they keep the same tokens."""
    by_size: dict[int, list[int]] = {}
    for layer, window in enumerate(windows):
        if window is not None:
            by_size.setdefault(window, []).append(layer)
    found = {size: Rolling(size, layers, rewind, capacity, form) for size, layers in by_size.items()}
    return {layer: found[window] for layer, window in enumerate(windows) if window is not None}


def refuse_rewind(length: int, wanted: int, least: int) -> None:
    """Raise the error for a cache that cannot be cut back so far.

    Raises:
        ConfigError: a cache of `length` tokens cannot be cut back to `wanted`.
    """
    if wanted < least:
        raise ConfigError(
            f"a cache of {length} tokens cannot be cut back to {wanted}: its windowed layers have dropped the tokens "
            f"that come before token {least}. Make it with a larger rewind (now {length - least} tokens), or read the "
            "text again"
        )


def _last(marks: Marks, count: int, rows: int) -> Tensor:
    """Slots (rows, count), in order, of the last tokens of each row; they include padding only if a row has fewer."""
    assert marks.index is not None
    return marks.index.expand(rows, -1).topk(count, dim=1).indices.sort(dim=1).values
