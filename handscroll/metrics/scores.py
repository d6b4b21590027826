"""What a metric makes of examples: a value, its interval, and the test of two systems on the same examples.

A metric is asked for its value under weights of the examples, so one interface serves means (accuracy), ratios of sums
(F1, BLEU) and ranks (Spearman). The interval is the percentile bootstrap over examples (Efron 1979; for corpus scores
Koehn 2004, "Statistical significance tests for machine translation evaluation"). The test is a paired permutation test:
if two systems were the same, it would not matter which of them gave which of the two predictions of an example
(Noreen 1989; Riezler & Maxwell 2005, "On some pitfalls in automatic evaluation and significance testing").
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from handscroll.base.errors import ConfigError, DataError

RESAMPLES = 1000
LEVEL = 0.95
_HELD = 1 << 22  # weights that are held at a time

Weights = np.ndarray  # (R, N): how often each of N examples counts, in each of R draws


@dataclass(frozen=True, eq=False)
class Scores:
    """What a metric made of `count` examples.

    `of` takes weights (R, N) and gives values (R,), NaN where the metric has none; `undefined` says when that is.
    `each` (N,) holds the score of every example where the metric is their mean; `share` says that it lies in 0 .. 1.
    `biased` says why resamples would give a wrong interval, where they do.
    """

    count: int
    of: Callable[[Weights], np.ndarray]
    each: np.ndarray | None = None
    share: bool = False
    undefined: str = "it has no value for these examples"
    biased: str = ""

    @property
    def value(self) -> float:
        """
        Raises:
            DataError: the metric has no value for these examples.
        """
        value = float(self.of(np.ones((1, self.count)))[0])
        if not math.isfinite(value):
            raise DataError(f"no score can be given for {self.count:,} examples: {self.undefined}")
        return value

    def half(self, second: bool) -> "Scores":
        """The scores of one of two systems whose examples follow each other here."""
        count = self.count // 2

        def of(weights: Weights) -> np.ndarray:
            none = np.zeros_like(weights)
            return self.of(np.hstack([none, weights] if second else [weights, none]))

        each = None if self.each is None else self.each[count:] if second else self.each[:count]
        return Scores(count, of, each, self.share, self.undefined, self.biased)


@dataclass(frozen=True)
class Measured:
    """A value with its 95 % interval over `count` examples; without one, `why` says the reason.

    >>> print(Measured(0.912, 0.893, 0.930, 872))
    0.912 [0.893, 0.930], n = 872
    """

    value: float
    low: float | None
    high: float | None
    count: int
    why: str = ""

    def __str__(self) -> str:
        return f"{shown(self.value)} {self.interval}, n = {self.count:,}"

    @property
    def interval(self) -> str:
        """The interval in brackets, or why there is none."""
        if self.low is None or self.high is None:
            return f"(no interval: {self.why})"
        return f"[{shown(self.low)}, {shown(self.high)}]"


@dataclass(frozen=True)
class Comparison:
    """Two systems on the same examples: `difference` is the first less the second, with its paired interval.

    `p` is the two-sided share of random exchanges of their predictions whose difference is as large; None if some
    exchange has no value.
    """

    first: Measured
    second: Measured
    difference: Measured
    p: float | None

    def __str__(self) -> str:
        change = f"{self.difference.value:+.3f} {self.difference.interval}"
        p = "no p: some exchanges have no value" if self.p is None else f"p = {self.p:.3f}"
        return f"{shown(self.first.value)} against {shown(self.second.value)}: {change}, {p}, n = {self.first.count:,}"


class PrecisionRecall(NamedTuple):
    """Of one prediction: how much of it was wanted, and how much of what was wanted is in it."""

    precision: float
    recall: float

    @property
    def f1(self) -> float:
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


def mean(each: Sequence[float] | np.ndarray, share: bool = True) -> Scores:
    """The mean of one score an example; `share`: all lie in 0 .. 1."""
    values = np.asarray(each, dtype=np.float64)
    return Scores(len(values), lambda weights: weights @ values / weights.sum(axis=1), values, share)


def measured(scores: Scores, resamples: int = RESAMPLES, seed: int = 0) -> Measured:
    """The value with its percentile bootstrap interval over examples; equal for equal seeds.

    Where every example scores 0, or every one 1, resampling knows no doubt; the interval is then the exact binomial
    one (Clopper & Pearson 1934), whose open side is (0.025)^(1/n) away.

    Raises:
        DataError: the metric has no value for these examples. ConfigError: fewer than 100 resamples.
    """
    value, count = scores.value, scores.count
    _enough(resamples)
    if count < 2 or scores.biased:
        return Measured(value, None, None, count, scores.biased or "one example")
    if scores.share and scores.each is not None and value in (0.0, 1.0):
        edge = ((1 - LEVEL) / 2) ** (1 / count)
        low, high = (edge, 1.0) if value == 1.0 else (0.0, 1 - edge)
        return Measured(value, low, high, count)
    draws = np.concatenate([scores.of(weights) for weights in _resampled(count, resamples, seed)])
    return _interval(value, draws, count)


def compared(both: Scores, resamples: int = RESAMPLES, seed: int = 0) -> Comparison:
    """Two systems on the same examples; `both` scores those of the first and then those of the second.

    Raises:
        DataError: one of the systems has no value for these examples. ConfigError: fewer than 100 resamples.
    """
    one, other = both.half(second=False), both.half(second=True)
    first, second = measured(one, resamples, seed), measured(other, resamples, seed)
    apart = first.value - second.value
    if one.count < 2:
        return Comparison(first, second, Measured(apart, None, None, one.count, "one example"), None)
    kept = [both.of(np.hstack([w, 1 - w])) - both.of(np.hstack([1 - w, w])) for w in _kept(one.count, resamples, seed)]
    exchanged = np.abs(np.concatenate(kept))
    p = None
    if np.isfinite(exchanged).all():
        # The exchange that was observed is one of them, so p is never 0 (Phipson & Smyth 2010).
        p = (1 + int((exchanged >= abs(apart) - 1e-12).sum())) / (1 + resamples)
    if both.biased:
        return Comparison(first, second, Measured(apart, None, None, one.count, both.biased), p)
    draws = [one.of(weights) - other.of(weights) for weights in _resampled(one.count, resamples, seed)]
    return Comparison(first, second, _interval(apart, np.concatenate(draws), one.count), p)


def shown(value: float) -> str:
    """A score as it is printed: three decimals, fewer for large ones."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.2f}" if abs(value) < 1000 else f"{value:,.1f}"


