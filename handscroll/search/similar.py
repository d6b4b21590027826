"""Which texts are most like another one: BM25 over words and pairs of Chinese characters, without any model."""

import re
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from handscroll.text.words import HAN

K1, B = 1.5, 0.75  # the usual saturation and length of BM25
_RUNS = re.compile(rf"[{HAN}]+|[^\W{HAN}]+")
_HAN = re.compile(f"[{HAN}]")
_own = threading.local()


class Similar:
    """Texts that are ranked by BM25 (Robertson & Zaragoza 2009, "The probabilistic relevance framework")."""

    def __init__(self, texts: Iterable[str]):
        self._fill([terms(text) for text in texts], terms)

    @classmethod
    def of(cls, rows: Sequence[Sequence[str]], cut: Callable[[str], Sequence[str]]) -> "Similar":
        """Texts whose terms are known already; `cut` gives those of a query."""
        made = cls.__new__(cls)
        made._fill(rows, cut)
        return made

    def _fill(self, rows: Sequence[Sequence[str]], cut: Callable[[str], Sequence[str]]) -> None:
        from bm25s import BM25

        self._count, self._cut, self._ranked = len(rows), cut, None
        if any(rows):  # the library refuses texts without a word
            self._ranked = BM25(k1=K1, b=B, method="lucene")
            self._ranked.index(list(rows), show_progress=False)

    def scores(self, query: str) -> np.ndarray:
        """The score (N,) of every text for a query; 0 where they share no word."""
        wanted = sorted(set(self._cut(query)))
        if self._ranked is None or not wanted:
            return np.zeros(self._count)
        return np.asarray(self._ranked.get_scores(wanted), dtype=np.float64)

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


def stems(text: str) -> list[str]:
    """`terms` for a search: other words by their stems (Porter 2001, "Snowball"), and Chinese characters alone too.

    >>> stems("He drinks 喝酒")
    ['he', 'drink', '喝', '酒', '喝酒']
    """
    found: list[str] = []
    for run in _RUNS.findall(text.lower()):
        if _HAN.match(run):
            found += run
            found += [run[at : at + 2] for at in range(len(run) - 1)]
        else:
            found.append(run)
    return _stemmer().stemWords(found)


def _stemmer() -> Any:
    """English endings; on words of other languages they change texts and questions alike. Threads share none."""
    if not hasattr(_own, "stemmer"):
        from Stemmer import Stemmer

        _own.stemmer = Stemmer("english")
    return _own.stemmer
