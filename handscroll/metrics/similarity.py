"""How alike the meanings of two texts are, from vectors of their tokens in context (BERTScore, Zhang et al. 2020).

Each token of one text is matched with the most similar token of the other. The table of similarities is walked in
tiles, so memory is linear in the texts, which may be of any length.
"""

from collections.abc import Sequence

import numpy as np

from handscroll.base.errors import DataError
from handscroll.metrics.scores import PrecisionRecall, Scores, mean, paired

_TILE = 1024  # tokens of each text


def embedding_score(references: Sequence[np.ndarray], predictions: Sequence[np.ndarray]) -> Scores:
    """Mean F1 of `similarity` over pairs of texts, given as the vectors of their tokens.

    Raises:
        DataError: counts that differ, no examples, and as `similarity`.
    """
    paired(references, predictions)
    return mean([similarity(one, other).f1 for one, other in zip(references, predictions, strict=True)], share=False)


def similarity(
    reference: np.ndarray,
    prediction: np.ndarray,
    reference_weights: np.ndarray | None = None,
    prediction_weights: np.ndarray | None = None,
) -> PrecisionRecall:
    """Precision and recall by greedy matching of vectors (R, D) and (P, D), which need not be normalised: the mean
    similarity of the prediction's tokens to their best match in the reference, and the other way round.

    Weights (R,), (P,) say how much each token counts (inverse document frequencies in the paper), by default equally.
    An empty prediction scores 0. Values are cosines, not rescaled by a baseline.

    Raises:
        DataError: an empty reference, other shapes, numbers that are not finite, a vector of zeros, negative weights.
    """
    one, other = _directions(reference, "reference"), _directions(prediction, "prediction")
    first = _shares(reference_weights, len(one), "reference")
    second = _shares(prediction_weights, len(other), "prediction")
    if not len(one):
        raise DataError("the reference has no token; leave the example out")
    if not len(other):
        return PrecisionRecall(0.0, 0.0)
    if one.shape[1] != other.shape[1]:
        raise DataError(f"vectors of {one.shape[1]} and {other.shape[1]} numbers; take both from one encoder")
    best, found = np.full(len(one), -np.inf), np.full(len(other), -np.inf)
    for top in range(0, len(one), _TILE):
        for left in range(0, len(other), _TILE):
            tile = one[top : top + _TILE] @ other[left : left + _TILE].T
            np.maximum(best[top : top + _TILE], tile.max(axis=1), out=best[top : top + _TILE])
            np.maximum(found[left : left + _TILE], tile.max(axis=0), out=found[left : left + _TILE])
    return PrecisionRecall(float(second @ found), float(first @ best))


def _directions(vectors: np.ndarray, what: str) -> np.ndarray:
    """Vectors of length 1 in float32 or wider; its products are right to about 1e-6."""
    array = np.asarray(vectors)
    if array.ndim != 2 and array.size:
        raise DataError(f"the {what}'s vectors have the shape {array.shape}; expected (tokens, numbers)")
    if not array.size:
        return np.zeros((0, 0))
    wide = array.astype(np.result_type(array.dtype, np.float32), copy=False)
    if not np.isfinite(wide).all():
        raise DataError(f"the {what}'s vectors hold a number that is not finite")
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    if not lengths.all():
        raise DataError(f"the {what}'s vector {int(np.argmin(lengths))} is all zeros, which has no direction")
    return wide / lengths


def _shares(weights: np.ndarray | None, count: int, what: str) -> np.ndarray:
    if weights is None:
        return np.full(count, 1 / max(1, count))
    array = np.asarray(weights, dtype=np.float64)
    if array.shape != (count,) or not np.isfinite(array).all() or (array < 0).any() or (count and not array.sum()):
        raise DataError(f"the {what}'s weights must be {count} numbers of 0 or more, not all 0")
    return array / max(array.sum(), np.finfo(np.float64).tiny)
