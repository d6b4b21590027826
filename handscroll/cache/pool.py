"""The pool of keys and values of an engine: blocks of tokens, which many requests take and give back.

Layers that see the same number of tokens share the numbers of their blocks; together they are a space. A request holds
blocks for all of its tokens in the space of the full layers, and for a window of tokens in the other spaces
(`generate/engine/scheduler.py`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor


class Space(NamedTuple):
    """`count` blocks of the layers that have this window (None: of the layers that see all tokens)."""

    window: int | None
    count: int


@dataclass(frozen=True)
class Layout:
    """The blocks of a model's layers.

    `windows` are those of the layers, and `size` is the number of tokens of a block. `most` is the number of requests
    at once, and `budget` the number of tokens that a step reads.
    """

    windows: Sequence[int | None]
    size: int
    most: int
    budget: int

    def spaces(self, count: int) -> list[Space]:
        """One space of `count` blocks for full layers, and one for each window, with blocks for all requests."""
        found = [Space(None, count)]
        for window in sorted({window for window in self.windows if window is not None}):
            found.append(Space(window, min(count, self.most * reach(window, self.size, self.budget))))
        return found

    def blocks(self, count: int) -> int:
        """Blocks of all layers together."""
        return sum(list(self.windows).count(space.window) * space.count for space in self.spaces(count))


def reach(window: int, size: int, budget: int) -> int:
    """The most blocks of `size` tokens that a request needs in the space of a window."""
    return (window - 1 + budget) // size + 2


class Pool:
    """Keys and values (K, slots, E) of every layer, in the blocks of its space; `shape` is (kv heads, head size).

    With `poison`, a block that is given up is overwritten with not-a-number, so that a later read of it is noticed.
    """

    def __init__(self, layout: Layout, count: int, shape: tuple[int, int], like: Tensor, poison: bool = False):
        self.size, self.poison, self.spaces = layout.size, poison, layout.spaces(count)
        numbers = {space.window: number for number, space in enumerate(self.spaces)}
        self.space_of = [numbers[window] for window in layout.windows]
        fill = math.nan if poison else None
        rooms = [(shape[0], self.spaces[number].count * self.size, shape[1]) for number in self.space_of]
        self.keys, self.values = ([_room(room, like, fill) for room in rooms] for _ in "kv")

    @property
    def nbytes(self) -> int:
        return sum(x.numel() * x.element_size() for x in (*self.keys, *self.values))

    def give_up(self, space: int, block: int) -> None:
        """Declare that the content of a block is no longer needed."""
        for layer in self._layers(space) if self.poison else ():
            for x in (self.keys[layer], self.values[layer]):
                x[:, block * self.size : (block + 1) * self.size] = math.nan

    def write(
        self, layer: int, slots: Int[Tensor, "n"], keys: Float[Tensor, "K n E"], values: Float[Tensor, "K n E"]
    ) -> None:
        """Write keys and values of one layer into n slots."""
        self.keys[layer].index_copy_(1, slots, keys.to(self.keys[layer].dtype))
        self.values[layer].index_copy_(1, slots, values.to(self.values[layer].dtype))

    def _layers(self, space: int) -> list[int]:
        return [layer for layer, number in enumerate(self.space_of) if number == space]


def _room(shape: tuple[int, int, int], like: Tensor, fill: float | None) -> Tensor:
    return like.new_empty(shape) if fill is None else like.new_full(shape, fill)
