"""Keys and values of many requests in one pool of fixed pages, so that a request's tokens need not be contiguous.

Source: Kwon et al. 2023, "Efficient memory management for large language model serving with PagedAttention",
arXiv:2309.06180. A page holds a run of tokens of one request; a table lists each request's pages in order.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from handscroll.kernels.native import calls as native
from handscroll.nn.marks import Extent, Marks
from handscroll.nn.mask import Mask
from handscroll.nn.pieces import pieces
from handscroll.nn.span import Span


@dataclass(frozen=True, eq=False)
class Row:
    """One request: its pages in order, the index of their first token, and the number of tokens in them."""

    pages: Sequence[int]
    start: int
    length: int

    @property
    def newest(self) -> int:
        """The index of the newest token."""
        return self.start + self.length - 1

    def run(self, mask: Mask) -> tuple[int, int] | None:
        """The run of tokens that the newest token sees, as first and last + 1, counted in the pages.

        None if it is no run.
        """
        newest = self.newest
        if mask.within(Extent.run(newest, newest), Extent.run(self.start, newest)) is True:
            return 0, self.length
        marks = Marks.run(newest, 1), Marks.run(self.start, self.length)
        seen = mask.allowed(*marks, torch.device("cpu"))[0, 0].nonzero()[:, 0].tolist()
        if not seen or seen[-1] - seen[0] + 1 != len(seen):
            return None
        return seen[0], seen[-1] + 1


@dataclass(frozen=True, eq=False)
class Table:
    """The rows of one forward; it remembers results that all layers share.

    alike: no bit of a row may depend on the other rows.
    """

    page: int
    rows: Sequence[Row]
    alike: bool = False
    _runs: dict[Mask, Tensor | None] = field(default_factory=dict, repr=False)

    @cached_property
    def pages(self) -> Tensor:
        """The pages of all rows, one after the other (int64)."""
        return torch.tensor([page for row in self.rows for page in row.pages], dtype=torch.int64)

    @cached_property
    def newest(self) -> list[Marks]:
        """The marks of each row's newest token."""
        return [Marks.run(row.newest, 1) for row in self.rows]

    def runs(self, mask: Mask) -> Tensor | None:
        """For each row: where its pages begin, first and last + 1 seen token (B, 3).

        None if a row does not see a run.
        """
        if mask not in self._runs:
            self._runs[mask] = self._worked_out(mask)
        return self._runs[mask]

    def _worked_out(self, mask: Mask) -> Tensor | None:
        found, begin = [], 0
        for row in self.rows:
            run = row.run(mask)
            if run is None:
                return None
            found.append((begin, *run))
            begin += len(row.pages)
        return torch.tensor(found, dtype=torch.int64)


@dataclass(frozen=True, eq=False)
class Keys:
    """Runs of keys (span, first, last), and what a compiled kernel needs to know of them, found out once."""

    runs: Sequence[tuple[Span, int, int]]
    _refused: dict[Any, str] = field(default_factory=dict, repr=False)

    @cached_property
    def table(self) -> native.Runs:
        return native.Runs.of(self.runs)

    def refuses(self, q: Tensor) -> str:
        """Why `calls.decode_runs` does not take them with such queries, or ""."""
        kind = q.dtype, q.device.type, q.shape[-1], q.requires_grad and torch.is_grad_enabled()
        if kind not in self._refused:
            refused = (native.refuses_decode(q, span, first) for span, first, _ in self.runs)
            self._refused[kind] = next(filter(None, refused), "")
        return self._refused[kind]


@dataclass(frozen=True, eq=False)
class Past:
    """What one layer reads of a saved reading: spans (1, K, S, E) that follow each other. It lasts as long as requests
    continue the reading, and so does what was found out about it."""

    spans: Sequence[Span]

    @cached_property
    def keys(self) -> Keys:
        """All of it."""
        return Keys([(span, 0, span.marks.length) for span in self.spans])

    @cached_property
    def extent(self) -> Extent | None:
        """Its first and last token, whose positions are their numbers; None if there is nothing or that is not so."""
        starts = [span.marks.start for span in self.spans]
        if not starts or starts[0] is None or starts[-1] is None:
            return None
        first, last = starts[0], starts[-1] + self.spans[-1].marks.length - 1
        return Extent.run(first, last)

    @cached_property
    def memory(self) -> tuple[Any, ...]:
        """Which numbers it is: requests may have views of their own of the same reading (`Reading.part`)."""
        tensors = [x for span in self.spans for x in (span.keys, span.values, *(span.scales or ()))]
        return tuple((x.dtype, x.data_ptr(), x.shape, x.stride()) for x in tensors)


class Shared(NamedTuple):
    """Keys that these rows see before their pages."""

    keys: Keys
    rows: list[int]


@dataclass(frozen=True, eq=False)
class Pages:
    """The keys and values that one new token of every row reads in one layer: the pool (K, slots, E) and each row's
    past.

    `past` gives for each row what stands before its pages, a saved reading, if any.
    """

    keys: Tensor
    values: Tensor
    table: Table
    past: Sequence[Past | None]
    _shared: dict[Mask, list[Shared] | None] = field(default_factory=dict, repr=False)

    def spans(self, number: int) -> list[Span]:
        """The spans that one row reads; its pages are copied."""
        row = self.table.rows[number]
        keys, values = (gathered(x, row.pages, self.table.page)[:, :, : row.length] for x in (self.keys, self.values))
        past = self.past[number]
        return [*(past.spans if past else ()), Span(keys, values, Marks.run(row.start, row.length))]

    def shared(self, mask: Mask) -> list[Shared] | None:
        """What the rows see of their pasts, each once with the rows that see it; those of a row in order.

        A row that sees all of its past has it as one. None if a row sees something else than whole runs.
        """
        if mask not in self._shared:
            self._shared[mask] = self._worked_out(mask)
        return self._shared[mask]

    def _worked_out(self, mask: Mask) -> list[Shared] | None:
        found: dict[tuple[Any, ...], Shared] = {}
        for number, (past, marks) in enumerate(zip(self.past, self.table.newest, strict=True)):
            if past is None:
                continue
            if past.extent is not None and mask.within(marks.extents((0, 1))[0][0], past.extent) is True:
                found.setdefault(past.memory, Shared(past.keys, [])).rows.append(number)
                continue
            for span in past.spans:
                for piece in pieces(mask, marks, span.marks):
                    if piece.mask is not None or piece.square:
                        return None
                    where = piece.first, piece.last
                    one = Shared(Keys([(span, *where)]), [])
                    found.setdefault((span.keys.data_ptr(), span.values.data_ptr(), *where), one).rows.append(number)
        return list(found.values())

    def part(self, numbers: Sequence[int]) -> "Pages":
        """The pages of some of the rows."""
        table = Table(self.table.page, [self.table.rows[number] for number in numbers], self.table.alike)
        return Pages(self.keys, self.values, table, [self.past[number] for number in numbers])


def gathered(
    pool: Float[Tensor, "K slots E"], pages: Sequence[int], page: int, view: bool = False
) -> Float[Tensor, "1 K tokens E"]:
    """A copy of some pages of `page` tokens, in their order; with `view`, consecutive pages are not copied."""
    first = pages[0] if pages else 0
    if view and list(pages) == list(range(first, first + len(pages))):
        return pool[None, :, first * page : (first + len(pages)) * page]
    cut = pool.view(pool.shape[0], -1, page, pool.shape[2])
    return cut.index_select(1, torch.tensor(pages, device=pool.device)).flatten(1, 2)[None]
