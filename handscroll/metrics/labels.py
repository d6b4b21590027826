"""Scores of labels, one or several an example: accuracy, precision, recall, F1, MCC, the confusion matrix.

They equal scikit-learn's (`zero_division=0`) on what both define. A label is text, a whole number or a boolean; several
labels of an example are a list, tuple or set. An empty prediction (None, "" or an empty list) names no label: it is
wrong where the reference names one. With `labels` a prediction outside of them (free text of a generating model) is
wrong too, but does not become a class of its own; a reference outside is an error.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from handscroll.base.errors import ConfigError, DataError, nearest
from handscroll.metrics.scores import Scores, Weights, mean, paired

Average = Literal["micro", "macro", "weighted"]
_SHOWN = 10  # labels that a message names


@dataclass(frozen=True, eq=False)
class Confusion:
    """`counts[i, j]` examples of `labels[i]` were called `labels[j]`, `nameless[i]` by none of the labels."""

    labels: tuple[Any, ...]
    counts: np.ndarray
    nameless: np.ndarray


class LabelScore(NamedTuple):
    """The scores of one label; `count` examples have it, `predicted` were given it."""

    label: Any
    precision: float
    recall: float
    f1: float
    count: int
    predicted: int


class _Pairs(NamedTuple):
    """(example, label) of every label that is named, as two arrays."""

    example: np.ndarray
    label: np.ndarray

    def sums(self, weights: Weights, labels: int) -> np.ndarray:
        """Weighted number of examples of each label (R, labels)."""
        rows = [np.bincount(self.label, weights=row[self.example], minlength=labels) for row in weights]
        return np.stack(rows)


class _Named(NamedTuple):
    """What references and predictions name, as numbers of `labels`; the last number stands for any other prediction."""

    labels: tuple[Any, ...]
    count: int
    true: _Pairs
    given: _Pairs
    hit: _Pairs

    def sums(self, weights: Weights) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        size = len(self.labels) + 1
        return self.true.sums(weights, size), self.given.sums(weights, size), self.hit.sums(weights, size)


def accuracy(references: Sequence[Any], predictions: Sequence[Any], labels: Sequence[Any] | None = None) -> Scores:
    """Share of examples whose label is right; of several labels all must be, and no other given.

    Raises:
        DataError: counts that differ, no examples, labels of mixed types, a reference that names none.
    """
    _named(references, predictions, labels)  # checks
    return mean([float(_set(one) == _set(other)) for one, other in zip(references, predictions, strict=True)])


def precision(
    references: Sequence[Any],
    predictions: Sequence[Any],
    average: Average = "macro",
    labels: Sequence[Any] | None = None,
) -> Scores:
    """Share of right ones among the given labels: over all ("micro"), the mean of labels ("macro"), or the mean
    weighted by their examples ("weighted"). A label that was never given has 0; means are over the labels that
    references or predictions name.

    Raises:
        DataError: as `accuracy`.
    """
    return _averaged(_named(references, predictions, labels), average, lambda true, given, hit: _ratio(hit, given))


def recall(
    references: Sequence[Any],
    predictions: Sequence[Any],
    average: Average = "macro",
    labels: Sequence[Any] | None = None,
) -> Scores:
    """Share of the examples of a label that were given it; averages and errors as in `precision`."""
    return _averaged(_named(references, predictions, labels), average, lambda true, given, hit: _ratio(hit, true))


def f1(
    references: Sequence[Any],
    predictions: Sequence[Any],
    average: Average = "macro",
    labels: Sequence[Any] | None = None,
) -> Scores:
    """Harmonic mean of precision and recall of each label, averaged as in `precision`; errors too."""
    named = _named(references, predictions, labels)
    return _averaged(named, average, lambda true, given, hit: _ratio(2 * hit, true + given))


def mcc(references: Sequence[Any], predictions: Sequence[Any], labels: Sequence[Any] | None = None) -> Scores:
    """Matthews' correlation of labels, -1 .. 1, for any number of them (Gorodkin 2004, "Comparing two K-category
    assignments by a K-category correlation coefficient"). It is 0 where references or predictions are all one label.

    Raises:
        DataError: as `accuracy`; several labels an example.
    """
    named = _named(references, predictions, labels)
    _single(references, predictions, "MCC")

    def of(weights: Weights) -> np.ndarray:
        true, given, hit = named.sums(weights)
        # A prediction of nothing is another wrong label.
        given[:, -1] = weights.sum(axis=1) - given[:, :-1].sum(axis=1)
        size = weights.sum(axis=1)
        above = size * hit.sum(axis=1) - (true * given).sum(axis=1)
        square = (size**2 - (true**2).sum(axis=1)) * (size**2 - (given**2).sum(axis=1))
        return above / np.sqrt(np.where(square > 0, square, np.inf))

    return Scores(named.count, of)


def confusion(references: Sequence[Any], predictions: Sequence[Any], labels: Sequence[Any] | None = None) -> Confusion:
    """How often each label was called each label, in the order of `labels` (by default sorted).

    Raises:
        DataError: as `accuracy`; several labels an example.
    """
    named = _named(references, predictions, labels)
    _single(references, predictions, "a confusion matrix")
    size = len(named.labels)
    called = np.full(named.count, size)
    called[named.given.example] = named.given.label
    counts = np.zeros((size, size + 1), dtype=np.int64)
    np.add.at(counts, (named.true.label, called[named.true.example]), 1)
    return Confusion(named.labels, counts[:, :size], counts[:, size])


def by_label(
    references: Sequence[Any], predictions: Sequence[Any], labels: Sequence[Any] | None = None
) -> list[LabelScore]:
    """Precision, recall and F1 of every label, 0 where one of them divides by nothing.

    Raises:
        DataError: as `accuracy`.
    """
    named = _named(references, predictions, labels)
    true, given, hit = (sums[0] for sums in named.sums(np.ones((1, named.count))))
    rows = zip(_ratio(hit, given), _ratio(hit, true), _ratio(2 * hit, true + given), true, given, strict=True)
    return [
        LabelScore(label, float(p), float(r), float(f), int(t), int(g))
        for label, (p, r, f, t, g) in zip(named.labels, rows, strict=False)
    ]


def _averaged(named: _Named, average: Average, share: Callable[..., np.ndarray]) -> Scores:
    if average not in get_args(Average):
        raise ConfigError(f"unknown average '{average}': {nearest(average, get_args(Average))}")

    def of(weights: Weights) -> np.ndarray:
        true, given, hit = named.sums(weights)
        if average == "micro":
            value = share(true.sum(axis=1), given.sum(axis=1), hit.sum(axis=1))
            return np.where(true.sum(axis=1) + given.sum(axis=1) > 0, value, np.nan)
        each = share(true, given, hit)[:, :-1]
        kept = true[:, :-1] if average == "weighted" else (true + given)[:, :-1] > 0
        return np.divide((each * kept).sum(axis=1), kept.sum(axis=1), where=kept.any(axis=1), out=_nans(len(weights)))

    return Scores(named.count, of, undefined="no example has a label")


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, where=below > 0, out=np.zeros(np.shape(above)))


def _nans(size: int) -> np.ndarray:
    return np.full(size, np.nan)


def _named(references: Sequence[Any], predictions: Sequence[Any], labels: Sequence[Any] | None) -> _Named:
    count = paired(references, predictions)
    true, given = [_set(one) for one in references], [_set(one) for one in predictions]
    for number, (one, whole) in enumerate(zip(true, references, strict=True)):
        if not one and not _several(whole):
            raise DataError(f"reference {number} is {whole!r}, which names no label; leave the example out")
    known = frozenset().union(*true) | (frozenset(labels) if labels is not None else frozenset().union(*given))
    _of_one_kind([*true, *given, frozenset(labels or ())])
    if labels is None:
        order = tuple(sorted(known))
    else:
        order = tuple(dict.fromkeys(labels))
        strange = sorted(known - set(order), key=str)
        if strange:
            raise DataError(
                f"a reference has the label {strange[0]!r}, which is not among the labels: "
                f"{nearest(str(strange[0]), map(str, order))}"
            )
    place = {label: number for number, label in enumerate(order)}
    hits = [one & other for one, other in zip(true, given, strict=True)]
    return _Named(order, count, *(_pairs(sets, place) for sets in (true, given, hits)))


def _pairs(sets: Sequence[frozenset[Any]], place: dict[Any, int]) -> _Pairs:
    found = [(number, place.get(label, len(place))) for number, one in enumerate(sets) for label in one]
    pairs = np.array(found, dtype=np.int64).reshape(-1, 2)
    return _Pairs(pairs[:, 0], pairs[:, 1])


def _several(value: Any) -> bool:
    return isinstance(value, list | tuple | set | frozenset)


def _set(value: Any) -> frozenset[Any]:
    if _several(value):
        return frozenset(map(_plain, value))
    return frozenset() if value is None or value == "" else frozenset([_plain(value)])


def _plain(value: Any) -> Any:
    """A label of numpy as one of Python."""
    return value.item() if isinstance(value, np.generic) else value


def _single(references: Sequence[Any], predictions: Sequence[Any], what: str) -> None:
    for number, value in enumerate([*references, *predictions]):
        if _several(value):
            side = "reference" if number < len(references) else "prediction"
            raise DataError(f"{side} {number % len(references)} is {value!r}: {what} is for one label an example")


def _of_one_kind(sets: Sequence[frozenset[Hashable]]) -> None:
    kinds = sorted({type(label).__name__ for one in sets for label in one})
    if len(kinds) > 1 or "float" in kinds:
        some = ", ".join(sorted({repr(label) for one in sets for label in one})[:_SHOWN])
        raise DataError(f"labels of type {' and '.join(kinds)} ({some}); write all of them as text or as whole numbers")
