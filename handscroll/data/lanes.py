"""Documents in lanes, so that every row of an update continues the same row of the update before it."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from handscroll.base.errors import ConfigError, DataError
from handscroll.data.row import Row
from handscroll.data.sources import TokenSource
from handscroll.data.stream import State, Stream


class Lanes(Stream[Row]):
    """Rows of `count` streams in turn: row n is row n // count of lane n % count.

    Lane i reads documents i, i + count, ...: `read` makes its stream of them, which must come in reading order for
    rows to continue each other: `Repeat(SlidingWindows(...))`, `CyclicWindows(..., order="reading")`. So updates of
    `count` rows continue each other row by row, as a recurrent memory needs it. `row.document` is the number in the
    whole source: two lanes never share one. Ends with the first lane that ends.

    Limits: a lane of fewer tokens comes round more often, so its documents are seen more often. What continues is
    read from document and start alone, so a ring's memory begins anew at its seam.
    """

    def __init__(self, source: TokenSource, count: int, read: Callable[[TokenSource], Stream[Row]]):
        """
        Raises:
            ConfigError: no lane.
            DataError: fewer documents than lanes; what `read` raises.
        """
        if count < 1:
            raise ConfigError(f"{count} lanes: at least 1 is needed")
        if len(source) < count:
            raise DataError(
                f"{len(source)} documents for {count} lanes, but every row of an update reads documents of its own; "
                f"give more documents (or cut these into {count}), or make at most {len(source)} rows an update"
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
