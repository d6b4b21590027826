"""Rows for blank infilling: pieces of real text with blanked spans, followed by the spans to predict.

Span lengths are drawn from Poisson(3), and the spans take 15 % of the tokens. The spans follow the text in shuffled
order (Du et al. 2022, arXiv:2103.10360, 2.1 and 2.3). Each row depends only on the seed and its number.
"""

import math
from collections.abc import Sequence

import numpy as np

from handscroll.base.errors import ConfigError, DataError
from handscroll.data.row import IGNORED, Row
from handscroll.data.sources import TokenSource
from handscroll.data.stream import Numbered, State
from handscroll.nn.blanks import SPAN
from handscroll.text.blanks import BlankTokens

LEAST = 8  # tokens of the shortest piece of text that is used


class Blanks(Numbered[Row]):
    """Endless rows of `length` tokens, packed with pieces of documents and their blanked spans.

    Positions are pairs of places (`nn/blanks.py`). In a share `document` of the pieces one blank ([gMASK]) replaces
    everything after a point in the first half (the document-level objective). In the other pieces, spans of mean length
    `mean` are blanked.
    """

    def __init__(  # noqa: PLR0913 - the settings of the objective
        self,
        source: TokenSource,
        tokens: BlankTokens,
        length: int,
        seed: int,
        share: float = 0.15,
        mean: float = 3.0,
        document: float = 0.0,
        longest: int = 0,
    ):
        """`longest` is the maximum number of tokens in one piece; 0 means the row's length.

        Raises:
            ConfigError: a setting is out of range.
            DataError: every document is too short.
        """
        if length < 2 * LEAST or seed < 0 or not 0 < share <= 0.5 or mean <= 0 or not 0 <= document <= 1:
            raise ConfigError(
                f"length {length}, seed {seed}, share {share}, mean {mean}, document {document}: need length >= "
                f"{2 * LEAST}, seed >= 0, share in (0, 0.5], mean > 0 and document in [0, 1]"
            )
        if longest and longest < LEAST:
            raise ConfigError(
                f"pieces of at most {longest} tokens are too short: give at least {LEAST}, or 0 for the row's length"
            )
        self.source, self.tokens, self.length, self.seed = source, tokens, length, seed
        self.share, self.mean, self.document, self.longest = share, mean, document, longest or length
        self._documents = np.flatnonzero(source.lengths >= LEAST)
        if not len(self._documents):
            raise DataError(f"no document has {LEAST} tokens, the least for a piece with blanks: give longer texts")
        self._ends = np.cumsum(source.lengths[self._documents] - LEAST + 1)
        self.left_out = source.shorter(LEAST, f"a piece with blanks, of {LEAST} tokens")

    def identity(self) -> State:
        names = ("length", "seed", "share", "mean", "document", "longest")
        return {"stream": "blanks", **{name: getattr(self, name) for name in names}, "source": self.source.fingerprint}

    def row(self, number: int) -> Row:
        """Row `number`: pieces as long as another one fits, then padding."""
        random = np.random.default_rng([self.seed, number])
        tokens, targets = np.zeros(self.length, dtype=np.int64), np.full(self.length, IGNORED, dtype=np.int64)
        segment, positions = np.full(self.length, -1, dtype=np.int64), np.zeros(self.length, dtype=np.int64)
        at, piece, origin = 0, 0, (0, 0)
        while (room := largest_piece(self.length - at, self.share)) >= LEAST:
            document, start, text = self._piece(random, min(room, self.longest))
            made = self._blanked(random, text)
            here = slice(at, at + len(made[0]))
            tokens[here], targets[here], positions[here] = made
            segment[here] = piece
            origin = (document, start) if not piece else origin
            at, piece = here.stop, piece + 1
        return Row(tokens, targets, *origin, segment, positions)

    def _piece(self, random: np.random.Generator, most: int) -> tuple[int, int, np.ndarray]:
        """(document, place, tokens) of a piece of at most `most` tokens; every place of the text is equally likely."""
        drawn = int(random.integers(self._ends[-1]))
        number = int(np.searchsorted(self._ends, drawn, side="right"))
        document = int(self._documents[number])
        start = drawn - (int(self._ends[number - 1]) if number else 0)
        return document, start, np.asarray(self.source[document][start : start + most], dtype=np.int64)

    def _blanked(self, random: np.random.Generator, text: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens, targets and positions of a piece."""
        if random.random() < self.document:
            begin = int(random.integers(len(text) // 2 + 1))
            return corrupt(text, [(begin, len(text))], [0], self.tokens, self.tokens.rest)
        spans = draw_spans(random, len(text), self.share, self.mean)
        return corrupt(text, spans, random.permutation(len(spans)).tolist(), self.tokens, self.tokens.blank)


def largest_piece(length: int, share: float) -> int:
    """Tokens of the longest piece of text that fits into `length` tokens together with its spans.

    Each span adds two tokens (its blank and its start token), and there are at most as many spans as blanked tokens.
    """
    return int((length - 2) / (1 + 2 * share))


def longest_span(mean: float) -> int:
    """Maximum tokens of a span. About one draw in 10^11 is longer; it is cut to this length."""
    return math.ceil(mean + 8 * math.sqrt(mean)) + 4


def draw_spans(random: np.random.Generator, size: int, share: float, mean: float) -> list[tuple[int, int]]:
    """Spans (first, end) that cover a `share` of `size` tokens, at least one token.

    The spans are in order, and at least one kept token separates two of them.
    """
    wanted = max(1, round(share * size))
    lengths: list[int] = []
    while (left := wanted - sum(lengths)) > 0:
        length = min(int(random.poisson(mean)), longest_span(mean))
        if length:
            lengths.append(min(length, left))
    random.shuffle(lengths)
    places = np.sort(random.choice(size - wanted + 1, len(lengths), replace=False))  # kept tokens before each span
    firsts = places + np.cumsum([0, *lengths[:-1]])
    return [(int(first), int(first) + length) for first, length in zip(firsts, lengths, strict=True)]


def corrupt(
    text: np.ndarray, spans: Sequence[tuple[int, int]], order: Sequence[int], tokens: BlankTokens, blank: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tokens, targets, positions) of the text with `blank` for each span, followed by the spans in `order`.

    The input of a span is [sop] and its tokens. Its targets are its tokens and [eop]. Its place is that of its blank.
    """
    given: list[int] = []
    places: list[int] = []
    done = 0
    for first, last in spans:
        given += text[done:first].tolist()
        places.append(len(given))
        given.append(blank)
        done = last
    given += text[done:].tolist()
    ids, targets, positions = list(given), [IGNORED] * len(given), list(range(len(given)))
    for number in order:
        first, last = spans[number]
        inner = text[first:last].tolist()
        ids += [tokens.start, *inner]
        targets += [*inner, tokens.end]
        positions += [places[number] + SPAN * inside for inside in range(1, len(inner) + 2)]
    return np.array(ids), np.array(targets), np.array(positions)
