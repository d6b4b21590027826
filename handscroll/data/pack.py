"""Rows of exactly one length from documents of any length, with their boundaries."""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from handscroll.base.errors import ConfigError
from handscroll.data.row import Piece, Row, join
from handscroll.data.sources import TokenSource
from handscroll.data.stream import State, Stream


class Packed(Stream[Row]):
    """Documents one behind the other in rows of `length`; the last row of an epoch is padded.

    Each row carries segments (0, 1, 2, ...; -1 padding) and positions that restart with each of them. A document that
    meets the end of its row goes on in the next row as a new segment (`tails="keep"`), or its rest is left out
    (`tails="drop"`: no segment begins in mid-document; `dropped` counts the tokens). The last target of a row is
    read from the document, so with "keep" every token but each document's first is a target exactly once.

    `seed` shuffles the documents by `(seed, epoch)`; None keeps their order. One epoch unless `epochs` says otherwise
    (None: without end).
    """

    def __init__(
        self,
        source: TokenSource,
        length: int,
        tails: Literal["keep", "drop"] = "keep",
        seed: int | None = None,
        epochs: int | None = 1,
    ):
        """
        Raises:
            ConfigError: a setting out of range.
        """
        if tails not in ("keep", "drop"):
            raise ConfigError(f"tails = {tails!r}; allowed are 'keep' and 'drop'")
        if length < 1 or (seed is not None and seed < 0) or (epochs is not None and epochs < 1):
            raise ConfigError(f"length {length}, seed {seed}, epochs {epochs}: need length and epochs >= 1, seed >= 0")
        self.source, self.length, self.tails, self.seed, self.epochs = source, length, tails, seed, epochs
        self.dropped = (
            source.total - sum(piece.size for row in self._layout(0) for piece in row) if tails == "drop" else 0
        )

    def identity(self) -> State:
        settings = {name: getattr(self, name) for name in ("length", "tails", "seed", "epochs")}
        return {"stream": "packed", **settings, "source": self.source.fingerprint}

    def _layout(self, epoch: int) -> Iterator[list[Piece]]:
        order = range(len(self.source))
        if self.seed is not None:
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self.source)).tolist()
        row: list[Piece] = []
        room = self.length
        for document in order:
            start, left = 0, int(self.source.lengths[document])
            while left:
                size = min(room, left)
                row.append(Piece(document, start, size))
                start, left, room = start + size, left - size, room - size
                if not room:
                    yield row
                    row, room = [], self.length
                    left = left if self.tails == "keep" else 0
        if row:
            yield row

    def _items(self, position: State | None) -> Iterator[tuple[Row, State]]:
        epoch, done = (position["epoch"], position["row"]) if position else (0, 0)
        while self.epochs is None or epoch < self.epochs:
            # Skipped rows only cost their layout (a few integers), not their tokens.
            for number, pieces in enumerate(self._layout(epoch)):
                if number >= done:
                    row = join(pieces, [self.source[piece.document] for piece in pieces], self.length)
                    yield row, {"epoch": epoch, "row": number + 1}
            epoch, done = epoch + 1, 0


def pack(documents: Sequence[np.ndarray], length: int, tails: Literal["keep", "drop"] = "keep") -> Iterator[Row]:
    """Rows of `Packed` over bare token arrays, in order, without states.

    >>> [row.segment.tolist() for row in pack([np.array([5, 6, 7]), np.array([8, 9])], length=4)]
    [[0, 0, 0, 1], [0, -1, -1, -1]]
    """
    return (row for row, _ in Packed(TokenSource(documents), length, tails))
