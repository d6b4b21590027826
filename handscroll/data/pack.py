"""Packed rows: rows of one length, made from documents of any length, that keep the documents' boundaries."""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from handscroll.base.errors import ConfigError
from handscroll.data.row import Piece, Row, join
from handscroll.data.sources import TokenSource
from handscroll.data.stream import State, Stream


class Packed(Stream[Row]):
    """Documents one after the other in rows of `length` tokens; the last row of an epoch is padded.

    Each row has segments (0, 1, 2, ...; -1 for padding), and positions restart in each segment. When a row ends within
    a document, `tails` decides: with "keep" the next row continues the document as a new segment; with "drop" the rest
    of the document is left out (`left_out` counts these tokens of the first epoch; an epoch in another order leaves out
    others), so every segment begins at a document's beginning. The last target of a row is read from the document. So
    with "keep" every token is a target exactly once, except the first token of each document.

    `(seed, epoch)` decides the order of the documents; `seed=None` keeps their order. `epochs=None` means endless.
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
            ConfigError: a setting is out of range.
        """
        if tails not in ("keep", "drop"):
            raise ConfigError(f"tails = {tails!r}; allowed are 'keep' and 'drop'")
        if length < 1 or (seed is not None and seed < 0) or (epochs is not None and epochs < 1):
            raise ConfigError(f"length {length}, seed {seed}, epochs {epochs}: need length and epochs >= 1, seed >= 0")
        self.source, self.length, self.tails, self.seed, self.epochs = source, length, tails, seed, epochs
        if tails == "drop":
            kept = sum(piece.size for row in self._layout(0) for piece in row)
            self.left_out = source.cut(source.total - kept, "behind the end of a row")

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
            # A skipped row costs only its layout (a few integers); its tokens are not read.
            for number, pieces in enumerate(self._layout(epoch)):
                if number >= done:
                    row = join(pieces, [self.source[piece.document] for piece in pieces], self.length)
                    yield row, {"epoch": epoch, "row": number + 1}
            epoch, done = epoch + 1, 0


def pack(documents: Sequence[np.ndarray], length: int, tails: Literal["keep", "drop"] = "keep") -> Iterator[Row]:
    """The rows of `Packed` for plain token arrays, in order, without states.

    >>> [row.segment.tolist() for row in pack([np.array([5, 6, 7]), np.array([8, 9])], length=4)]
    [[0, 0, 0, 1], [0, -1, -1, -1]]
    """
    return (row for row, _ in Packed(TokenSource(documents), length, tails))
