"""Counts the lengths of any number of documents in constant memory, on a logarithmic scale."""

import math
from collections import Counter
from itertools import pairwise

from handscroll.report.corpus import Lengths

STEPS = 16  # classes per doubling of the length; a quantile is then exact to 2.2 %
BARS = 24  # maximum number of bars in the report


class LengthCounts:
    """Counts of lengths (>= 1) in logarithmic classes. The least and the greatest length are exact."""

    def __init__(self):
        self.counts: Counter[int] = Counter()
        self.least, self.most = 1 << 62, 0

    def add(self, length: int) -> None:
        """Count one document."""
        self.counts[_step(length)] += 1
        self.least, self.most = min(self.least, length), max(self.most, length)

    def quantile(self, share: float) -> int:
        """The length that a `share` of the documents does not exceed, exact to 2.2 %."""
        wanted, seen = share * sum(self.counts.values()), 0
        for step in sorted(self.counts):
            seen += self.counts[step]
            if seen >= wanted:
                return max(self.least, min(self.most, round(2 ** ((step + 0.5) / STEPS))))
        raise ValueError("no lengths were counted")

    def record(self) -> Lengths:
        """The counts for the report, in at most `BARS` bars."""
        first, last = min(self.counts), max(self.counts)
        wide = max(1, -(-(last + 1 - first) // BARS))
        wide = next(step for step in (1, 2, 4, 8, 16, 32, 64, 1 << 20) if step >= wide)
        first -= first % wide
        starts = range(first, last + 1, wide)
        edges = [math.ceil(2 ** (step / STEPS)) for step in (*starts, starts[-1] + wide)]
        counts = [sum(self.counts[at] for at in range(step, step + wide)) for step in starts]
        while len(edges) > 2 and any(left >= right for left, right in pairwise(edges)):
            at = next(n for n, (left, right) in enumerate(pairwise(edges)) if left >= right)
            joined = min(at, len(counts) - 2)  # classes narrower than one character are joined
            counts[joined : joined + 2] = [counts[joined] + counts[joined + 1]]
            del edges[joined + 1]
        quantiles = [self.quantile(share) for share in (0.25, 0.5, 0.75, 0.9)]
        names = ("quarter", "median", "three_quarters", "ninety")
        return Lengths(
            least=self.least,
            most=self.most,
            edges=tuple(edges),
            counts=tuple(counts),
            **dict(zip(names, quantiles, strict=True)),
        )


def _step(length: int) -> int:
    return int(math.log2(max(1, length)) * STEPS)
