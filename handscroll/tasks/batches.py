"""Updates of whole examples: the same number in each, packed into rows in which they do not see each other."""

from collections.abc import Iterator, Sequence

import numpy as np

from handscroll.base.errors import ConfigError
from handscroll.data.batch import Batch, collate
from handscroll.data.row import IGNORED, Row
from handscroll.data.stream import State, Stream


class ExampleUpdates(Stream[list[Batch]]):
    """Endless updates of `count` examples each; (seed, epoch) decides the order, and every epoch has each of them once.

    The examples of an update are packed into rows of at most `length` tokens; each row is a micro-batch. The last
    update of an epoch is completed with the first examples of the next one. `fingerprint` names the examples.
    """

    def __init__(self, rows: Sequence[Row], count: int, length: int, seed: int, fingerprint: str):
        """
        Raises:
            ConfigError: a setting is out of range, or a row is longer than `length`.
        """
        longest = max((len(row.tokens) for row in rows), default=0)
        if not rows or count < 1 or seed < 0 or longest > length:
            raise ConfigError(
                f"{len(rows)} examples of at most {longest} tokens, {count} in an update, rows of {length} tokens, "
                f"seed {seed}: examples are never cut, so give longer rows, and positive numbers"
            )
        self.rows, self.count, self.length, self.seed, self.fingerprint = rows, count, length, seed, fingerprint

    def identity(self) -> State:
        settings = {"count": self.count, "length": self.length, "seed": self.seed}
        return {"stream": "example updates", "of": self.fingerprint, "number": len(self.rows), **settings}

    def _items(self, position: State | None) -> Iterator[tuple[list[Batch], State]]:
        done = position["done"] if position else 0
        while True:
            chosen = [self.rows[self._at(number)] for number in range(done, done + self.count)]
            done += self.count
            yield [collate([row]) for row in packed(chosen, self.length)], {"done": done}

    def _at(self, number: int) -> int:
        """Which example comes as number `number` of all epochs."""
        epoch, place = divmod(number, len(self.rows))
        if getattr(self, "_order", (None,))[0] != epoch:
            self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))
        return int(self._order[1][place])


def packed(rows: Sequence[Row], length: int) -> list[Row]:
    """The rows joined into few of at most `length` tokens: best fit, the longest first (Johnson 1973)."""
    bins: list[list[Row]] = []
    room: list[int] = []
    for row in sorted(rows, key=lambda one: -len(one.tokens)):
        size = len(row.tokens)
        fitting = [number for number, left in enumerate(room) if left >= size]
        if fitting:
            best = min(fitting, key=room.__getitem__)
            bins[best].append(row)
            room[best] -= size
        else:
            bins.append([row])
            room.append(length - size)
    return [joined(part) for part in bins]


def joined(rows: Sequence[Row]) -> Row:
    """Several rows as one; each keeps its positions, and its segments stay apart from those of the others."""
    if len(rows) == 1:
        return rows[0]
    segments, first = [], 0
    for row in rows:
        own = np.zeros(len(row.tokens), dtype=np.int64) if row.segment is None else row.segment
        segments.append(np.where(own < 0, -1, own + first))
        first += int(own.max()) + 1
    positions = [np.arange(len(row.tokens)) if row.positions is None else row.positions for row in rows]
    kinds = [row.kinds for row in rows]
    some = [kind for kind in kinds if kind is not None]
    filled = [np.zeros(len(row.tokens), dtype=np.int64) if row.kinds is None else row.kinds for row in rows]
    return Row(
        np.concatenate([row.tokens for row in rows]),
        np.concatenate([row.targets for row in rows]),
        rows[0].document,
        rows[0].start,
        np.concatenate(segments),
        np.concatenate(positions),
        np.concatenate(filled) if some else None,
        _labels(rows),
    )


def _labels(rows: Sequence[Row]) -> np.ndarray | None:
    if all(row.labels is None for row in rows):
        return None
    return np.concatenate([np.full(len(r.tokens), IGNORED) if r.labels is None else r.labels for r in rows])
