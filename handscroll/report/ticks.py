"""Lengths as people say them (512, 2K, 1M) and where the ticks of a length axis go."""

import math
from collections.abc import Sequence


def compact(length: float) -> str:
    """A length in binary thousands where that is exact to one decimal, else in full.

    >>> [compact(n) for n in (256, 1024, 1536, 32768, 1048576, 5000)]
    ['256', '1K', '1.5K', '32K', '1M', '5000']
    """
    for unit, size in (("M", 2**20), ("K", 2**10)):
        tenths = length * 10 / size
        if length >= size and tenths == int(tenths):
            return f"{length / size:g}{unit}"
    return f"{length:.0f}" if length == int(length) else f"{length:g}"


def rounded(length: float) -> str:
    """Like `compact`, to the nearest tenth of a K or M: for text that does not need the exact number."""
    for unit, size in (("M", 2**20), ("K", 2**10)):
        if length >= size:
            return f"{round(length / size, 1):g}{unit}"
    return f"{length:.0f}"


def powers_of_two(low: float, high: float, most: int) -> list[int]:
    """Powers of two in [low, high], thinned evenly to at most `most`, the highest kept."""
    exponents = range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)
    step = max(1, math.ceil(len(exponents) / most))
    return [2**e for e in exponents if (exponents[-1] - e) % step == 0]


def binary_steps(high: float, most: int) -> list[int]:
    """0, s, 2s, ... up to `high` with s the smallest power of two that gives at most `most` steps."""
    step = 2 ** max(0, math.ceil(math.log2(high / most)))
    return list(range(0, int(high) + 1, step))


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move the values (pixels) apart until neighbours are `gap` apart, as little as a greedy pass allows.

    The result is in the order of `wanted`; it stays in [low, high] when there is room.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed = list(wanted)
    floor = low
    for index in order:
        placed[index] = max(placed[index], floor)
        floor = placed[index] + gap
    ceiling = high
    for index in reversed(order):
        placed[index] = min(placed[index], ceiling)
        ceiling = placed[index] - gap
    return placed
