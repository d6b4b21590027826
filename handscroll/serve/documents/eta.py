"""How long a reading still takes: a token costs the more, the more tokens stand before it."""

from collections.abc import Sequence

FEW = 3  # chunks from which a slope is told


def seconds_left(chunks: Sequence[tuple[int, int, float]], total: int, usual: float | None = None) -> float | None:
    """The seconds until `total` tokens are read, from the chunks so far: (first, last, seconds) each.

    The cost of a token is a line over its place, fitted by least squares, that never falls. Before `FEW` chunks it is
    the mean, or the `usual` seconds of a token on this machine; None: nothing is known yet.

    >>> seconds_left([(0, 10, 1.0), (10, 20, 2.0), (20, 30, 3.0)], 40)
    4.0
    """
    done = chunks[-1][1] if chunks else 0
    left = total - done
    if len(chunks) < FEW:
        spent, read = sum(one[2] for one in chunks), sum(last - first for first, last, _ in chunks)
        each = spent / read if read else usual
        return None if each is None else each * left
    places = [(first + last) / 2 for first, last, _ in chunks]
    costs = [seconds / (last - first) for first, last, seconds in chunks]
    place, cost = sum(places) / len(places), sum(costs) / len(costs)
    spread = sum((one - place) ** 2 for one in places)
    slope = max(0.0, sum((a - place) * (b - cost) for a, b in zip(places, costs, strict=True)) / spread)
    return max(0.0, cost + slope * ((done + total) / 2 - place)) * left