def paired(references: Sequence[Any], predictions: Sequence[Any]) -> int:
    """How many examples there are.

    Raises:
        DataError: none, or not one prediction for each reference.
    """
    if len(references) != len(predictions):
        raise DataError(
            f"{len(references):,} references and {len(predictions):,} predictions; give one prediction for each"
        )
    if not len(references):
        raise DataError("nothing to score: there are no references and no predictions")
    return len(references)


def _interval(value: float, draws: np.ndarray, count: int) -> Measured:
    if not np.isfinite(draws).all():
        missing = int((~np.isfinite(draws)).sum())
        return Measured(value, None, None, count, f"{missing:,} of {len(draws):,} resamples have no value")
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    if high - low <= 1e-12 * abs(high):
        return Measured(value, None, None, count, "all resamples give one value")
    return Measured(value, float(low), float(high), count)


def _enough(resamples: int) -> None:
    if resamples < 100:
        raise ConfigError(f"{resamples} resamples are too few to find the ends of an interval; take at least 100")


def _resampled(count: int, resamples: int, seed: int) -> Iterator[Weights]:
    """Weights of `resamples` draws of `count` examples with replacement, some draws at a time."""
    random = np.random.default_rng(seed)
    rows = max(1, _HELD // count)
    for first in range(0, resamples, rows):
        draws = (random.integers(0, count, count) for _ in range(min(rows, resamples - first)))
        yield np.stack([np.bincount(draw, minlength=count) for draw in draws]).astype(np.float64)


def _kept(count: int, resamples: int, seed: int) -> Iterator[Weights]:
    """1 where an example's predictions stay with their systems, 0 where they are exchanged."""
    random = np.random.default_rng(seed)
    rows = max(1, _HELD // count)
    for first in range(0, resamples, rows):
        yield random.integers(0, 2, (min(rows, resamples - first), count)).astype(np.float64)
