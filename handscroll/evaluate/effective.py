"""Effective length: how long a text may be before the share of right answers falls below a threshold.

RULER (Hsieh et al. 2024, arXiv:2404.06654) asks for a fixed score, NoLiMa (Modarressi et al. 2025, arXiv:2502.05167)
for 85 % of the score on short texts. Both report one length without saying how sure it is. Here it has an interval from
the exact binomial intervals of Clopper & Pearson (1934).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from handscroll.base.errors import ConfigError, DataError

LEVEL = 0.95


@dataclass(frozen=True)
class Effective:
    """The longest length at which it and every shorter one reach `threshold`; None: not even the shortest does.

    With the confidence of `level` the true effective length is at least `low` (None: nothing is sure), and at most
    `high` (None: it lies below the shortest length).
    """

    threshold: float
    level: float
    length: int | None
    low: int | None
    high: int | None

    def __str__(self) -> str:
        told = "below the shortest" if self.length is None else f"{self.length:,}"
        low = "below the shortest" if self.low is None else f"{self.low:,}"
        high = "below the shortest" if self.high is None else f"{self.high:,}"
        return f"{told} tokens ({self.level:.0%}: {low} to {high})" if low != high else f"{told} tokens"


def effective(
    lengths: Sequence[int],
    hits: Sequence[float],
    trials: Sequence[int],
    threshold: float = 0.85,
    level: float = LEVEL,
) -> Effective:
    """The effective length from the right answers among the trials at each of the rising `lengths`.

    Answers that are right in part count as parts of a hit: exactly for the length, and rounded to whole hits for its
    interval, which is then rather too wide.

    `low` needs no correction for several lengths: it can only be too high if the first length that truly fails was
    passed, and that is one test. `high` can be too low by any of the lengths that truly pass, so its tests share the
    error (Bonferroni).

    Raises:
        DataError: the three do not fit together. ConfigError: threshold or level is not between 0 and 1.
    """
    if not len(lengths) == len(hits) == len(trials) or not lengths or list(lengths) != sorted(set(lengths)):
        raise DataError(
            f"{len(lengths)} lengths, {len(hits)} hits and {len(trials)} trials: give rising lengths, and one number "
            "each for every length"
        )
    _check(threshold, level)
    error = 1 - level
    low = _bounds(hits, trials, error / 2, upper=False)
    high = _bounds(hits, trials, error / 2 / len(lengths), upper=True)
    shares = [h / n if n else 0.0 for h, n in zip(hits, trials, strict=True)]
    return Effective(threshold, level, *(_longest(lengths, values, threshold) for values in (shares, low, high)))


def interval(hits: int, trials: int, level: float = LEVEL) -> tuple[float, float]:
    """The exact interval of a share: `hits` of `trials` (Clopper & Pearson 1934).

    >>> [round(end, 4) for end in interval(18, 20)]
    [0.683, 0.9877]

    Raises:
        DataError: not 0 <= hits <= trials. ConfigError: the level is not between 0 and 1.
    """
    _check(0.5, level)
    error = (1 - level) / 2
    return _bounds([hits], [trials], error, upper=False)[0], _bounds([hits], [trials], error, upper=True)[0]


def _bounds(hits: Sequence[float], trials: Sequence[int], error: float, upper: bool) -> list[float]:
    for one, all_ in zip(hits, trials, strict=True):
        if not 0 <= one <= all_:
            raise DataError(f"{one} hits of {all_} trials are no share: give 0 <= hits <= trials")
    return [_bound(round(one), all_, error, upper) for one, all_ in zip(hits, trials, strict=True)]


def _bound(hits: int, trials: int, error: float, upper: bool) -> float:
    """The share at which as many hits (or as few) have the probability `error`."""
    if hits == (trials if upper else 0):
        return 1.0 if upper else 0.0
    first, last = (0, hits) if upper else (hits, trials)
    weights = [
        math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1) for k in range(first, last + 1)
    ]
    low, high = 0.0, 1.0
    for _ in range(60):
        share = (low + high) / 2
        one, other = math.log(share), math.log1p(-share)
        tail = math.fsum(math.exp(w + k * one + (trials - k) * other) for k, w in enumerate(weights, first))
        if (tail > error) == upper:  # the lower tail falls with the share, the upper tail rises
            low = share
        else:
            high = share
    return (low + high) / 2


def _longest(lengths: Sequence[int], shares: Sequence[float], threshold: float) -> int | None:
    longest = None
    for length, share in zip(lengths, shares, strict=True):
        if share < threshold - 1e-12:
            break
        longest = length
    return longest


def _check(threshold: float, level: float) -> None:
    if not 0 < threshold < 1 or not 0 < level < 1:
        raise ConfigError(
            f"threshold {threshold} and level {level} must lie between 0 and 1, for example 0.85 and 0.95"
        )
