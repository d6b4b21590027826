"""The contract of caches and other keepers of keys and values: what they take, and what attention reads from them."""

from typing import ClassVar, NamedTuple

from torch import Tensor

from handscroll.base.errors import ConfigError
from handscroll.kernels.gpu.slots import Slots
from handscroll.nn.marks import Marks
from handscroll.nn.mask import Mask
from handscroll.nn.pages import Pages
from handscroll.nn.recurrence import State
from handscroll.nn.span import Span

Reads = list[Span] | Pages | Slots  # the input of attention: spans, or the pages or slots of a whole batch


class Room(NamedTuple):
    """The buffers of a layer that a compiled pass fills itself: the next token goes into slot `end`.

    `columns` are keys and values (B, K, slots, E); rounded ones are followed by their scales (B, K, slots). Slots 0 ..
    end - 1 hold the newest tokens before it, in order. Older ones are in the spans `before`, or a windowed layer has
    dropped them. The spans are the same objects as long as neither they nor their contents change.
    """

    columns: tuple[Tensor, ...]
    end: int
    before: tuple[Span, ...] = ()


class Keeper:
    """The contract of all that keep the keys and values of a forward: a cache, an engine's pool, or the carry of a long
    training step.

    Each layer puts its keys and values in, and gets the spans that the new queries may read. A forward calls `append`
    once per layer, from the first to the last, and `commit` once at its end. A forward that stops before `commit`
    changes nothing. Abilities that only some keepers have are declared here too, with a default.
    """

    selects: ClassVar[bool] = False  # whether attention must ask `select` which spans the queries read
    complete: ClassVar[bool] = False  # whether all keys and values exist: `known` gives them, nothing is appended
    fillable: ClassVar[bool] = False  # whether `room` gives buffers that a compiled pass may fill
    recordable: ClassVar[bool] = False  # whether a CUDA graph may be recorded over these buffers

    def append(self, layer: int, keys: Tensor, values: Tensor, marks: Marks) -> Reads:
        """Keep keys and values (B, K, T, E) of a layer; return what the new queries read, with the new tokens last."""
        raise NotImplementedError

    def commit(self) -> None:
        """End the forward: the tokens that it appended are kept."""

    def select(self, layer: int, q: Tensor, spans: list[Span], mask: Mask, marks: Marks, scale: float) -> list[Span]:
        """The spans, out of those that `append` returned, that the queries (B, H, T, E) read."""
        return spans

    def known(self, layer: int) -> list[Span]:
        """The spans of a layer whose keys and values all exist already."""
        raise NotImplementedError

    def fits(self, count: int) -> bool:
        """Whether `room` has place for `count` tokens; a windowed layer has few slots to spare."""
        return False

    def room(self, like: Tensor, marks: Marks) -> list[Room]:
        """Room in every layer for tokens with these marks, shaped (B, K, any, E) and in the dtype of `like`.

        The caller fills it, and `commit` keeps the tokens.
        """
        raise NotImplementedError

    def state(self, layer: int) -> State | None:
        """The state of a recurrent layer before the tokens of this forward; None at the beginning."""
        raise ConfigError(
            "this cache keeps keys and values, but the model's layers keep a state: use the cache that "
            "model.new_cache() makes"
        )

    def keep(self, layer: int, out: Tensor, after: State) -> Tensor:
        """Keep the state after these tokens; return the layer's outputs (B, T, D).

        Gradients come back through these outputs.
        """
        raise NotImplementedError
