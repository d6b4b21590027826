"""Where the needles of a grid stand: a few places of one text, shared by all lengths, so that readings are shared too.

A place is the number of tokens of the haystack before the needle. One reading with a needle at a place answers every
length: the question branches off at each. So a place costs the tokens from there to the longest length that uses it,
and a depth of another length that falls near it costs no more than its question. The longest length has its depths
exactly. The others take the nearest place that is read so far, and more places are added where they bring the depths
nearest for the fewest tokens, while the whole stays several times cheaper than its cells one by one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MOST = 32  # places
SAVING = 6.1  # the tokens of the different cells one by one, over those that may be read
TRIES = 200  # additions that are tried before there is none


@dataclass(frozen=True)
class Places:
    """`of[l][d]` is the place of depth d at length l, and `tokens` is what reading and asking takes for one sample."""

    of: tuple[tuple[int, ...], ...]
    tokens: float

    @property
    def used(self) -> list[int]:
        """All places, in order."""
        return sorted({place for row in self.of for place in row})

    def lengths(self, place: int, lengths: Sequence[int]) -> list[int]:
        """The lengths that are measured at a place."""
        return [length for length, row in zip(lengths, self.of, strict=True) if place in row]


def places(
    lengths: Sequence[int], rooms: Sequence[int], depths: Sequence[float], sharing: int = 1, most: int = MOST
) -> Places:
    """Choose at most `most` places for needles in texts of rising `lengths` whose haystacks have `rooms` tokens.

    The text before the last place is read once for `sharing` samples. Places are added while the tokens stay below
    those of all different cells one by one over `SAVING`, or (in small grids, which cannot save so much) a little above
    those of the longest length. Two depths of a short length may get the same place; then they are one cell.
    Deterministic. Where no depth is near the beginning, one place more than depths may be needed.
    """
    chosen = _Choice(lengths, rooms, depths, sharing)
    chosen.add(chosen.tokens() + 3 * max(lengths) / len(lengths), most)
    return Places(chosen.nearest(), chosen.tokens())


class _Choice:
    """Places and how far each is read (`reach`: the number of the longest length, from below)."""

    def __init__(self, lengths: Sequence[int], rooms: Sequence[int], depths: Sequence[float], sharing: int):
        self.lengths, self.rooms, self.sharing = np.array(lengths), np.array(rooms), sharing
        self.wanted = np.rint(np.array(rooms)[:, None] * np.array(depths)).astype(np.int64)  # (lengths, depths)
        self.candidates = np.unique(self.wanted)
        last = len(lengths) - 1
        self.reach = {int(place): last for place in self.wanted[last]}
        if (
            min(self.reach) > self.rooms[0]
        ):  # without a needle near the beginning, the short texts need one of their own
            self.reach[int(self.wanted[0].min())] = last

    def tokens(self) -> float:
        """The tokens of one sample; a question with its answer is taken to be as long as the needle."""
        after = sum(int(self.lengths[far]) - place for place, far in self.reach.items())
        asked = sum(self.different() * (self.lengths - self.rooms)) / 2
        return after + max(self.reach) / self.sharing + float(asked)

    def different(self) -> np.ndarray:
        """The number of different cells at each length."""
        return np.array([len(set(row)) for row in self.nearest()])

    def nearest(self) -> tuple[tuple[int, ...], ...]:
        found = np.array(sorted(self.reach))
        best = self._distances(*self._kept()).argmin(axis=2)
        return tuple(tuple(int(found[n]) for n in row) for row in best)

    def add(self, least: float, most: int) -> None:
        """Add places, or read some farther, while that brings depths nearer and the tokens stay within their bound.

        The bound is `least` tokens or those of all different cells over `SAVING`.
        """
        while True:
            before = dict(self.reach)
            for place, far in self._options(len(self.reach) < most)[:TRIES]:
                self.reach[place] = far
                if self.tokens() <= max(least, float(sum(self.different() * self.lengths)) / SAVING):
                    break
                self.reach = dict(before)
            if self.reach == before:
                return

    def _options(self, more: bool) -> list[tuple[int, int]]:
        """Places and how far to read them, those first that bring the most nearness for a token."""
        now, deepest = self._distances(*self._kept()).min(axis=2), max(self.reach)
        kept = np.array([place for place in self.candidates if more or int(place) in self.reach])
        had = np.array([self.reach.get(int(place), -1) for place in kept])
        apart = self._distances(kept, np.full(len(kept), len(self.lengths) - 1))
        gains = np.clip(now[..., None] - apart, 0, None).sum(axis=1)  # (lengths, places)
        gains[np.arange(len(self.lengths))[:, None] <= had] = 0
        before = np.where(had < 0, kept, self.lengths[had])
        cost = self.lengths[:, None] - before + np.clip(kept - deepest, 0, None) / self.sharing
        worth = np.where(gains > 1e-9, gains.cumsum(axis=0) / (cost + 1.0), 0.0)
        order = np.argsort(-worth, axis=None, kind="stable")[: int((worth > 0).sum())]
        return [(int(kept[n % len(kept)]), int(n // len(kept))) for n in order]

    def _kept(self) -> tuple[np.ndarray, np.ndarray]:
        found = sorted(self.reach)
        return np.array(found), np.array([self.reach[place] for place in found])

    def _distances(self, found: np.ndarray, reach: np.ndarray) -> np.ndarray:
        """The shift of each depth to each place (lengths, depths, places); infinite where the length cannot use it."""
        shift = np.abs(self.wanted[..., None] - found) / np.maximum(self.rooms, 1)[:, None, None]
        rows = np.arange(len(self.lengths))[:, None]
        usable = (rows <= reach) & (found <= self.rooms[:, None])
        return np.where(usable[:, None, :], shift, np.inf)
