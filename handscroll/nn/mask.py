"""Symbolic attention masks: small frozen descriptions that kernels interpret on tiles.

    Causal() & Window(4096) & SameSegment()

A mask never becomes a T x T tensor outside the float64 oracle. Padding keys (index -1) are never
attended to, whatever the mask says.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from handscroll.nn.marks import Marks

Band = tuple[int | None, int | None]


class Mask:
    """Which keys a query may see. Subclasses implement `sees` on index and segment alone."""

    def sees(self, query: tuple[Tensor, Tensor], key: tuple[Tensor, Tensor]) -> Tensor:
        """Boolean (B, T, S) from (index, segment) of queries (B, T, 1) and keys (B, 1, S)."""
        raise NotImplementedError

    def band(self) -> Band | None:
        """For plain runs: (lo, hi) when the mask is exactly lo <= query - key <= hi (None: unbounded).

        None when it is no band; kernels then evaluate tiles.
        """
        return None

    def allowed(self, query: Marks, key: Marks, device: torch.device) -> Tensor:
        """Boolean (B or 1, T, S): what the queries may see, padding keys excluded. Called on tiles only."""
        q_index, q_segment, _ = query.tensors(device)
        k_index, k_segment, _ = key.tensors(device)
        seen = self.sees((q_index[:, :, None], q_segment[:, :, None]), (k_index[:, None, :], k_segment[:, None, :]))
        return seen & (k_index >= 0)[:, None, :]

    def __and__(self, other: "Mask") -> "Mask":
        return And(self, other)

    def __or__(self, other: "Mask") -> "Mask":
        return Or(self, other)


@dataclass(frozen=True)
class Everything(Mask):
    """Bidirectional: every query sees every key."""

    def sees(self, query, key):
        return (query[0] == query[0]) & (key[0] == key[0])

    def band(self) -> Band:
        return (None, None)


@dataclass(frozen=True)
class Causal(Mask):
    """A query sees itself and what came before."""

    def sees(self, query, key):
        return key[0] <= query[0]

    def band(self) -> Band:
        return (0, None)


@dataclass(frozen=True)
class Window(Mask):
    """A query sees at most the last `size` keys, itself included (combine with Causal)."""

    size: int

    def sees(self, query, key):
        return query[0] - key[0] < self.size

    def band(self) -> Band:
        return (None, self.size - 1)


@dataclass(frozen=True)
class SameSegment(Mask):
    """A query sees only its own document (packed rows)."""

    def sees(self, query, key):
        return query[1] == key[1]

    def band(self) -> Band:
        return (None, None)  # a plain run is one document


@dataclass(frozen=True)
class Sinks(Mask):
    """Every query sees the first `count` keys (attention sinks; combine with `|`)."""

    count: int

    def sees(self, query, key):
        return (key[0] < self.count) & (query[0] == query[0])


@dataclass(frozen=True)
class Prefix(Mask):
    """Every query sees the first `length` keys (prefix language model; combine with `| Causal()`)."""

    length: int

    def sees(self, query, key):
        return (key[0] < self.length) & (query[0] == query[0])


@dataclass(frozen=True)
class And(Mask):
    left: Mask
    right: Mask

    def sees(self, query, key):
        return self.left.sees(query, key) & self.right.sees(query, key)

    def band(self) -> Band | None:
        left, right = self.left.band(), self.right.band()
        if left is None or right is None:
            return None
        lows = [lo for lo in (left[0], right[0]) if lo is not None]
        highs = [hi for hi in (left[1], right[1]) if hi is not None]
        return (max(lows, default=None), min(highs, default=None))


@dataclass(frozen=True)
class Or(Mask):
    left: Mask
    right: Mask

    def sees(self, query, key):
        return self.left.sees(query, key) | self.right.sees(query, key)
