"""Hashes of runs of words, and MinHash signatures of documents (Broder 1997; bands: Leskovec et al. 2014)."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

WORDS = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\u3040-\u30ff]|[^\W_\u3400-\u4dbf\u4e00-\u9fff\u3040-\u30ff]+")
_KEPT = 1 << 18  # number of words whose hashes are cached
# 32 bands of four numbers: two documents with a Jaccard index of 0.8 agree in some band with probability 0.999999.
HASHES, BANDS = 128, 32
_TOGETHER = 2048  # runs that are mixed at once, 2 MiB
NEAR = 0.8


class Hasher:
    """64-bit hashes of words. They are the same in every process."""

    def __init__(self):
        self._known: dict[str, int] = {}

    def words(self, words: Sequence[str]) -> np.ndarray:
        """The hashes of N words, (N,) uint64."""
        known = self._known
        if len(known) > _KEPT:
            known.clear()
        for word in words:
            if word not in known:
                known[word] = key_of(word)
        return np.fromiter((known[word] for word in words), dtype=np.uint64, count=len(words))


def key_of(text: str) -> int:
    """A 64-bit hash of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def runs(hashes: np.ndarray, size: int) -> np.ndarray:
    """Hashes (N - size + 1,) uint64 of every run of `size` words; empty if there are fewer than `size` words."""
    count = len(hashes) - size + 1
    if count < 1:
        return np.zeros(0, dtype=np.uint64)
    total = np.zeros(count, dtype=np.uint64)
    for place in range(size):
        total = total * np.uint64(0x9E3779B97F4A7C15) + hashes[place : place + count]
    return _mixed(total)


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele et al. 2014): every output bit depends on all input bits."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class Signature:
    """The minimum of each of `HASHES` permutations over the runs of a document, updated part by part."""

    _salts = _mixed(np.arange(1, HASHES + 1, dtype=np.uint64))

    def __init__(self):
        self.least = np.full(HASHES, np.iinfo(np.uint64).max, dtype=np.uint64)
        self.count = 0

    def add(self, found: np.ndarray) -> None:
        """Add some runs of the document."""
        self.count += len(found)
        for start in range(0, len(found), _TOGETHER):  # short texts are many: one call for all permutations
            mixed = _mixed(found[None, start : start + _TOGETHER] ^ self._salts[:, None])
            self.least = np.minimum(self.least, mixed.min(axis=1))


def near_pairs(signatures: Sequence[np.ndarray], near: float = NEAR) -> list[tuple[int, int, float]]:
    """(document, earlier document, estimated Jaccard index >= near), with the first similar document as the partner.

    The estimate is the share of equal numbers in two signatures; its error is about 0.04. Only documents that agree in
    one of `BANDS` bands are compared.
    """
    rows = HASHES // BANDS
    buckets: list[dict[bytes, list[int]]] = [defaultdict(list) for _ in range(BANDS)]
    found = []
    for number, one in enumerate(signatures):
        bands = [one[band * rows : (band + 1) * rows].tobytes() for band in range(BANDS)]
        candidates = sorted({other for bucket, key in zip(buckets, bands, strict=True) for other in bucket[key]})
        alike = ((other, float((one == signatures[other]).mean())) for other in candidates)
        first = next(((other, share) for other, share in alike if share >= near), None)
        if first is not None:  # later documents are compared with the partner only
            found.append((number, *first))
            continue
        for bucket, key in zip(buckets, bands, strict=True):
            bucket[key].append(number)
    return found
