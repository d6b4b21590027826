"""The effective length of a model by a search: few texts where the answer is clear, many only where it is close.

The grid of `needle.py` spends as many texts on a length that is plainly mastered as on one that is in doubt. The search
halves the range of lengths instead, and at each length it asks until a test is sure. The test may be looked at after
every round and stopped at any time, and its error stays what it is: it bets against the hypothesis, and by Ville's
inequality the wealth of a bettor reaches 1 / error with probability `error` at most if the hypothesis is true (Robbins
1970, "Statistical methods related to the law of the iterated logarithm"; Waudby-Smith & Ramdas 2024, "Estimating means
of bounded random variables by betting", JRSS B 86, arXiv:2010.09686).

A round asks in every depth stratum, and an outcome is the share of its needles that were found, a number in 0 .. 1:
needles that stand together share a text, so they are one trial and not several. The bets of a round are fixed before it
begins, so the wealth is multiplied by the product of (1 + b (x - m)) over the strata, whose expectation is at most that
of as many draws from the mean over the strata (the geometric mean is at most the arithmetic one). So the test is valid
for the mean over depths, whatever each is.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field

from handscroll.base.config import Config
from handscroll.base.errors import ConfigError

Probe = Callable[[int, int], Sequence[float]]
"""The outcomes in 0 .. 1 at a length in a round, one for each depth stratum."""
BETS = (
    0.05,
    0.1,
    0.2,
    0.4,
    0.7,
    1.0,
)  # how far the alternatives lie from the threshold, as shares of the way to 1 or 0


class LengthSearch(Config):
    """The search over rising `lengths`: the longest at which at least `threshold` of the needles are found.

    A round asks once in each of `strata` equal parts of the depth. After `rounds` of them at a length the share found
    decides, as in a grid of `strata` depths and `rounds` samples. `error` is that of the whole verdict.
    """

    lengths: tuple[int, ...] = Field(min_length=1)
    threshold: float = Field(default=0.85, gt=0, lt=1)
    strata: int = Field(default=5, ge=1, le=64)
    rounds: int = Field(default=20, ge=1)
    error: float = Field(default=0.05, gt=0, lt=1)
    seed: int = 0


@dataclass
class Tested:
    """The test at one length: `hits` is the sum of the outcomes of all `trials`.

    `passes` is None while it is open; `sure`: decided by the test, not by the last round.
    """

    length: int
    hits: float = 0
    trials: int = 0
    rounds: int = 0
    passes: bool | None = None
    sure: bool = False

    @property
    def share(self) -> float:
        return self.hits / self.trials


@dataclass
class Found:
    """What a search found: the longest length that passes (None: none), and the tests, in the order in which they ran.

    The model is known to pass `low` and to fail above `high` with the error of the search, if it fails beyond a length
    at which it fails: where a test was not `sure`, the interval reaches over that length.
    """

    length: int | None
    low: int | None
    high: int | None
    tests: list[Tested] = field(default_factory=list)


def search(settings: LengthSearch, probe: Probe, on_round: Callable[[Tested], None] | None = None) -> Found:
    """Find the effective length by halving, with a sequential test at each length that is tried.

    It takes for granted that a model which fails at a length fails at every longer one; `needle.py` measures every
    length. Each test has an equal share of the error: there are at most log2(lengths + 1) of them, rounded up.

    Raises:
        ConfigError: the lengths do not rise.
    """
    lengths = settings.lengths
    if list(lengths) != sorted(set(lengths)):
        raise ConfigError(f"the lengths {list(lengths)} must rise, each given once")
    error = settings.error / math.ceil(math.log2(len(lengths) + 1))
    below, above = -1, len(lengths)  # the longest that passes, the shortest that fails
    tests = []
    while above - below > 1:
        middle = (below + above) // 2
        test = _tested(settings, lengths[middle], error, probe, on_round)
        tests.append(test)
        if test.passes:
            below = middle
        else:
            above = middle
    sure = [test for test in tests if test.sure]
    low = max((test.length for test in sure if test.passes), default=None)
    failed = min((test.length for test in sure if not test.passes), default=None)
    high = max((length for length in lengths if failed is None or length < failed), default=None)
    return Found(lengths[below] if below >= 0 else None, low, high, tests)


def _tested(
    settings: LengthSearch, length: int, error: float, probe: Probe, on_round: Callable[[Tested], None] | None
) -> Tested:
    test = Tested(length)
    while test.passes is None:
        outcomes = probe(length, test.rounds)
        assert len(outcomes) == settings.strata, (len(outcomes), settings.strata)
        test.hits += sum(outcomes)
        test.trials += len(outcomes)
        test.rounds += 1
        verdict = decided(test.hits, test.trials, settings.threshold, error)
        if verdict is not None:
            test.passes, test.sure = verdict == "above", True
        elif test.rounds == settings.rounds:
            test.passes = test.share >= settings.threshold - 1e-12
        if on_round is not None:
            on_round(test)
    return test


def decided(hits: float, trials: int, threshold: float, error: float) -> Literal["above", "below"] | None:
    """On which side of the threshold the share lies, once that is sure; may be asked after every round."""
    bound = math.log(1 / error)  # a wrong verdict is on one side only
    if wealth(hits, trials, threshold, above=True) >= bound:
        return "above"
    if wealth(hits, trials, threshold, above=False) >= bound:
        return "below"
    return None


def wealth(hits: float, trials: int, threshold: float, above: bool) -> float:
    """The logarithm of the wealth of equal bets on several shares above (or below) the threshold.

    A bet on the share q pays q / m for a hit and (1 - q) / (1 - m) for a miss, with the threshold m: fair if the share
    is m, and a loss on average if it lies on the other side. An outcome x in between pays the product of both, to the
    powers x and 1 - x. That is at most the mean of both with the weights x and 1 - x (the geometric mean is at most the
    arithmetic one), which would be fair too, so the test stays valid.
    """
    logs = []
    for way in BETS:
        share = threshold + way * (1 - threshold) if above else threshold * (1 - way)
        hit, miss = share / threshold, (1 - share) / (1 - threshold)
        if (hits and hit <= 0) or (trials - hits and miss <= 1e-12):
            continue
        logs.append(
            (hits * math.log(hit) if hits else 0.0) + ((trials - hits) * math.log(miss) if hits < trials else 0)
        )
    if not logs:
        return -math.inf
    top = max(logs)
    return top + math.log(sum(math.exp(one - top) for one in logs) / len(BETS))


def confidence(hits: float, trials: int, error: float) -> tuple[float, float]:
    """The shares that no bettor has refuted: a confidence sequence, which holds at every round at once.

    Below it the bet on a larger share has reached 2 / error, above it that on a smaller one.
    """
    bound, share = math.log(2 / error), hits / trials
    ends = []
    for above in (True, False):
        refuted, open_ = (0.0, share) if above else (1.0, share)
        for _ in range(40 if abs(share - refuted) > 0 else 0):
            middle = (refuted + open_) / 2
            if wealth(hits, trials, middle, above) >= bound:
                refuted = middle
            else:
                open_ = middle
        ends.append(refuted)
    return ends[0], ends[1]


def rows_of(settings: LengthSearch, found: Found) -> list[dict[str, Any]]:
    """The tests of a search by length, as they stand in a record."""
    rows = []
    for test in sorted(found.tests, key=lambda test: test.length):
        low, high = confidence(test.hits, test.trials, settings.error)
        shown = {"length": test.length, "hits": test.hits, "trials": test.trials, "share": test.share}
        rows.append(shown | {"low": low, "high": high, "passes": test.passes, "sure": test.sure})
    return rows
