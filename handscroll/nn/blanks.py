"""Two-dimensional positions of blank infilling, and their mask (Du et al. 2022, arXiv:2103.10360, 2.2).

A token has a place in the text with its blanks, and a place inside its blank (0 for a token outside any blank). Both
are stored in the one number of `Marks.positions`, so packing, padding and caches carry them like any position.
"""

from dataclasses import dataclass

from torch import Tensor

from handscroll.nn.mask import Mask

SPAN = 1 << 32  # distance in `positions` from one place inside a blank to the next


def joined(place: Tensor, inside: Tensor) -> Tensor:
    """The position of a token at `place` of the text and at `inside` (from 1) of its blank; 0: it is in no blank."""
    return place + SPAN * inside


def parted(positions: Tensor) -> tuple[Tensor, Tensor]:
    """Split positions into (place, inside)."""
    return positions % SPAN, positions // SPAN


@dataclass(frozen=True)
class SeesText(Mask):
    """Every query sees the text around the blanks.

    Use it with `| Causal()`, and with `& SameSegment()` in packed rows.
    """

    def sees(self, query, key):
        return (key[2] < SPAN) & (query[2] == query[2])

    def within(self, query, key):
        return True if key.far < SPAN else False if key.near >= SPAN else self
