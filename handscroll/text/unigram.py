"""Train a Unigram vocabulary (Kudo 2018, arXiv:1804.10959, section 3.2) deterministically.

The `tokenizers` trainer walks hash maps in random order: three runs on the same text gave three vocabularies
(0.23.3, 2026-11). This one sorts, and sums in a fixed order. Words are lattices over bytes; the forward and backward
passes run over all words at once, one byte position after the other.

Limits: the most frequent 500,000 words take part; words are cut after 32 characters for training; results may differ
between machines whose `exp` differs in the last bit (scores are rounded to 6 digits).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

_WORDS = 500_000
_WORD_CHARACTERS = 32
_PIECE_CHARACTERS = 16
_SEEDS = 300_000
_KEPT = 0.75  # of the pieces survive a pruning round, as in SentencePiece
_ROUND_STEPS = 2
_FLOOR = 0.5  # expected count under which a piece goes; bytes always stay, with at least this


def train_unigram(counts: Mapping[str, int], size: int) -> list[tuple[bytes, float]]:
    """Pieces with log-probabilities: the 256 bytes in order, then up to `size - 256` others, likeliest first.

    `counts` says how often each word occurs. Other pieces are whole characters, so a piece never ends inside one.
    Fewer pieces come back where the text has no more to offer.
    """
    cut: Counter[str] = Counter()
    for word, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_WORDS]:
        for start in range(0, len(word), _WORD_CHARACTERS):
            cut[word[start : start + _WORD_CHARACTERS]] += count
    single = [(bytes([byte]), 1.0) for byte in range(256)]
    seeds = single + _seeds(cut)
    pieces = [piece for piece, _ in seeds]
    texts = sorted(cut)
    lattice = _Lattice([text.encode() for text in texts], pieces)
    weights = np.array([cut[text] for text in texts], dtype=np.float64)
    scores = np.log([score for _, score in seeds]) - np.log(sum(score for _, score in seeds))
    return _finish(pieces, _maximise(lattice, weights, pieces, scores, size), size)


def _seeds(counts: Mapping[str, int]) -> list[tuple[bytes, float]]:
    """Substrings that occur twice or more, by frequency times length; grown one character at a time.

    A substring can only be frequent when the one without its last character is, so rare starts are left behind.
    """
    found: list[tuple[str, int]] = []
    open_starts = [(word, start, count) for word, count in counts.items() for start in range(len(word))]
    for length in range(1, _PIECE_CHARACTERS + 1):
        level: Counter[str] = Counter()
        open_starts = [item for item in open_starts if item[1] + length <= len(item[0])]
        for word, start, count in open_starts:
            level[word[start : start + length]] += count
        frequent = {piece for piece, count in level.items() if count > 1}
        found += [(piece, level[piece]) for piece in frequent if len(piece.encode()) > 1]
        open_starts = [item for item in open_starts if item[0][item[1] : item[1] + length] in frequent]
    found.sort(key=lambda item: (-item[1] * len(item[0]), item[0]))
    return [(piece.encode(), float(count * len(piece))) for piece, count in found[:_SEEDS]]


def _maximise(
    lattice: "_Lattice", weights: np.ndarray, pieces: Sequence[bytes], scores: np.ndarray, size: int
) -> np.ndarray:
    """Alternate estimation and pruning until about `size` pieces are left; scores of the rest are -inf."""
    wanted = int(size * 1.1)  # the last cut is by probability, from a tenth more, as in SentencePiece
    own = _Lattice(list(pieces), pieces, skip_whole=True)
    while True:
        for _ in range(_ROUND_STEPS):
            expected = lattice.expected(scores, weights)
            expected[:256] = np.maximum(expected[:256], _FLOOR)
            expected[expected < _FLOOR] = 0.0
            scores = _digamma(expected) - _digamma(expected.sum(keepdims=True))
        alive = np.flatnonzero(np.isfinite(scores[256:])) + 256
        if len(alive) + 256 <= wanted:
            return scores
        keep = max(wanted - 256, int(_KEPT * len(alive)))
        if keep >= len(alive):
            return scores
        # What the text's likelihood loses when a piece must be written with the others.
        loss = expected[alive] * (scores[alive] - own.best(scores)[alive])
        order = np.lexsort((alive, -np.round(loss, 6)))
        scores[alive[order[keep:]]] = -np.inf
        lattice.forget(scores)
        own.forget(scores)


def _finish(pieces: Sequence[bytes], scores: np.ndarray, size: int) -> list[tuple[bytes, float]]:
    scored = [
        (piece, round(float(score), 6)) for piece, score in zip(pieces, scores, strict=True) if np.isfinite(score)
    ]
    single = [item for item in scored if len(item[0]) == 1]
    longer = sorted((item for item in scored if len(item[0]) > 1), key=lambda item: (-item[1], item[0]))
    return single + longer[: size - len(single)]


class _Lattice:
    """All ways to write each text with the pieces: edges between byte positions, ordered by end position."""

    def __init__(self, texts: Sequence[bytes], pieces: Sequence[bytes], skip_whole: bool = False):
        number = {piece: i for i, piece in enumerate(pieces)}
        longest = max(len(piece) for piece in pieces)
        sources: list[int] = []
        ends: list[int] = []
        labels: list[int] = []
        layers: list[int] = []
        first = 0
        self.starts = np.zeros(len(texts), dtype=np.int64)
        self.lasts = np.zeros(len(texts), dtype=np.int64)
        for row, text in enumerate(texts):
            length = len(text)
            self.starts[row], self.lasts[row] = first, first + length
            for begin in range(length):
                for end in range(begin + 1, min(length, begin + longest) + 1):
                    label = number.get(text[begin:end])
                    # A byte has no other spelling; every longer piece can at least be spelled in bytes.
                    if label is None or (skip_whole and 1 < length == end - begin):
                        continue
                    sources.append(first + begin)
                    ends.append(first + end)
                    labels.append(label)
                    layers.append(end)
            first += length + 1
        self.nodes = first
        order = np.lexsort((sources, ends, layers))
        self._keep(*(np.array(x, dtype=np.int64)[order] for x in (sources, ends, labels, layers)))

    def _keep(self, source: np.ndarray, end: np.ndarray, label: np.ndarray, layer: np.ndarray) -> None:
        self.source, self.end, self.label, self.layer = source, end, label, layer
        cuts = [0, *(np.flatnonzero(np.diff(layer)) + 1).tolist(), len(layer)]
        self.slices = [slice(a, b) for a, b in pairwise(cuts)]

    def forget(self, scores: np.ndarray) -> None:
        """Drop the edges of pieces whose score is -inf."""
        alive = np.isfinite(scores[self.label])
        self._keep(self.source[alive], self.end[alive], self.label[alive], self.layer[alive])

    def _forward(self, scores: np.ndarray, merge: np.ufunc) -> np.ndarray:
        reached = np.full(self.nodes, -np.inf)
        reached[self.starts] = 0.0
        for part in self.slices:
            end = self.end[part]
            heads = np.flatnonzero(np.r_[True, end[1:] != end[:-1]])
            values = reached[self.source[part]] + scores[self.label[part]]
            reached[end[heads]] = merge.reduceat(values, heads)
        return reached

    def best(self, scores: np.ndarray) -> np.ndarray:
        """Log-probability of the best way to write each text."""
        return self._forward(scores, np.maximum)[self.lasts]

    def expected(self, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Expected number of uses of each piece, texts counted by `weights`."""
        reached = self._forward(scores, np.logaddexp)
        mass = np.zeros(self.nodes)
        mass[self.lasts] = weights
        total = np.zeros(len(scores))
        for part in reversed(self.slices):
            source, end, label = self.source[part], self.end[part], self.label[part]
            share = mass[end] * np.exp(reached[source] + scores[label] - reached[end])
            np.add.at(mass, source, share)
            np.add.at(total, label, share)
        return total


def _digamma(x: np.ndarray) -> np.ndarray:
    """Digamma by recurrence to x >= 7 and the asymptotic series (error under 1e-9); -inf at 0."""
    shifted = np.where(x > 0, x, np.inf)
    lift = np.zeros_like(shifted)
    for _ in range(7):
        low = shifted < 7
        lift[low] -= 1 / shifted[low]
        shifted[low] += 1
    with np.errstate(invalid="ignore"):
        square = 1 / (shifted * shifted)
        series = np.log(shifted) - 0.5 / shifted - square * (1 / 12 - square * (1 / 120 - square / 252))
    return np.where(x > 0, series + lift, -np.inf)
