"""The contract of whatever keeps the keys and values of a forward: what goes in, and what attention then reads."""

from typing import ClassVar, NamedTuple

from torch import Tensor

from handscroll.base.errors import ConfigError
from handscroll.kernels.gpu.slots import Slots
from handscroll.nn.marks import Marks
from handscroll.nn.mask import Mask
from handscroll.nn.pages import Pages
from handscroll.nn.recurrence import State
from handscroll.nn.span import Span

Reads = list[Span] | Pages | Slots  # what attention takes: spans, or the pages or slots of a whole batch


class Room(NamedTuple):
    """The buffers of a layer that a compiled pass fills itself: the next token goes into slot `end`.

    `columns` are keys and values (B, K, slots, E), then their scales (B, K, slots) where they are rounded. Slots 0 ..
    end - 1 hold the newest tokens before it, in order; a windowed layer may have let older ones go.
    """

    columns: tuple[Tensor, ...]
    end: int


class Keeper:
    """The contract of whatever keeps the keys and values of a forward: a cache, an engine's pool, the carry of a long
    training step.

    Keys and values go in by layer, and the spans that the new queries may read come out. A forward calls `append` once
    a layer, from the first to the last, and `commit` once at its end; one that was given up changes nothing. What not
    every keeper can do is declared here, with a default.
    """

    selects: ClassVar[bool] = False  # `select` is to be asked which of the spans the queries read
    complete: ClassVar[bool] = False  # all keys and values are there: `known` gives them, and nothing is appended
    fillable: ClassVar[bool] = False  # `room` gives buffers that a compiled pass may fill
    recordable: ClassVar[bool] = False  # a CUDA graph may be recorded over these buffers

    def append(self, layer: int, keys: Tensor, values: Tensor, marks: Marks) -> Reads:
        """Keep (B, K, T, E) keys and values of one layer; returns what the new queries read, the new tokens last."""
        raise NotImplementedError

    def commit(self) -> None:
        """The forward is complete: what it appended is kept."""

    def select(self, layer: int, q: Tensor, spans: list[Span], mask: Mask, marks: Marks, scale: float) -> list[Span]:
        """Of the spans that `append` returned, those that queries (B, H, T, E) read."""
        return spans

    def known(self, layer: int) -> list[Span]:
        """The spans of a layer whose keys and values are all there."""
        raise NotImplementedError

    def fits(self, count: int) -> bool:
        """Whether there is `room` for so many tokens: a windowed layer has few slots to spare."""
        return False

    def room(self, like: Tensor, marks: Marks) -> list[Room]:
        """Room in every layer for tokens with these marks, shaped (B, K, any, E) and of the dtype of `like`; `commit`
        keeps what the caller has filled in."""
        raise NotImplementedError

    def state(self, layer: int) -> State | None:
        """The state of a recurrent layer before the tokens of this forward; None at the beginning."""
        raise ConfigError(
            "this cache keeps keys and values, and the model's layers keep a state: take the cache that "
            "model.new_cache() makes"
        )

    def keep(self, layer: int, out: Tensor, after: State) -> Tensor:
        """Keep the state behind them; returns the layer's outputs (B, T, D), through which gradients come back."""
        raise NotImplementedError
