"""Symbolic attention masks: small frozen descriptions that kernels interpret on tiles.

    Causal() & Window(4096) & SameSegment()

A mask never becomes a T x T tensor outside the float64 reference of the tests. Padding keys (index -1) are never
attended to, whatever the mask says.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from handscroll.nn.marks import Extent, Marks

Seen = tuple[Tensor, Tensor, Tensor]


class Mask:
    """Which keys a query may see. Subclasses implement `sees` and `within` from index, segment and position alone."""

    def sees(self, query: Seen, key: Seen) -> Tensor:
        """Boolean (B, T, S) from (index, segment, position) of queries (B, T, 1) and keys (B, 1, S)."""
        raise NotImplementedError

    def within(self, query: Extent, key: Extent) -> "Mask | bool":
        """The part of the mask that is undecided for queries and keys of these extents.

        True if every pair is allowed, False if none is, else a mask for the undecided part. So kernels skip keys that
        no query sees, and need no mask tensor for keys that all queries see.
        """
        raise NotImplementedError

    def allowed(self, query: Marks, key: Marks, device: torch.device) -> Tensor:
        """Boolean (B or 1, T, S): the keys that each query may see, without padding. Called on tiles only."""
        q_index, q_segment, q_position = (marks[:, :, None] for marks in query.tensors(device))
        k_index, k_segment, k_position = (marks[:, None, :] for marks in key.tensors(device))
        return self.sees((q_index, q_segment, q_position), (k_index, k_segment, k_position)) & (k_index >= 0)

    def __and__(self, other: "Mask") -> "Mask":
        return And(self, other)

    def __or__(self, other: "Mask") -> "Mask":
        return Or(self, other)


@dataclass(frozen=True)
class Everything(Mask):
    """Bidirectional: every query sees every key."""

    def sees(self, query, key):
        return (query[0] == query[0]) & (key[0] == key[0])

    def within(self, query, key):
        return True


@dataclass(frozen=True)
class Causal(Mask):
    """A query sees itself and the tokens before it."""

    def sees(self, query, key):
        return key[0] <= query[0]

    def within(self, query, key):
        return _decided(self, key.last <= query.first, key.first > query.last)


@dataclass(frozen=True)
class Window(Mask):
    """A query sees at most the last `size` keys, itself included (combine with Causal)."""

    size: int

    def sees(self, query, key):
        return query[0] - key[0] < self.size

    def within(self, query, key):
        return _decided(self, query.last - key.first < self.size, query.first - key.last >= self.size)


@dataclass(frozen=True)
class Around(Mask):
    """A query sees the keys at most `size` - 1 before or after it (combine with Everything)."""

    size: int

    def sees(self, query, key):
        return (query[0] - key[0]).abs() < self.size

    def within(self, query, key):
        furthest = max(query.last - key.first, key.last - query.first)
        nearest = max(query.first - key.last, key.first - query.last)
        return _decided(self, furthest < self.size, nearest >= self.size)


@dataclass(frozen=True)
class Beyond(Mask):
    """A query sees only keys that are `size` or more before it: those that `Window(size)` hides."""

    size: int

    def sees(self, query, key):
        return query[0] - key[0] >= self.size

    def within(self, query, key):
        return _decided(self, query.first - key.last >= self.size, query.last - key.first < self.size)


@dataclass(frozen=True)
class ChunksBack(Mask):
    """A query sees only keys `least` to `most` chunks before its own; a chunk is `size` positions of the document.

    With `most` None it also sees all keys that are further back.
    """

    size: int
    least: int
    most: int | None

    def sees(self, query, key):
        back = query[2] // self.size - key[2] // self.size
        return (back >= self.least) & (back <= (back if self.most is None else self.most))

    def within(self, query, key):
        fewest, furthest = (
            query.near // self.size - key.far // self.size,
            query.far // self.size - key.near // self.size,
        )
        reach = furthest if self.most is None else self.most
        always = fewest >= self.least and furthest <= reach
        return _decided(self, always, furthest < self.least or fewest > reach)


@dataclass(frozen=True)
class SameSegment(Mask):
    """A query sees only its own document (packed rows)."""

    def sees(self, query, key):
        return query[1] == key[1]

    def within(self, query, key):
        one = query.low == query.high == key.low == key.high
        return _decided(self, one, query.high < key.low or key.high < query.low)


@dataclass(frozen=True)
class And(Mask):
    left: Mask
    right: Mask

    def sees(self, query, key):
        return self.left.sees(query, key) & self.right.sees(query, key)

    def within(self, query, key):
        left, right = self.left.within(query, key), self.right.within(query, key)
        if left is False or right is False:
            return False
        if left is True or right is True:
            return right if left is True else left
        return And(left, right)


@dataclass(frozen=True)
class Or(Mask):
    left: Mask
    right: Mask

    def sees(self, query, key):
        return self.left.sees(query, key) | self.right.sees(query, key)

    def within(self, query, key):
        left, right = self.left.within(query, key), self.right.within(query, key)
        if left is True or right is True:
            return True
        if left is False or right is False:
            return right if left is False else left
        return Or(left, right)


def looks_ahead(mask: Mask) -> bool:
    """Whether a query may see tokens after it. Such a mask allows neither next-token prediction nor a cache."""
    return mask.within(Extent(0, 0), Extent(1, 1)) is not False


def _decided(mask: Mask, always: bool, never: bool) -> Mask | bool:
    return True if always else False if never else mask
