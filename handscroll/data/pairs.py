"""Pairs of texts for next-sentence prediction (Devlin et al. 2019, appendix A.2): does the second follow the first?"""

import numpy as np

from handscroll.base.errors import ConfigError, DataError
from handscroll.data.row import IGNORED, Row
from handscroll.data.sources import TokenSource
from handscroll.data.stream import LeftOut, Numbered, State
from handscroll.text.tokenizer import Tokenizer

PARTS = 64  # of a single document, at most
SHORT = 0.1  # share of pairs that are shorter than their room, as in the paper


class Pairs(Numbered[Row]):
    """Endless rows that hold `pairs` pairs [CLS] A [SEP] B [SEP], one segment each, of at most length // pairs tokens.

    A is a run of a document's tokens. As in the paper a "sentence" is any run of text and need not end at a full stop.
    Long documents are drawn more often. B is the text after A (label 0) or, half the time, a run of another document
    (label 1); of a single document (a book), another part counts as another document. The label stands at [CLS]. The
    second text and its [SEP] have kind 1. Row `n` depends only on (seed, n).
    """

    key = "row"

    def __init__(self, source: TokenSource, tokenizer: Tokenizer, length: int, pairs: int = 1, seed: int = 0):
        """
        Raises:
            ConfigError: a setting is out of range, or the tokenizer lacks [CLS] or [SEP].
            DataError: fewer than two documents have two tokens of text, and no single one is long enough for parts.
        """
        if tokenizer.cls is None or tokenizer.sep is None:
            raise ConfigError("pairs need a tokenizer with a [CLS] and a [SEP] token (cls_token, sep_token)")
        if pairs < 1 or seed < 0 or length // pairs < 8:
            raise ConfigError(
                f"{pairs} pairs in rows of {length} tokens, seed {seed}: need at least 1 pair, 8 tokens for each, and "
                "a seed >= 0"
            )
        self.length, self.pairs, self.seed = length, pairs, seed
        self.cls, self.sep = tokenizer.cls, tokenizer.sep
        before, after = tokenizer.frame()
        source = self.source = in_parts(source, length) if len(source) == 1 else source
        self._lead = np.array([_matches(document[: len(before)], before) * len(before) for document in source])
        tail = np.array([_matches(document[len(document) - len(after) :], after) * len(after) for document in source])
        self._sizes = source.lengths - self._lead - tail
        self._usable = np.flatnonzero(self._sizes >= 2)
        if len(self._usable) < 2:
            raise DataError(
                f"{len(self._usable)} of {len(source)} documents have two tokens of text, but pairs need at least two "
                f"such documents, or a single one of at least {2 * length} tokens: half of the second texts come from "
                "another document, or from another part of a single one"
            )
        self._ends = np.cumsum(self._sizes[self._usable])
        empty = len(source) - len(self._usable)
        tokens = source.total - int(source.lengths[self._usable].sum())
        if empty:
            self.left_out = (LeftOut(empty, tokens, len(source), source.total, "shorter than two tokens of text"),)

    def identity(self) -> State:
        settings = {name: getattr(self, name) for name in ("length", "pairs", "seed", "cls", "sep")}
        return {"stream": "pairs", **settings, "source": self.source.fingerprint}

    def row(self, number: int) -> Row:
        return self._row(np.random.default_rng([self.seed, number]))

    def _row(self, draw: np.random.Generator) -> Row:
        tokens = np.zeros(self.length, dtype=np.int64)
        segment, positions = np.full(self.length, -1, dtype=np.int64), np.zeros(self.length, dtype=np.int64)
        kinds, labels = np.zeros(self.length, dtype=np.int64), np.full(self.length, IGNORED, dtype=np.int64)
        at, origin = 0, (0, 0)
        for number in range(self.pairs):
            (document, start), first, second, label = self._pair(draw)
            origin = (document, start) if not number else origin
            ids = np.concatenate([[self.cls], first, [self.sep], second, [self.sep]])
            here = slice(at, at + len(ids))
            tokens[here], segment[here], positions[here] = ids, number, np.arange(len(ids))
            kinds[at + len(first) + 2 : at + len(ids)] = 1
            labels[at] = label
            at += len(ids)
        targets = np.full(self.length, IGNORED, dtype=np.int64)
        return Row(tokens, targets, *origin, segment, positions, kinds, labels)

    def _pair(self, draw: np.random.Generator) -> tuple[tuple[int, int], np.ndarray, np.ndarray, int]:
        """((document, place of A), A, B, label)."""
        room = self.length // self.pairs - 3
        wanted = int(draw.integers(2, room + 1)) if draw.random() < SHORT else room
        document = self._document(draw)
        size = min(wanted, int(self._sizes[document]))
        start = int(draw.integers(0, self._sizes[document] - size + 1))
        cut = int(draw.integers(1, size))
        first = self._run(document, start, cut)
        if draw.random() < 0.5:
            return (document, start), first, self._run(document, start + cut, size - cut), 0
        other = document
        while other == document:
            other = self._document(draw)
        size = min(wanted - cut, int(self._sizes[other]))
        begin = int(draw.integers(0, self._sizes[other] - size + 1))
        return (document, start), first, self._run(other, begin, size), 1

    def _document(self, draw: np.random.Generator) -> int:
        """A document, drawn in proportion to its length, so that every place of the text is equally likely."""
        return int(self._usable[np.searchsorted(self._ends, draw.integers(0, self._ends[-1]), side="right")])

    def _run(self, document: int, start: int, size: int) -> np.ndarray:
        first = int(self._lead[document]) + start
        return np.asarray(self.source[document][first : first + size], dtype=np.int64)


def in_parts(source: TokenSource, length: int) -> TokenSource:
    """A single document as up to `PARTS` equal parts of at least `length` tokens; as it is if it is too short."""
    count = min(PARTS, len(source[0]) // length)
    if count < 2:
        return source
    names = [f"{source.names[0]} (part {number} of {count})" for number in range(1, count + 1)]
    return TokenSource(np.array_split(source[0], count), names, tokenizer=source.tokenizer)


def _matches(part: np.ndarray, ids: list[int]) -> bool:
    return len(part) == len(ids) and bool(np.array_equal(part, ids))
