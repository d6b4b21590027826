"""Batches: rows stacked to tensors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from handscroll.base.errors import DataError
from handscroll.data.row import IGNORED, Row
from handscroll.nn.marks import Marks


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Tokens and their targets, each (B, T) int64.

    - `targets[b, t]` is the token after `tokens[b, t]` in its document; -100 means that it does not count.
    - `index` is the order in the row, `segment` the document in the row (both -1 at padding) and `positions` the place
      in the document's piece. All three are None in the plain case, when each row is one document without padding;
      `start` is then the position of the first column.
    - `width` is the length of the rows from which these columns were cut (0: this batch was not cut).
    - `origins` (B, 2), if known, holds the document of each row's first token and its place in that document.
    - `kinds` and `labels` (B, T) are those of `data/row.py: Row`; None if no row has any.
    - `source` holds the encoder's input for each row, for encoder-decoders. It is never cut into columns.
    """

    tokens: Tensor
    targets: Tensor
    index: Tensor | None = None
    segment: Tensor | None = None
    positions: Tensor | None = None
    origins: Tensor | None = None
    start: int = 0
    width: int = 0
    kinds: Tensor | None = None
    labels: Tensor | None = None
    source: "Batch | None" = None

    @property
    def size(self) -> int:
        """Number of tokens that the model reads: rows and their sources, padding included."""
        return self.tokens.numel() + (0 if self.source is None else self.source.tokens.numel())

    @property
    def counted(self) -> int:
        """Number of targets that count; the loss is divided by it."""
        return int((self.targets != IGNORED).sum())

    @property
    def filled(self) -> int:
        """Number of columns up to the last one that holds a token in some row (at least 1)."""
        if self.index is None:
            return self.tokens.shape[1]
        columns = (self.index >= 0).any(dim=0).nonzero()
        return int(columns[-1]) + 1 if len(columns) else 1

    def marks(self) -> Marks:
        """The marks of these tokens, for masks and positions."""
        if self.index is None:
            return Marks.run(self.start, self.tokens.shape[1])
        return Marks.of(self.index, self.segment, self.positions, self.kinds)

    def part(self, first: int, last: int) -> "Batch":
        """Columns first .. last - 1 of every row."""
        cut = self._each(lambda tensor: tensor[:, first:last])
        width = self.width or self.tokens.shape[1]
        return replace(cut, start=self.start + first, width=width, origins=self.origins)

    def rows(self, first: int, last: int) -> "Batch":
        """Rows first .. last - 1."""
        return self._each(lambda tensor: tensor[first:last], whole=True)

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        return self._each(lambda tensor: tensor.to(device), whole=True)

    def _each(self, change: Callable[[Tensor], Tensor], whole: bool = False) -> "Batch":
        """The batch with `change` applied to every tensor; `whole` includes the tensors of the source."""
        names = ("tokens", "targets", "index", "segment", "positions", "origins", "kinds", "labels")
        held = {name: getattr(self, name) for name in names}
        changed = replace(self, **{name: change(tensor) for name, tensor in held.items() if tensor is not None})
        return replace(changed, source=self.source._each(change)) if whole and self.source is not None else changed


def collate(rows: Sequence[Row]) -> Batch:
    """Stack rows of one length.

    Rows with a source may have different lengths, and so may their sources; both are padded to the longest.

    Raises:
        DataError: there are no rows, or rows without a source have different lengths.
    """
    sources = [row.source for row in rows if row.source is not None]
    if sources:
        assert len(sources) == len(rows), "rows with and without a source in one batch"
        return replace(_stacked(_padded(rows)), source=_stacked(_padded(sources)))
    return _stacked(rows)


def _padded(rows: Sequence[Row]) -> list[Row]:
    """The same rows, padded to the length of the longest."""
    longest = max(len(row.tokens) for row in rows)
    padded = []
    for row in rows:
        length = len(row.tokens)
        more = (0, longest - length)
        segment = np.zeros(length, dtype=np.int64) if row.segment is None else row.segment
        positions = np.arange(length) if row.positions is None else row.positions
        filled = replace(
            row,
            tokens=np.pad(row.tokens, more),
            targets=np.pad(row.targets, more, constant_values=IGNORED),
            segment=np.pad(segment, more, constant_values=-1),
            positions=np.pad(positions, more),
        )
        padded.append(filled if more[1] else row)
    return padded


def _stacked(rows: Sequence[Row]) -> Batch:
    lengths = sorted({len(row.tokens) for row in rows})
    if len(lengths) != 1:
        what = f"rows of {', '.join(map(str, lengths))} tokens" if lengths else "no rows"
        raise DataError(
            f"a batch cannot be made of {what}: give rows of one length (put streams of different lengths into a Chain)"
        )
    tokens, targets = _stack([row.tokens for row in rows]), _stack([row.targets for row in rows])
    origins = torch.tensor([(row.document, row.start) for row in rows], dtype=torch.int64)
    length = lengths[0]
    labels = _either([row.labels for row in rows], np.full(length, IGNORED))
    if all(row.segment is None and row.kinds is None and row.positions is None for row in rows):
        return Batch(tokens, targets, origins=origins, labels=labels)
    zeros, run = np.zeros(length, dtype=np.int64), np.arange(length)
    segment = [zeros if row.segment is None else row.segment for row in rows]
    positions = [run if row.positions is None else row.positions for row in rows]
    index = [np.where(part < 0, -1, run) for part in segment]
    kinds = _either([row.kinds for row in rows], zeros)
    marks = (_stack(index), _stack(segment), _stack(positions))
    return Batch(tokens, targets, *marks, origins, kinds=kinds, labels=labels)


def _either(arrays: Sequence[np.ndarray | None], otherwise: np.ndarray) -> Tensor | None:
    """The arrays stacked, with `otherwise` for each missing one; None if all are missing."""
    if all(array is None for array in arrays):
        return None
    return _stack([otherwise if array is None else array for array in arrays])


def _stack(arrays: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(arrays).astype(np.int64, copy=False))
