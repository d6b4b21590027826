"""The two keepers of the engine: one new token for each of several requests, or several tokens of one request."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from handscroll.cache.pool import Pool
from handscroll.generate.engine.job import Job
from handscroll.nn.keeper import Keeper
from handscroll.nn.marks import Marks
from handscroll.nn.pages import Pages, Past, Row, Table, gathered
from handscroll.nn.span import Span


@dataclass(eq=False)
class Rows(Keeper):
    """Keeps one new token of each of several requests."""

    pool: Pool
    jobs: Sequence[Job]
    alike: bool  # no bit of a request may depend on the others

    def __post_init__(self):
        device, size = self.pool.keys[0].device, self.pool.size
        self._slots: dict[int, Tensor] = {}  # by space
        self._tables: dict[int, Table] = {}
        for space in set(self.pool.space_of):
            slots = [r.slot(space, r.done, size) for r in self.jobs]
            self._slots[space] = torch.tensor(slots, device=device)
            self._tables[space] = Table(size, [_row(r, space, r.done + 1, size) for r in self.jobs], self.alike)

    def append(self, layer: int, keys: Tensor, values: Tensor, marks: Marks) -> Pages:
        space = self.pool.space_of[layer]
        self.pool.write(layer, self._slots[space], keys[:, :, 0].transpose(0, 1), values[:, :, 0].transpose(0, 1))
        past = [_past(job, layer, self.pool.keys[layer].device) for job in self.jobs]
        return Pages(self.pool.keys[layer], self.pool.values[layer], self._tables[space], past)


@dataclass(eq=False)
class Run(Keeper):
    """Keeps tokens first .. last - 1 of one request; with `copy`, what came before is read from a copy in any case."""

    pool: Pool
    job: Job
    first: int
    last: int
    copy: bool

    def __post_init__(self):
        device, size, tokens = self.pool.keys[0].device, self.pool.size, range(self.first, self.last)
        spaces = set(self.pool.space_of)
        slots = {space: [self.job.slot(space, token, size) for token in tokens] for space in spaces}
        self._slots = {space: torch.tensor(found, device=device) for space, found in slots.items()}
        self._rows = {space: _row(self.job, space, self.last, size) for space in spaces}
        self._marks = {space: Marks.run(row.start, row.length) for space, row in self._rows.items()}

    def append(self, layer: int, keys: Tensor, values: Tensor, marks: Marks) -> list[Span]:
        space = self.pool.space_of[layer]
        self.pool.write(layer, self._slots[space], keys[0], values[0])
        row = self._rows[space]
        keys, values = (
            gathered(x[layer], row.pages, self.pool.size, view=not self.copy)[:, :, : row.length]
            for x in (self.pool.keys, self.pool.values)
        )
        past = _past(self.job, layer, self.pool.keys[layer].device)
        return [*(past.spans if past else ()), Span(keys, values, self._marks[space])]


def _row(job: Job, space: int, last: int, size: int) -> Row:
    """The blocks that a request holds in one space for its tokens before `last`."""
    held = job.held[space]
    start = job.before + held.dropped * size
    return Row(held.blocks[: -(-(last - start) // size)], start, last - start)


def _past(job: Job, layer: int, device: torch.device) -> Past | None:
    if job.request.reading is None:
        return None
    if job.there is None:
        job.there = job.request.reading.on(device)
    return job.there.pasts[layer]
