"""Contiguous rows: each row of an update continues the same row of the previous update."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from handscroll.base.errors import ConfigError, DataError
from handscroll.data.row import Row
from handscroll.data.sources import TokenSource
from handscroll.data.stream import State, Stream


class Lanes(Stream[Row]):
    """Takes rows from `count` streams (lanes) in turn: row n is row n // count of lane n % count.

    Lane i holds documents i, i + count, ... `read` makes its stream of rows. For contiguous rows that stream must be in
    reading order: `Repeat(SlidingWindows(...))`, `CyclicWindows(..., order="reading")`. Then updates of `count` rows
    continue each other row by row, which a recurrent memory needs. `row.document` is the number in the whole source;
    two lanes never share a document. The stream ends when one lane ends.

    Limits: a lane with fewer tokens repeats sooner, so its documents are seen more often. Continuation is recognised by
    document and start only, so with rings the memory starts anew at the seam.
    """

    def __init__(self, source: TokenSource, count: int, read: Callable[[TokenSource], Stream[Row]]):
        """
        Raises:
            ConfigError: `count` is below 1.
            DataError: there are fewer documents than lanes, or `read` raises it.
        """
        if count < 1:
            raise ConfigError(f"count is {count} lanes, but at least 1 is needed")
        if len(source) < count:
            raise DataError(
                f"there are {len(source)} documents for {count} lanes, but each row of an update reads its own "
                f"documents: give more documents (or cut these into {count}), or use at most {len(source)} rows per "
                "update"
            )
        self.count = count
        self.lanes = tuple(read(source.every(lane, count)) for lane in range(count))

    def identity(self) -> State:
        return {"stream": "lanes", "count": self.count, "inner": [lane.identity() for lane in self.lanes]}

    def _items(self, position: State | None) -> Iterator[tuple[Row, State]]:
        at = position["lane"] if position else 0
        states: list[State | None] = list(position["inner"]) if position else [None] * self.count
        rows = [lane.resume(state) for lane, state in zip(self.lanes, states, strict=True)]
        while True:
            following = next(rows[at], None)
            if following is None:
                return
            row, states[at] = following
            row = replace(row, document=row.document * self.count + at)
            at = (at + 1) % self.count
            yield row, {"lane": at, "inner": list(states)}
