"""Two-dimensional positions of blank infilling, and who sees whom under them (Du et al. 2022, arXiv:2103.10360, 2.2).

A token has a place in the text with its blanks and a place inside its blank (0: it is no part of one). Both travel in
the one number of `Marks.positions`, so that packing, padding and caches carry them as they carry any position.
"""

from dataclasses import dataclass

from torch import Tensor

from handscroll.nn.mask import Mask

SPAN = 1 << 32  # positions of one place inside a blank


def joined(place: Tensor, inside: Tensor) -> Tensor:
    """The position of tokens at `place`, the `inside`-th (from 1) of what fills the blank there; 0: of the text."""
    return place + SPAN * inside


def parted(positions: Tensor) -> tuple[Tensor, Tensor]:
    """(place, inside) of positions."""
    return positions % SPAN, positions // SPAN


@dataclass(frozen=True)
class Given(Mask):
    """Every query sees the text around the blanks (combine with `| Causal()`, and `& SameSegment()` in packed rows)."""

    def sees(self, query, key):
        return (key[2] < SPAN) & (query[2] == query[2])

    def within(self, query, key):
        return True if key.far < SPAN else False if key.near >= SPAN else self
