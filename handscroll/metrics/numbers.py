"""Scores of numbers: Pearson's and Spearman's correlation, root mean square error, mean absolute error."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from handscroll.base.errors import DataError
from handscroll.metrics.scores import Scores, Weights, mean, paired

_CONSTANT = "all references, or all predictions, are the same number"
_FLAT = 1e-12  # a deviation below this share of the largest value is rounding


def pearson(references: Sequence[float], predictions: Sequence[float]) -> Scores:
    """Pearson's linear correlation, -1 .. 1.

    Raises:
        DataError: counts that differ, no examples, what is not a finite number; by `.value`: one side is constant.
    """
    true, given = _numbers(references, predictions)
    true, given = _standard(true), _standard(given)
    return Scores(len(true), lambda weights: _correlation(weights, true[None], given[None]), undefined=_CONSTANT)


def spearman(references: Sequence[float], predictions: Sequence[float]) -> Scores:
    """Spearman's correlation: Pearson's of the ranks, equal numbers sharing their mean rank. Errors as `pearson`."""
    true, given = _numbers(references, predictions)
    groups = [np.unique(values, return_inverse=True)[1] for values in (true, given)]

    def of(weights: Weights) -> np.ndarray:
        return _correlation(weights, *(_ranks(weights, group) for group in groups))

    return Scores(len(true), of, undefined=_CONSTANT)


def rmse(references: Sequence[float], predictions: Sequence[float]) -> Scores:
    """Root of the mean squared error, in the unit of the numbers; lower is better. Errors as `mae`."""
    true, given = _numbers(references, predictions)
    square = (true - given) ** 2
    return Scores(len(true), lambda weights: np.sqrt(weights @ square / weights.sum(axis=1)))


def mae(references: Sequence[float], predictions: Sequence[float]) -> Scores:
    """Mean absolute error, in the unit of the numbers; lower is better.

    Raises:
        DataError: counts that differ, no examples, what is not a finite number.
    """
    true, given = _numbers(references, predictions)
    return mean(np.abs(true - given), share=False)


def margin(references: Sequence[float], predictions: Sequence[float]) -> Scores:
    """The mean of what the predictions are above the references; higher is better. Errors as `mae`."""
    true, given = _numbers(references, predictions)
    return mean(given - true, share=False)


def _numbers(references: Sequence[Any], predictions: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    paired(references, predictions)
    for what, values in (("reference", references), ("prediction", predictions)):
        for number, value in enumerate(values):
            fits = isinstance(value, int | float | np.number) and not isinstance(value, bool)
            if not fits or not math.isfinite(value):
                raise DataError(f"{what} {number} is {value!r}, not a finite number")
    return np.asarray(references, dtype=np.float64), np.asarray(predictions, dtype=np.float64)


def _standard(values: np.ndarray) -> np.ndarray:
    """Centred and scaled, so that sums of squares keep their digits; a constant becomes zeros."""
    centred = values - values.mean()
    spread = np.abs(centred).max()
    return np.zeros_like(values) if spread <= _FLAT * np.abs(values).max() else centred / spread


def _ranks(weights: Weights, group: np.ndarray) -> np.ndarray:
    """Rank (R, N) of each example among as many as the weights count; `group` numbers the distinct values upwards."""
    sizes = np.stack([np.bincount(group, weights=row) for row in weights])
    before = np.cumsum(sizes, axis=1) - sizes
    ranks = before + (sizes + 1) / 2
    return ranks[:, group]


def _correlation(weights: Weights, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Weighted Pearson correlation (R,) of values (R or 1, N); NaN where one side is constant."""
    size = weights.sum(axis=1, keepdims=True)
    sides, squares = [], []
    for values in (one, other):
        centred = values - (weights * values).sum(axis=1, keepdims=True) / size
        square = (weights * centred**2).sum(axis=1)
        rounding = size[:, 0] * (_FLAT * np.abs(values).max(axis=1)) ** 2
        sides.append(centred)
        squares.append(np.where(square > rounding, square, np.nan))
    return np.clip((weights * sides[0] * sides[1]).sum(axis=1) / np.sqrt(squares[0] * squares[1]), -1, 1)
