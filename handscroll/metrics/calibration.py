"""Whether a model's probabilities mean what they say: expected calibration error, Brier score, reliability bins."""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from handscroll.base.errors import ConfigError, DataError, nearest
from handscroll.metrics.scores import Scores, Weights, mean, paired

BINS = 15
_SUM = 1e-3  # how far probabilities may be from 1 in sum; float16 ones are


class Bin(NamedTuple):
    """The examples whose confidence lies above `low` and up to `high`: their mean confidence, and the share right."""

    low: float
    high: float
    count: int
    confidence: float | None
    right: float | None


def ece(references: Sequence[Any], probabilities: Sequence[Mapping[Any, float]], bins: int = BINS) -> Scores:
    """Expected calibration error (Guo et al. 2017, "On calibration of modern neural networks"): the gap between
    confidence and share right, in `bins` of equal width, weighted by their examples. 0 is calibrated.

    `probabilities` give one probability a label; confidence is the largest (the first of equals). Few examples make it
    too large, and so do many bins and resamples: it has no interval here.

    Raises:
        DataError: counts that differ, no examples, rows that hold no probabilities or lack the reference.
        ConfigError: no bins.
    """
    confidence, right, place = _binned(references, probabilities, bins)
    gap = confidence - right

    def of(weights: Weights) -> np.ndarray:
        sums = np.stack([np.bincount(place, weights=row * gap, minlength=bins) for row in weights])
        return np.abs(sums).sum(axis=1) / weights.sum(axis=1)

    return Scores(len(gap), of, biased="resamples are less calibrated")


def reliability(
    references: Sequence[Any], probabilities: Sequence[Mapping[Any, float]], bins: int = BINS
) -> tuple[Bin, ...]:
    """The bins behind `ece`, from low confidence to high; an empty one has no means. Errors as in `ece`."""
    confidence, right, place = _binned(references, probabilities, bins)
    rows = []
    for number in range(bins):
        inside = place == number
        count = int(inside.sum())
        means = (float(confidence[inside].mean()), float(right[inside].mean())) if count else (None, None)
        rows.append(Bin(number / bins, (number + 1) / bins, count, *means))
    return tuple(rows)


def brier(references: Sequence[Any], probabilities: Sequence[Mapping[Any, float]]) -> Scores:
    """Brier score (1950): mean squared distance of the probabilities from what was true, 0 is best.

    The sum over labels, halved for two labels, which makes it the square of one probability's error: 0 .. 1 for two
    labels, 0 .. 2 for more, as scikit-learn has it. Errors as in `ece`.
    """
    _check(references, probabilities)
    each = []
    for truth, row in zip(references, probabilities, strict=True):
        total = sum((chance - (label == truth)) ** 2 for label, chance in row.items())
        each.append(total / 2 if len(row) == 2 else total)
    return mean(each, share=False)


def _binned(
    references: Sequence[Any], probabilities: Sequence[Mapping[Any, float]], bins: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Confidence, whether right, and number of the bin, of each example."""
    if bins < 1:
        raise ConfigError(f"{bins} bins; give at least 1")
    _check(references, probabilities)
    called = [max(row, key=lambda label: row[label]) for row in probabilities]
    confidence = np.array([row[label] for row, label in zip(probabilities, called, strict=True)], dtype=np.float64)
    right = np.array([label == truth for label, truth in zip(called, references, strict=True)], dtype=np.float64)
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    return confidence, right, place


def _check(references: Sequence[Hashable], probabilities: Sequence[Mapping[Any, float]]) -> None:
    paired(references, probabilities)
    known = set(probabilities[0]) if isinstance(probabilities[0], Mapping) else set()
    for number, (truth, row) in enumerate(zip(references, probabilities, strict=True)):
        if not isinstance(row, Mapping) or not row:
            raise DataError(f"probabilities {number} are {row!r}; give one probability for each label by its name")
        if set(row) != known:
            raise DataError(
                f"probabilities {number} name {sorted(map(str, row))}, the first ones {sorted(map(str, known))}; name "
                "the same labels for every example"
            )
        if truth not in row:
            raise DataError(
                f"reference {number} is {truth!r}, which has no probability: {nearest(str(truth), map(str, row))}"
            )
        wrong = [chance for chance in row.values() if not (math.isfinite(chance) and -1e-9 <= chance <= 1 + 1e-6)]
        if wrong or abs(sum(row.values()) - 1) > _SUM:
            told = f"hold {wrong[0]}" if wrong else f"are {sum(row.values()):.4f} in sum"
            raise DataError(f"probabilities {number} {told}; give probabilities from 0 to 1 whose sum is 1, not logits")
