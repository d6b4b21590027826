"""Student's t: how far the mean of a few values may lie from the true mean."""

import math
from functools import lru_cache


@lru_cache
def quantile(freedom: int, error: float) -> float:
    """What the size of t exceeds with the probability `error`, for a whole number of degrees of freedom.

    The probability is an exact finite sum (Abramowitz & Stegun, 26.7.3 and 26.7.4), which is solved by halving.

    >>> round(quantile(15, 0.05), 3)
    2.131
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(freedom, middle) < 1 - error else (low, middle)
    return math.sqrt(freedom) * math.tan((low + high) / 2)


def _within(freedom: int, angle: float) -> float:
    """The probability that t is at most sqrt(freedom) tan(angle) in size."""
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = term if freedom > 1 else 0.0
    for power in range(2 + odd, freedom - 1, 2):
        term *= (power - 1) / power * math.cos(angle) ** 2
        total += term
    inside = math.sin(angle) * total
    return 2 / math.pi * (angle + inside) if odd else inside
