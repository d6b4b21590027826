"""`Cache`: the base of all policies. A cache is made for a model's layers; its policy says how full layers are kept.

The contract that a forward relies on is `nn/keeper.py: Keeper`. A cache adds the methods that generation needs: its
length, its bytes, cutting back, copies, branches. Layers that see a window are kept in the same way under every policy
(`rolling.py`). A policy is a subclass that keeps the other layers; its properties are attributes of that class.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, Self

import torch
from torch import Tensor

from handscroll.base.errors import ConfigError
from handscroll.base.workload import Footprint
from handscroll.cache.columns import PLAIN, Form
from handscroll.cache.rolling import Rolling, groups, refuse_rewind, slots
from handscroll.nn.keeper import Keeper, Room
from handscroll.nn.marks import Marks
from handscroll.nn.span import Span

REWIND = 64  # default number of tokens that a windowed layer can be cut back by; drafts guess seven


@dataclass(eq=False)
class Cache(Keeper):
    """The keys and values of `layers` layers, of which layer n sees the last `windows[n]` tokens (None: all of them).

    `capacity` (tokens) reserves the buffers at once; beyond it they grow by doubling. `past` are spans (1, K, S, E)
    per layer before all other tokens, `before` tokens in all. Every row reads them and none writes them (a saved
    reading, mapped from its file). Keys and values are kept in `dtype`; None: in the one in which they come. A windowed
    layer can be cut back by at least `rewind` tokens. `marks` are those of the full layers' own tokens.

    A policy implements `_append`, and as needed `_room_of`, `_commit`, `_trim`, `_copy`, `_nbytes` and `_footprint`.
    """

    policy: ClassVar[str] = ""  # the policy's name
    exact: ClassVar[bool] = False  # whether attention gives the results of the full cache
    saved: ClassVar[bool] = False  # whether a reading may be saved in it
    rounds: ClassVar[bool] = False  # whether it keeps every token, rounded
    evicts: ClassVar[bool] = False  # whether it keeps `budget` tokens of a full layer and forgets the others
    scored: ClassVar[bool] = False  # whether it needs the attention mass on keys, and so a single rotation
    rewinds: ClassVar[bool] = False  # whether a cache cut back or branched equals one that read the kept tokens only
    minimum: ClassVar[int] = 1  # the smallest budget, in tokens
    options: ClassVar[tuple[str, ...]] = ()  # the fields that a user may set
    form: ClassVar[Form] = PLAIN  # the form in which windowed layers are kept

    layers: int
    capacity: int = 0
    past: Sequence[Sequence[Span]] = ()
    windows: Sequence[int | None] = ()
    before: int = 0
    rewind: int = REWIND
    dtype: torch.dtype | None = None
    marks: Marks = field(init=False)
    _gone: int = field(init=False, default=0)  # tokens read so far, without those of the past
    _pending: Marks | None = field(init=False, default=None)  # the marks once the running forward is complete
    _rolling: dict[int, Rolling] = field(init=False)

    def __post_init__(self):
        assert not self.windows or len(self.windows) == self.layers, (self.windows, self.layers)
        self.marks = Marks.run(0, 0)
        self._rolling = groups(self.windows, self.rewind, self.capacity, self.form)

    @classmethod
    def takes(cls, head_size: int) -> bool:
        """Whether it can keep heads of `head_size` numbers."""
        return True

    # Methods of a policy.

    def _append(self, layer: int, keys: Tensor, values: Tensor, marks: Marks) -> list[Span]:
        """The spans that queries read in a full layer, without the past, with the new tokens last."""
        raise NotImplementedError

    def _room_of(self, layer: int, like: Tensor) -> Room:
        """Room in a full layer for the tokens that are pending, shaped and in the dtype of `like`; if `fillable`."""
        raise NotImplementedError

    def _commit(self) -> None:
        """End the forward in the full layers."""

    def _trim(self, length: int) -> None:
        """Keep only the first `length` of the cache's own tokens."""

    def _copy(self, other: Self, rows: Tensor | None) -> None:
        """Give the empty cache `other` a copy of the full layers, for all rows or for the given ones."""
        raise NotImplementedError

    def _nbytes(self) -> int:
        """Bytes of the full layers' buffers."""
        return 0

    def _footprint(self, kv_heads: int, head_size: int, itemsize: int) -> Footprint:
        """The footprint of the full layers of one row."""
        return Footprint(each=2 * len(self.full) * kv_heads * head_size * itemsize)

    # Public methods.

    @property
    def length(self) -> int:
        """Tokens read so far per row, with padding and past."""
        return self.before + self._gone

    @property
    def own(self) -> int:
        """Tokens read so far per row, without the past."""
        return self._gone

    @property
    def least(self) -> int:
        """The smallest length to which the windowed layers can be cut back."""
        return self.before + max((group.least for group in self._groups), default=0)

    @property
    def nbytes(self) -> int:
        """Bytes of the allocated buffers, without the past, which belongs to others."""
        return self._nbytes() + sum(group.nbytes for group in self._groups)

    def footprint(self, kv_heads: int, head_size: int, itemsize: int, device: str = "cpu") -> Footprint:
        """Bytes of a cache like this for one row on a "cpu" or "cuda" `device`, without its past.

        Numbers have `itemsize` bytes.
        """
        made = self._footprint(kv_heads, head_size, itemsize)
        each = kv_heads * self.form.head_bytes(head_size, itemsize)
        rolling = tuple((len(g.layers) * each, slots(g.window, g.rewind)) for g in self._groups)
        return made.model_copy(update={"rolling": rolling})

    def reserve(self, length: int) -> None:
        """Expect `length` tokens in all: buffers that become too small grow to that, and not by doubling."""
        self.capacity = max(self.capacity, length - self.before)

    def expect(self, marks: Marks) -> None:
        """Announce the tokens that the next forwards will read, for caches that act at the end of a prompt."""

    def report(self) -> str:
        """A sentence for the user at the end of a generation; empty for an exact cache."""
        return ""

    def append(self, layer: int, keys: Tensor, values: Tensor, marks: Marks) -> list[Span]:
        past = [span.rows(keys.shape[0]) for span in self.past[layer]] if self.past else []
        if self._pending is None or layer == 0:  # drops the tokens of an aborted forward
            self._pending = self._joined(marks, keys)
        keys, values = (x if self.dtype is None else x.to(self.dtype) for x in (keys, values))
        group = self._rolling.get(layer)
        if group is not None:
            return [*past, *group.append(layer, self.form.made(keys, values), marks)]
        return [*past, *self._append(layer, keys, values, marks)]

    def fits(self, count: int) -> bool:
        return all(group.fits(count) for group in self._groups)

    def room(self, like: Tensor, marks: Marks) -> list[Room]:
        like = like if self.dtype is None else like.to(self.dtype)
        rooms: dict[int, Room] = {}
        for group in self._groups:
            rooms |= group.room(self.form.made(like, like), marks)
        self._pending = self._joined(marks, like)
        rooms |= {layer: self._room_of(layer, like) for layer in self.full}
        return [rooms[layer] for layer in range(self.layers)]

    def commit(self) -> None:
        if self._pending is None:
            return
        self._commit()
        self._gone += self._pending.length - self.marks.length
        self.marks, self._pending = self._pending, None
        for group in self._groups:
            group.commit()

    def trim(self, length: int) -> None:
        """Forget every token after the first `length`.

        Raises:
            ValueError: the cache has fewer tokens, or they are part of the past.
            ConfigError: the windowed layers have dropped tokens that they would need then.
        """
        if not self.before <= length <= self.length:
            first = f", of which {self.before} are only read" if self.before else ""
            raise ValueError(f"cannot trim a cache of {self.length} tokens{first} to {length}")
        if length < self.length:
            refuse_rewind(self.length, length, self.least)
        count = self.length - length
        self._trim(length - self.before)
        for group in self._groups:
            group.trim(count)
        self.marks, self._pending, self._gone = self.marks.part(0, self.marks.length - count), None, self._gone - count

    def clone(self) -> Self:
        """An independent copy."""
        return self._copied(None)

    def take_rows(self, rows: Tensor) -> Self:
        """A copy that holds the given batch rows, in their order."""
        return self._copied(rows)

    def branch(self, capacity: int = 0) -> Self:
        """A cache of any number of rows that continues the one row of this cache, which becomes its `past` without a
        copy.

        This cache must not be written while a branch is in use.
        """
        raise ConfigError(
            f"a cache of policy '{self.policy}' cannot be shared: take a policy that `rewinds`, such as the default one"
        )

    @cached_property
    def full(self) -> tuple[int, ...]:
        """The numbers of the layers that see all tokens."""
        return tuple(layer for layer in range(self.layers) if layer not in self._rolling)

    @cached_property
    def _groups(self) -> list[Rolling]:
        return list({group.window: group for group in self._rolling.values()}.values())

    def _joined(self, marks: Marks, like: Tensor) -> Marks:
        return self.marks.joined(marks, like.shape[0], like.device)

    def _copied(self, rows: Tensor | None) -> Self:
        other = replace(self)
        other.marks = self.marks if rows is None else self.marks.take_rows(rows)
        other._gone = self._gone
        copies = {group.window: group.copy(rows) for group in self._groups}
        other._rolling = {layer: copies[group.window] for layer, group in self._rolling.items()}
        self._copy(other, rows)
        return other
