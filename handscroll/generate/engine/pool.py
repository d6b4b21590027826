"""The pool of keys and values, and the keepers that a forward of the engine appends to."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from handscroll.generate.engine.job import Job
from handscroll.models.model import Model
from handscroll.nn.marks import Marks
from handscroll.nn.pages import Pages, Row, Table, gathered
from handscroll.nn.span import Span


class Pool:
    """Keys and values (K, count x size, E) of every layer, in `count` blocks of `size` tokens.

    With `poison`, what a block held is overwritten with not-a-number when it is given up, so that whoever still reads
    it is found out.
    """

    def __init__(self, model: Model, count: int, size: int, poison: bool = False):
        config, self.size, self.poison = model.config, size, poison
        shape = (config.kv_heads, count * size, config.head_size)
        fill = math.nan if poison else None
        self.keys, self.values = (
            [_room(shape, model.dtype, model.device, fill) for _ in range(config.layers)] for _ in "kv"
        )

    @property
    def nbytes(self) -> int:
        return sum(x.numel() * x.element_size() for x in (*self.keys, *self.values))

    def give_up(self, block: int) -> None:
        """The content of a block is not needed any more."""
        if self.poison:
            for x in (*self.keys, *self.values):
                x[:, block * self.size : (block + 1) * self.size] = math.nan

    def slot(self, job: Job, token: int) -> int:
        """Where the keys and values of a token of a request lie."""
        number, place = divmod(token - job.before, self.size)
        return job.blocks[number] * self.size + place

    def write(
        self, layer: int, slots: Int[Tensor, "n"], keys: Float[Tensor, "K n E"], values: Float[Tensor, "K n E"]
    ) -> None:
        """Put keys and values of one layer into n slots."""
        self.keys[layer].index_copy_(1, slots, keys)
        self.values[layer].index_copy_(1, slots, values)


@dataclass(eq=False)
class Rows:
    """Keeps one new token of each of several requests."""

    pool: Pool
    jobs: Sequence[Job]

    def __post_init__(self):
        device = self.pool.keys[0].device
        self._slots = torch.tensor([self.pool.slot(r, r.done) for r in self.jobs], device=device)
        rows = [Row(r.blocks, r.before, r.done + 1 - r.before) for r in self.jobs]
        self._table = Table(self.pool.size, rows)

    def append(self, layer: int, keys: Tensor, values: Tensor, marks: Marks) -> Pages:
        self.pool.write(layer, self._slots, keys[:, :, 0].transpose(0, 1), values[:, :, 0].transpose(0, 1))
        past = [_past(job, layer) for job in self.jobs]
        return Pages(self.pool.keys[layer], self.pool.values[layer], self._table, past)

    def commit(self) -> None:
        """Nothing: the scheduler counts what was read."""


@dataclass(eq=False)
class Run:
    """Keeps tokens first .. last - 1 of one request; with `copy`, what came before is read from a copy in any case."""

    pool: Pool
    job: Job
    first: int
    last: int
    copy: bool

    def __post_init__(self):
        slots = [self.pool.slot(self.job, token) for token in range(self.first, self.last)]
        self._slots = torch.tensor(slots, device=self.pool.keys[0].device)

    def append(self, layer: int, keys: Tensor, values: Tensor, marks: Marks) -> list[Span]:
        self.pool.write(layer, self._slots, keys[0], values[0])
        length, size = self.last - self.job.before, self.pool.size
        blocks = self.job.blocks[: -(-length // size)]
        keys, values = (
            gathered(x[layer], blocks, size, view=not self.copy)[:, :, :length]
            for x in (self.pool.keys, self.pool.values)
        )
        return [*_past(self.job, layer), Span(keys, values, Marks.run(self.job.before, length))]

    def commit(self) -> None:
        """Nothing: the scheduler counts what was read."""


def _past(job: Job, layer: int) -> Sequence[Span]:
    return () if job.request.reading is None else job.request.reading.spans[layer]


def _room(shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device, fill: float | None) -> Tensor:
    if fill is None:
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.full(shape, fill, dtype=dtype, device=device)
