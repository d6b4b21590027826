"""`Cache`: what the policies share. A cache is made from a model's layers, and a policy says how full ones are kept.

The contract that a forward relies on is `nn/keeper.py: Keeper`. A cache adds what generation asks: how long it is,
how many bytes it takes, cutting back, copies, branches. The layers that see a window are kept in the same way under
every policy (`rolling.py`); a policy is a subclass that keeps the other layers, and its properties are attributes of
that class.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, Self

from torch import Tensor

from handscroll.base.errors import ConfigError
from handscroll.base.workload import Footprint
from handscroll.cache.columns import PLAIN, Form
from handscroll.cache.rolling import Rolling, groups, refuse_rewind, slots
from handscroll.nn.keeper import Keeper
from handscroll.nn.marks import Marks
from handscroll.nn.span import Span

REWIND = 64  # tokens that a windowed layer can be cut back by, where nobody says: drafts guess seven


@dataclass(eq=False)
class Cache(Keeper):
    """The keys and values of `layers` layers, of which layer n sees the last `windows[n]` tokens (None: all of them).

    `capacity` (tokens) reserves the buffers at once instead of doubling. `past` are spans (1, K, S, E) per layer that
    come before all else, `before` tokens in all, and are only read, by every row (a saved reading, mapped from its
    file). A windowed layer can be cut back by at least `rewind` tokens. `marks` are those of the full layers' own
    tokens.

    A policy writes `_append`, and what it needs of `_commit`, `_trim`, `_copy`, `_nbytes` and `_footprint`.
    """

    policy: ClassVar[str] = ""  # its name
    exact: ClassVar[bool] = False  # attention gives the model's own results
    saved: ClassVar[bool] = False  # a reading may be saved in it
    rounds: ClassVar[bool] = False  # keeps every token, rounded
    evicts: ClassVar[bool] = False  # keeps `budget` tokens of a full layer and forgets the others
    scored: ClassVar[bool] = False  # asks for the attention on keys, which needs one rotation
    rewinds: ClassVar[bool] = False  # `trim` and `branch` leave what the kept tokens alone would have left
    minimum: ClassVar[int] = 1  # tokens of the least budget
    options: ClassVar[tuple[str, ...]] = ()  # the fields that a user may set
    form: ClassVar[Form] = PLAIN  # what windowed layers are kept in

    layers: int
    capacity: int = 0
    past: Sequence[Sequence[Span]] = ()
    windows: Sequence[int | None] = ()
    before: int = 0
    rewind: int = REWIND
    marks: Marks = field(init=False)
    _gone: int = field(init=False, default=0)  # tokens gone by, those of the past excepted
    _pending: Marks | None = field(init=False, default=None)  # the marks once the forward that runs is complete
    _rolling: dict[int, Rolling] = field(init=False)

    def __post_init__(self):
        assert not self.windows or len(self.windows) == self.layers, (self.windows, self.layers)
        self.marks = Marks.run(0, 0)
        self._rolling = groups(self.windows, self.rewind, self.capacity, self.form)

    @classmethod
    def takes(cls, head_size: int) -> bool:
        """Whether heads of so many numbers can be kept."""
        return True

    # What a policy says.

    def _append(self, layer: int, keys: Tensor, values: Tensor, marks: Marks) -> list[Span]:
        """What queries read of a full layer, the past excepted, with the new tokens last."""
        raise NotImplementedError

    def _commit(self) -> None:
        """The forward is complete."""

    def _trim(self, length: int) -> None:
        """Only the first `length` of the cache's own tokens are left."""

    def _copy(self, other: Self, rows: Tensor | None) -> None:
        """Give `other`, which is empty, what full layers hold, of all rows or of the given ones."""
        raise NotImplementedError

    def _nbytes(self) -> int:
        """Bytes of the full layers' buffers."""
        return 0

    def _footprint(self, kv_heads: int, head_size: int, itemsize: int) -> Footprint:
        """Of the full layers of one row."""
        return Footprint(each=2 * len(self.full) * kv_heads * head_size * itemsize)

    # What everybody may ask.

    @property
    def length(self) -> int:
        """Tokens gone by per row, padding and past included."""
        return self.before + self._gone

    @property
    def own(self) -> int:
        """Tokens gone by per row since the past."""
        return self._gone

    @property
    def least(self) -> int:
        """The length to which the windowed layers can be cut back."""
        return self.before + max((group.least for group in self._groups), default=0)

    @property
    def nbytes(self) -> int:
        """Bytes of the allocated buffers; the past is not its own."""
        return self._nbytes() + sum(group.nbytes for group in self._groups)

    def footprint(self, kv_heads: int, head_size: int, itemsize: int) -> Footprint:
        """Bytes of a cache like this of one row, its past excepted, where numbers come in `itemsize` bytes."""
        made = self._footprint(kv_heads, head_size, itemsize)
        each = kv_heads * self.form.head_bytes(head_size, itemsize)
        rolling = tuple((len(g.layers) * each, slots(g.window, g.rewind)) for g in self._groups)
        return made.model_copy(update={"rolling": rolling})

    def expect(self, marks: Marks) -> None:
        """Tokens with these marks are about to be read, in one forward or several: for caches that wait for the end."""

    def report(self) -> str:
        """What there is to say at the end of a generation; nothing of an exact cache."""
        return ""

    def append(self, layer: int, keys: Tensor, values: Tensor, marks: Marks) -> list[Span]:
        past = [span.rows(keys.shape[0]) for span in self.past[layer]] if self.past else []
        if self._pending is None or layer == 0:  # of an aborted forward nothing is left
            self._pending = self._joined(marks, keys)
        group = self._rolling.get(layer)
        if group is not None:
            return [*past, *group.append(layer, self.form.made(keys, values), marks)]
        return [*past, *self._append(layer, keys, values, marks)]

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
            ValueError: there are not as many, or they are part of the past.
            ConfigError: the windowed layers have let go of what comes before.
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
        """A cache of any number of rows that goes on after the one row of this, which becomes its `past`, uncopied.

        This cache must not be written to any more while a branch is in use.
        """
        raise ConfigError(f"a cache of policy '{self.policy}' cannot be shared: take 'full' or 'int8'")

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
