"""What each token carries besides its vector: its order, its document and its position.

Masks and rotary tables read marks, never the physical slot of a token. So packing, padding, rows of different lengths
and eviction are right by construction.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

PADDING = -1


class Extent(NamedTuple):
    """Smallest and largest index, segment and position of a run of tokens of one row.

    Masks are first asked about these.
    """

    first: int
    last: int
    low: int = 0
    high: int = 0
    near: int = 0
    far: int = 0

    @classmethod
    def run(cls, first: int, last: int) -> "Extent":
        """Tokens of one document whose positions are their indices."""
        return cls(first, last, near=first, far=last)


@dataclass(frozen=True, eq=False)
class Marks:
    """Marks of `length` tokens in every row of a batch.

    They are either a plain run or three tensors. In a plain run `start` is set, index and position count up from it,
    there is one document and no padding, and no tensor is held. Otherwise there are three int64 tensors (B, length):
    `index`, the order of a token in its row (-1 is padding, which is never attended to); `segment`, the number of its
    document in the row; and `positions`, the numbers that rotate vectors or select rows of a learned table. `kinds` (B,
    length) is BERT's token type (None: 0 everywhere); only an embedding reads it. The tensors lie on the device of the
    tokens.
    """

    length: int
    start: int | None = None
    index: Tensor | None = None
    segment: Tensor | None = None
    positions: Tensor | None = None
    kinds: Tensor | None = None
    _extents: dict[tuple[int, ...], list[list[Extent]]] = field(default_factory=dict, repr=False)
    pieces: dict[Any, Any] = field(default_factory=dict, repr=False)  # what `nn/pieces.py` remembers

    @classmethod
    def run(cls, start: int, length: int) -> Self:
        """The plain case: `length` tokens of one document, counted from `start`."""
        return cls(length=length, start=start)

    @classmethod
    def of(
        cls,
        index: Tensor,
        segment: Tensor | None = None,
        positions: Tensor | None = None,
        kinds: Tensor | None = None,
    ) -> Self:
        """Marks from tensors (B, T). Defaults: one document, positions equal to the index, kind 0."""
        segment = torch.zeros_like(index) if segment is None else segment
        positions = index.clamp_min(0) if positions is None else positions
        return cls(length=index.shape[1], index=index, segment=segment, positions=positions, kinds=kinds)

    @classmethod
    def rows(cls, starts: Tensor, lengths: Tensor) -> Self:
        """Right-padded rows: row b holds tokens starts[b] .. starts[b] + lengths[b] - 1, then padding."""
        steps = torch.arange(int(lengths.max()), device=lengths.device)
        index = torch.where(steps < lengths[:, None], starts[:, None] + steps, PADDING)
        return cls.of(index)

    @property
    def plain(self) -> bool:
        return self.start is not None

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """(index, segment, positions), each int64 (B, T), or (1, T) for a plain run, which are made on `device`."""
        if self.start is not None:
            index = torch.arange(self.start, self.start + self.length, device=device)[None]
            return index, torch.zeros_like(index), index
        assert self.index is not None and self.segment is not None and self.positions is not None
        return self.index, self.segment, self.positions

    def extents(self, edges: tuple[int, ...]) -> list[list[Extent]]:
        """For every block edges[i] .. edges[i + 1] - 1, the extent of each row (one row for a plain run).

        The result is remembered, since all layers of a forward ask for the same blocks.
        """
        blocks = list(pairwise(edges))
        if self.start is not None:
            edges_of = [(self.start + a, self.start + b - 1) for a, b in blocks]
            return [[Extent.run(first, last)] for first, last in edges_of]
        if edges not in self._extents:
            every = self.tensors(torch.device("cpu"))
            columns = [
                torch.stack([t for block in blocks for t in torch.aminmax(marks[:, slice(*block)], dim=1)])
                for marks in every
            ]
            numbers = torch.stack(columns).cpu().view(3, len(blocks), 2, -1).permute(1, 3, 0, 2).flatten(2).tolist()
            self._extents[edges] = [[Extent(*row) for row in block] for block in numbers]
        return self._extents[edges]

    def part(self, first: int, last: int) -> "Marks":
        """The marks of tokens first .. last - 1 (counted inside these marks)."""
        if (first, last) == (0, self.length):
            return self
        if self.start is not None:
            return Marks.run(self.start + first, last - first)
        every = (*self.tensors(torch.device("cpu")), self.kinds)
        return Marks.of(*(None if marks is None else marks[:, first:last] for marks in every))  # type: ignore[arg-type]

    def take_rows(self, rows: Tensor) -> "Marks":
        """The marks of the given batch rows; a plain run is the same for all rows."""
        if self.plain:
            return self
        every = (*self.tensors(rows.device), self.kinds)
        return Marks.of(*(None if marks is None else marks[rows] for marks in every))  # type: ignore[arg-type]

    def joined(self, more: "Marks", batch: int, device: torch.device) -> "Marks":
        """These marks with `more` after them."""
        return Marks.join([self, more], batch, device) if self.length else more

    @staticmethod
    def join(parts: Sequence["Marks"], batch: int, device: torch.device) -> "Marks":
        """Concatenate marks without their kinds; plain runs that follow each other stay a plain run."""
        parts = [part for part in parts if part.length]
        starts = [part.start for part in parts]
        follow = all(a is not None and a + p.length == b for a, p, b in zip(starts, parts, starts[1:], strict=False))
        if parts and starts[0] is not None and follow:
            return Marks.run(starts[0], sum(part.length for part in parts))
        columns = zip(*(part.tensors(device) for part in parts), strict=True)
        return Marks.of(*(torch.cat([t.expand(batch, -1) for t in column], dim=1) for column in columns))
