"""Groups rows into updates: a stream of the micro-batches of one optimiser step, which resumes exactly."""

from collections.abc import Iterator

from handscroll.data.batch import Batch, collate
from handscroll.data.row import Row
from handscroll.data.stream import State, Stream


class Updates(Stream[list[Batch]]):
    """Updates of `count` rows of a stream, in micro-batches of `micro` rows."""

    def __init__(self, rows: Stream[Row], count: int, micro: int):
        self.rows, self.count, self.micro = rows, count, micro

    def identity(self) -> State:
        return {"stream": "updates", "rows": self.count, "micro": self.micro, "inner": self.rows.identity()}

    def _items(self, position: State | None) -> Iterator[tuple[list[Batch], State]]:
        group: list[Row] = []
        for row, state in self.rows.resume(position["inner"] if position else None):
            group.append(row)
            if len(group) == self.count:
                parts = (group[first : first + self.micro] for first in range(0, self.count, self.micro))
                yield [collate(part) for part in parts], {"inner": state}
                group = []
