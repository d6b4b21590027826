"""The share of a held-out text that another text contains too, by runs of words (Brown et al. 2020, appendix C)."""

from collections import Counter

import numpy as np

from handscroll.data.survey.sampled import Sampled
from handscroll.data.survey.shingles import WORDS, Hasher, runs
from handscroll.report.corpus import SHOWN, Overlap
from handscroll.text.files import Paths
from handscroll.text.parts import parts
from handscroll.text.readers import Reader

RUN = 13  # words, or Chinese characters


class HeldOut:
    """The different runs of `RUN` words in a held-out text, and which of them another text contains.

    If there are more than `most` runs, a sample of them is kept.
    """

    def __init__(self, paths: Paths, hasher: Hasher, most: int = 400_000, reader: Reader | None = None):
        self.counts = Sampled(most)
        number, before = 0, np.zeros(0, dtype=np.uint64)
        for part in parts(paths, reader):
            hashes = np.concatenate([before, hasher.words(WORDS.findall(part.text.lower()))])
            for key in self._kept(runs(hashes, RUN)).tolist():
                self.counts.add(key, 1, part.source, number)
            before = hashes[-(RUN - 1) :]
            if part.last:
                number, before = number + 1, before[:0]
        self.keys = np.array(sorted(self.counts.seen), dtype=np.uint64)
        self.met = np.zeros(len(self.keys), dtype=bool)

    def look(self, found: np.ndarray) -> None:
        """Mark the kept runs that are among `found`, the runs (N,) uint64 of another text."""
        found = self._kept(found)
        if len(self.keys) and len(found):
            places = np.searchsorted(self.keys, found).clip(max=len(self.keys) - 1)
            self.met[places[self.keys[places] == found]] = True

    def record(self) -> Overlap:
        """The share of runs that were found, in total and per document; a run belongs to its first document."""
        total: Counter[str] = Counter()
        met: Counter[str] = Counter()
        for key, hit in zip(self.keys.tolist(), self.met.tolist(), strict=True):
            source = self.counts.seen[key].source
            total[source] += 1
            met[source] += hit
        shares = sorted(((name, met[name] / count) for name, count in total.items()), key=lambda one: (-one[1], one[0]))
        share = float(self.met.mean()) if len(self.met) else 0.0
        return Overlap(run=RUN, share=share, runs=len(self.keys), documents=tuple(shares[:SHOWN]))

    def _kept(self, found: np.ndarray) -> np.ndarray:
        return found[(found & np.uint64((1 << self.counts.level) - 1)) == 0]
