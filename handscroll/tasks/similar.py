"""Which texts are most like another one: BM25 over words and pairs of Chinese characters, without any model."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from handscroll.text.words import HAN

K1, B = 1.5, 0.75  # the usual saturation and length of BM25
_RUNS = re.compile(rf"[{HAN}]+|[^\W{HAN}]+")
_HAN = re.compile(f"[{HAN}]")


class Similar:
    """Texts that are ranked by BM25 (Robertson & Zaragoza 2009, "The probabilistic relevance framework")."""

    def __init__(self, texts: Sequence[str]):
        counts = [Counter(terms(text)) for text in texts]
        sizes = np.array([sum(count.values()) for count in counts], dtype=np.float64)
        self._norm = K1 * (1 - B + B * sizes / max(1.0, sizes.mean() if len(sizes) else 1.0))
        self._in: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for number, count in enumerate(counts):
            for term, often in count.items():
                self._in[term].append((number, often))

    def scores(self, query: str) -> np.ndarray:
        """The score (N,) of every text for a query; 0 where they share no word."""
        found = np.zeros(len(self._norm))
        for term in set(terms(query)) & self._in.keys():
            numbers, often = (np.array(one) for one in zip(*self._in[term], strict=True))
            rare = np.log(1 + (len(found) - len(numbers) + 0.5) / (len(numbers) + 0.5))
            found[numbers] += rare * often * (K1 + 1) / (often + self._norm[numbers])
        return found

    def best(self, query: str, count: int) -> list[int]:
        """The numbers of the `count` most similar texts, best first; the earlier one where two are alike."""
        return np.argsort(-self.scores(query), kind="stable")[:count].tolist()


def terms(text: str) -> list[str]:
    """Words in small letters; of a run of Chinese characters every two neighbours (a single one stands alone).

    >>> terms("Qwen 读长卷")
    ['qwen', '读长', '长卷']
    """
    found = []
    for run in _RUNS.findall(text.lower()):
        if len(run) > 1 and _HAN.match(run):
            found += [run[at : at + 2] for at in range(len(run) - 1)]
        else:
            found.append(run)
    return found
