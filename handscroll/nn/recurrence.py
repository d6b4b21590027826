"""A recurrent layer over rows of several documents; its state has a constant size for texts of any length.

LSTM: Hochreiter & Schmidhuber 1997; with a forget gate, Gers et al. 2000. Documents of packed rows, and rows of
different lengths, are separate sequences in one call of torch's kernel (a `PackedSequence` laid out by hand, without
padding). So a state never crosses the border of a document.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from handscroll.nn.marks import Marks
from handscroll.nn.shapes import Embeddings


@dataclass(frozen=True, eq=False)
class State:
    """The state after a layer: hidden and cell (B, D), and the document (B,) they belong to (None: 0 in every row)."""

    hidden: Tensor
    cell: Tensor
    segment: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> "State":
        """A new state in which `change` was applied to every tensor."""
        segment = None if self.segment is None else change(self.segment)
        return State(change(self.hidden), change(self.cell), segment)


class LSTMLayer(nn.Module):
    """One LSTM layer of D inputs and D outputs, with torch's parameters (gates in the order input, forget, cell,
    output).

    It computes in the dtype of its weights, under autocast too.
    """

    def __init__(self, width: int):
        super().__init__()
        self.weight_ih = nn.Parameter(torch.empty(4 * width, width))
        self.weight_hh = nn.Parameter(torch.empty(4 * width, width))
        self.bias_ih = nn.Parameter(torch.zeros(4 * width))
        self.bias_hh = nn.Parameter(torch.zeros(4 * width))

    def forward(self, x: Embeddings, before: State | None, marks: Marks) -> tuple[Embeddings, State]:
        """Outputs (B, T, D), zero at padding, and the state after each row's last real token.

        The first document of a row continues from `before` if that state belongs to the same document. Every other
        document begins with a new state.
        """
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.weight_ih.dtype)
            if before is None:
                zeros = x.new_zeros(x.shape[0], x.shape[2])
                before = State(zeros, zeros)
            elif before.hidden.shape[0] != x.shape[0]:  # several rows continue the same text
                before = before.each(lambda tensor: tensor.expand(len(x), *tensor.shape[1:]))
            if marks.plain and before.segment is None:
                out, hidden, cell = torch.lstm(
                    x.contiguous(), self._initial(before), self._weights, True, 1, 0.0, self.training, False, True
                )
                return out, State(hidden[0], cell[0])
            return self._documents(x, before, marks)

    @property
    def _weights(self) -> list[Tensor]:
        return [self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh]

    @staticmethod
    def _initial(state: State) -> tuple[Tensor, Tensor]:
        return state.hidden[None].contiguous(), state.cell[None].contiguous()

    def _documents(self, x: Tensor, before: State, marks: Marks) -> tuple[Tensor, State]:
        runs = _Runs.of(marks, x.shape[0], x.device)
        kept = x.new_zeros(x.shape[0], dtype=torch.int64) if before.segment is None else before.segment
        if not len(runs.row):
            return torch.zeros_like(x), State(before.hidden, before.cell, kept)
        goes_on = (runs.first & (kept[runs.row] == runs.segment))[:, None]
        begun = [torch.where(goes_on, tensor[runs.row], 0.0)[None] for tensor in (before.hidden, before.cell)]
        data = x.flatten(0, 1)[runs.slots]
        found, hidden, cell = torch.lstm(data, runs.sizes, begun, self._weights, True, 1, 0.0, self.training, False)
        out = torch.zeros_like(x.flatten(0, 1)).index_copy(0, runs.slots, found).view_as(x)
        rows = runs.row[runs.last]
        after = State(
            before.hidden.index_copy(0, rows, hidden[0][runs.last]),
            before.cell.index_copy(0, rows, cell[0][runs.last]),
            kept.index_copy(0, rows, runs.segment[runs.last]),
        )
        return out, after


@dataclass(frozen=True, eq=False)
class _Runs:
    """The documents of rows as N sequences, longest first, and their M tokens in the order of a `PackedSequence`.

    `slots` (M,) are places in the flattened rows. `sizes` counts the sequences that reach each step. `row` and
    `segment` (N,) say where a sequence lies, and `first` (N,) whether it is the first of its row. `last` lists the
    sequences that are the last of their rows.
    """

    slots: Tensor
    sizes: Tensor
    row: Tensor
    segment: Tensor
    first: Tensor
    last: Tensor

    @classmethod
    def of(cls, marks: Marks, batch: int, device: torch.device) -> "_Runs":
        """The runs of these marks, remembered with them since all layers of a forward ask for the same."""
        key: Any = ("documents", batch)
        if key not in marks.pieces:
            marks.pieces[key] = cls._found(marks, batch, device)
        return marks.pieces[key]

    @classmethod
    def _found(cls, marks: Marks, batch: int, device: torch.device) -> "_Runs":
        index, segment, _ = (tensor.cpu().expand(batch, -1).flatten() for tensor in marks.tensors(torch.device("cpu")))
        slots = (index >= 0).nonzero().squeeze(1)
        row, segment = slots // marks.length, segment[slots]
        begins = torch.ones(len(slots), dtype=torch.bool)
        begins[1:] = (row[1:] != row[:-1]) | (segment[1:] != segment[:-1])
        run, starts = begins.cumsum(0) - 1, begins.nonzero().squeeze(1)
        counts = torch.bincount(run, minlength=len(starts))
        order = torch.argsort(counts, descending=True, stable=True)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order))
        step = torch.arange(len(slots)) - starts[run]
        packed = torch.argsort(step * max(1, len(starts)) + rank[run])
        edge = torch.ones(len(starts), dtype=torch.bool)
        edge[1:] = row[starts][1:] != row[starts][:-1]
        end = edge.roll(-1)
        tensors = (row[starts][order], segment[starts][order], edge[order], end[order].nonzero().squeeze(1))
        return cls(slots[packed].to(device), torch.bincount(step), *(tensor.to(device) for tensor in tensors))
