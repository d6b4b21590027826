"""Packed rows of whole examples, of which only some tokens are trained; no example sees another."""

import bisect
import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from handscroll.base.errors import ConfigError, DataError
from handscroll.data.encoded import Encoded
from handscroll.data.row import IGNORED, Piece, Row, join
from handscroll.data.stream import State, Stream

OPEN = 64  # rows that are filled at once: more fill the rows better, fewer keep the order of the examples


class Examples(Stream[Row]):
    """Rows of `length` tokens, each with as many whole examples as fit (best fit), and padding.

    Every example is a segment with its own positions, so the loss is that of rows with one example each, which come
    with `pack=False`. `(seed, epoch)` decides the order; `seed=None` keeps it. `epochs=None` means endless.
    """

    def __init__(
        self,
        examples: Sequence[Encoded],
        length: int,
        seed: int | None = None,
        epochs: int | None = 1,
        pack: bool = True,
    ):
        """
        Raises:
            ConfigError: a setting is out of range.
            DataError: there are no examples, or one is longer than a row (`data/encoded.py: fitting`).
        """
        if length < 1 or (seed is not None and seed < 0) or (epochs is not None and epochs < 1):
            raise ConfigError(f"length {length}, seed {seed}, epochs {epochs}: need length and epochs >= 1, seed >= 0")
        self.sizes = [len(one) for one in examples]
        if not self.sizes or max(self.sizes) > length:
            raise DataError(f"{len(self.sizes)} examples of up to {max(self.sizes, default=0)} tokens for {length}")
        self.length, self.seed, self.epochs, self.pack = length, seed, epochs, pack
        self._ids = [np.array(one.ids, dtype=np.int32) for one in examples]
        self._trained = [np.array(one.trained) for one in examples]
        digest = hashlib.sha256(np.array(self.sizes).tobytes())
        for ids, trained in zip(self._ids, self._trained, strict=True):
            digest.update(ids.tobytes() + trained.tobytes())
        self.fingerprint = digest.hexdigest()[:16]

    def identity(self) -> State:
        settings = {name: getattr(self, name) for name in ("length", "seed", "epochs", "pack")}
        return {"stream": "examples", **settings, "examples": self.fingerprint}

    def rows(self, epoch: int = 0) -> int:
        """Number of rows of an epoch."""
        return len(self._layout(epoch))

    def row(self, numbers: Sequence[int]) -> Row:
        """The row that holds these examples."""
        pieces = [Piece(number, 0, self.sizes[number]) for number in numbers]
        row = join(pieces, [self._ids[number] for number in numbers], self.length)
        first = 0
        for number in numbers:
            last = first + self.sizes[number]
            row.targets[first : last - 1][~self._trained[number][1:]] = IGNORED
            first = last
        return row

    def _layout(self, epoch: int) -> list[list[int]]:
        """The examples of each row: integers only, so a resumed run makes them again."""
        order = range(len(self.sizes))
        if self.seed is not None:
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self.sizes)).tolist()
        if not self.pack:
            return [[number] for number in order]
        done: list[list[int]] = []
        open_rows: list[tuple[int, int]] = []  # (room, row), in order
        for number in order:
            size = self.sizes[number]
            at = bisect.bisect_left(open_rows, (size, 0))
            if at < len(open_rows):
                room, row = open_rows.pop(at)
            else:
                room, row = self.length, len(done)
                done.append([])
            done[row].append(number)
            bisect.insort(open_rows, (room - size, row))
            if len(open_rows) > OPEN:
                open_rows.pop(0)  # the fullest
        return done

    def _items(self, position: State | None) -> Iterator[tuple[Row, State]]:
        epoch, done = (position["epoch"], position["row"]) if position else (0, 0)
        while self.epochs is None or epoch < self.epochs:
            layout = self._layout(epoch)
            for number in range(done, len(layout)):
                yield self.row(layout[number]), {"epoch": epoch, "row": number + 1}
            epoch, done = epoch + 1, 0
