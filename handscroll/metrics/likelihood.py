"""Perplexity from given losses."""

from collections.abc import Sequence

import numpy as np

from handscroll.base.errors import DataError
from handscroll.metrics.scores import Scores, Weights, paired

_LARGEST = 700.0  # exp of more is no finite number


def perplexity(tokens: Sequence[int], losses: Sequence[float]) -> Scores:
    """exp of the mean loss a token, over all tokens of all texts; lower is better.

    A text has `tokens` scored tokens and `losses` nats in sum (not in mean). Sums and counts are added up first, so
    long texts weigh more; intervals are over texts.

    Raises:
        DataError: counts that differ, no texts, a text without tokens, losses that are negative or not finite, or a
            mean above 700 nats.
    """
    paired(tokens, losses)
    counts, sums = np.asarray(tokens, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    wrong = np.flatnonzero(~((counts >= 1) & (sums >= 0) & np.isfinite(sums) & np.isfinite(counts)))
    if len(wrong):
        at = int(wrong[0])
        raise DataError(
            f"text {at} has a loss of {losses[at]} over {tokens[at]} tokens; give a finite sum of losses, "
            "not below 0, over 1 token or more"
        )
    if (sums / counts).max() > _LARGEST:
        raise DataError(
            f"a text has a mean loss of more than {_LARGEST:.0f} nats a token, whose perplexity is too large to be "
            "written; check that losses are sums in nats"
        )

    def of(weights: Weights) -> np.ndarray:
        return np.exp(weights @ sums / (weights @ counts))

    return Scores(len(sums), of)
