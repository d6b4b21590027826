"""Rankings of several kinds joined to one (Cormack et al. 2009, "Reciprocal rank fusion")."""

from collections.abc import Sequence

K = 60  # the constant of the paper: how little the first ranks differ


def joined(rankings: Sequence[Sequence[int]]) -> dict[int, float]:
    """The score of everything that stands in one of the rankings (best first), the best score first.

    >>> list(joined([[3, 1], [1, 2]]))
    [1, 3, 2]
    """
    found: dict[int, float] = {}
    for ranking in rankings:
        for place, one in enumerate(ranking):
            found[one] = found.get(one, 0.0) + 1 / (K + 1 + place)
    return dict(sorted(found.items(), key=lambda pair: (-pair[1], pair[0])))
