"""One row of a batch, as numpy arrays."""

from dataclasses import dataclass

import numpy as np

IGNORED = -100  # target of a position that does not count in the loss


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """T tokens of one or more documents. All arrays are (T,); the optional ones are None in the plain case.

    - `tokens` and `targets` are int64. `targets[t]` is the token after `tokens[t]` in its document; for the last token
      of a row it is read from the document. It is -100 at a document's end, at padding and where another row counts the
      token. In masked rows `targets[t]` is the original token at t itself.
    - `document` and `start` give the place of the first token: the document's number and the offset in it.
    - `segment` numbers the documents of the row from 0 (-1: padding), and `positions` restart in each of them.
    - `kinds` are token types.
    - `labels` stand at a document's first token: 0 if its second text follows the first, 1 if not; -100 elsewhere.
    - `source` is the encoder's input, for encoder-decoders: a row with the same segments, whose targets are unused.
    - `note` says what is special about the form of an example (`data/encoded.py`).
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
    note: str = ""

    @property
    def counted(self) -> int:
        """Number of targets that count in the loss."""
        return int(np.count_nonzero(self.targets != IGNORED))


@dataclass(frozen=True, slots=True)
class Piece:
    """`size` tokens of one document, from `start` on."""

    document: int
    start: int
    size: int


def join(pieces: list[Piece], documents: "list[np.ndarray]", length: int, counted: int | None = None) -> Row:
    """A row of exactly `length` tokens: the pieces in order, one segment for each, then padding.

    `documents[i]` is the whole document of `pieces[i]`. If `counted` is given, only the first `counted` targets count.
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
