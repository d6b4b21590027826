"""One row of a batch before it becomes tensors."""

from dataclasses import dataclass

import numpy as np

IGNORED = -100  # target of a position that is not counted


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """`length` tokens of one or more documents. Arrays are (T,); None stands for the plain case.

    `tokens` and `targets` are int64; `targets[t]` is the token that follows `tokens[t]` in its document, read from the
    document even where the row ends, and -100 at a document's end, at padding and where a token is counted elsewhere.
    `segment` numbers the documents of the row from 0 (-1: padding), `positions` restart in each of them.
    `document` and `start` say where the first token came from. Of masked rows `targets[t]` is the token that stood at
    `tokens[t]` itself. `kinds` are token types; `labels` say at a document's first token whether its second text
    follows the first (0) or not (1), and are -100 elsewhere. `source`, for encoder-decoders, is what the tokens are
    written under: a row of the same segments, whose targets nobody reads.
    """

    tokens: np.ndarray
    targets: np.ndarray
    document: int
    start: int
    segment: np.ndarray | None = None
    positions: np.ndarray | None = None
    kinds: np.ndarray | None = None
    labels: np.ndarray | None = None
    source: "Row | None" = None

    @property
    def counted(self) -> int:
        """Number of targets that are counted."""
        return int(np.count_nonzero(self.targets != IGNORED))


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of one document's tokens: `size` of them from `start`."""

    document: int
    start: int
    size: int


def join(pieces: list[Piece], documents: "list[np.ndarray]", length: int, counted: int | None = None) -> Row:
    """A row of exactly `length` from pieces in order, padded at the end; one segment per piece.

    `documents[i]` is the whole document of `pieces[i]`. Only the first `counted` targets are kept.
    """
    tokens = np.zeros(length, dtype=np.int64)
    targets = np.full(length, IGNORED, dtype=np.int64)
    segment = np.full(length, -1, dtype=np.int64)
    positions = np.zeros(length, dtype=np.int64)
    at = 0
    for number, (piece, document) in enumerate(zip(pieces, documents, strict=True)):
        here = slice(at, at + piece.size)
        tokens[here] = document[piece.start : piece.start + piece.size]
        following = document[piece.start + 1 : piece.start + piece.size + 1]
        targets[at : at + len(following)] = following
        segment[here] = number
        positions[here] = np.arange(piece.size)
        at += piece.size
    assert at <= length, (at, length)
    if counted is not None:
        targets[counted:] = IGNORED
    plain = len(pieces) == 1 and at == length
    first = pieces[0]
    return Row(tokens, targets, first.document, first.start, None if plain else segment, None if plain else positions)
