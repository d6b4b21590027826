"""Pairs of examples, of which the first is the better one, as rows: for preference tuning."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from handscroll.base.errors import ConfigError, DataError
from handscroll.data.encoded import Encoded
from handscroll.data.row import Row
from handscroll.data.stream import State, Stream


class Pair(NamedTuple):
    """Two examples that begin with the same prompt; only what follows it is trained."""

    chosen: Encoded
    rejected: Encoded


class Preferred(Stream[Row]):
    """Two rows a pair, the chosen one first, each of its own length without padding.

    Pair n has the documents 2n and 2n + 1. `(seed, epoch)` decides the order; `seed=None` keeps it. `epochs=None` means
    endless. An update takes an even number of rows, in micro-batches of one row.
    """

    def __init__(self, pairs: Sequence[Pair], seed: int | None = None, epochs: int | None = 1):
        """
        Raises:
            DataError: there are no pairs. ConfigError: a setting is out of range.
        """
        if not pairs:
            raise DataError("there are no pairs to learn from")
        if (seed is not None and seed < 0) or (epochs is not None and epochs < 1):
            raise ConfigError(f"seed {seed}, epochs {epochs}: need seed >= 0 and epochs >= 1")
        self.seed, self.epochs = seed, epochs
        self.rows = [one.row(2 * number + side) for number, pair in enumerate(pairs) for side, one in enumerate(pair)]
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(row.tokens.tobytes() + row.targets.tobytes())
        self.fingerprint = digest.hexdigest()[:16]

    def identity(self) -> State:
        return {"stream": "preferred", "seed": self.seed, "epochs": self.epochs, "pairs": self.fingerprint}

    def _items(self, position: State | None) -> Iterator[tuple[Row, State]]:
        epoch, done = (position["epoch"], position["row"]) if position else (0, 0)
        while self.epochs is None or epoch < self.epochs:
            order = np.arange(len(self.rows) // 2)
            if self.seed is not None:
                order = np.random.default_rng([self.seed, epoch]).permutation(len(order))
            for number in range(done, len(self.rows)):
                yield self.rows[2 * int(order[number // 2]) + number % 2], {"epoch": epoch, "row": number + 1}
            epoch, done = epoch + 1, 0
