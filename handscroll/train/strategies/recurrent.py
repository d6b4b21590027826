"""Truncated recurrent training with a memory of keys and values. It is not exact and never replaces an exact strategy.

A row runs forward and backward chunk by chunk. A chunk attends to its own tokens and to the last `remembered` tokens
before it, whose cached keys and values get no gradient ("Transformer-XL", Dai et al. 2019, arXiv:1901.02860, 3.2).
Two things are approximate. The gradient ends at the edge of the chunk. Keys and values from an earlier update were
computed with the weights of that time (Rae et al. 2020, arXiv:1911.05507, train the same way). The forward of a chunk
is exact for the tokens that it sees, and all layers together reach back `layers x remembered` tokens.

Memory: the graph of one chunk, and per lane and layer twice `remembered` keys and values. The memory from before an
update is kept until the next one begins, in case the update is abandoned. Nothing grows with the row.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from handscroll.base.errors import CapacityError, CheckpointError, ConfigError
from handscroll.data.batch import Batch
from handscroll.models.model import Decoder
from handscroll.nn.keeper import Keeper
from handscroll.nn.marks import PADDING, Marks
from handscroll.nn.mask import looks_ahead
from handscroll.nn.span import Span
from handscroll.objectives.loss import Loss, summed
from handscroll.train.strategies.strategy import Pass


@dataclass(frozen=True, eq=False)
class _Lane:
    """The memory that a row leaves: keys and values (layers, K, r, E) of r tokens of a document.

    They are the r tokens of `document` before the place `following`.
    """

    keys: Tensor
    values: Tensor
    document: int
    following: int


class Recurrent:
    """Trains in chunks of `chunk` tokens that see `remembered` tokens before them, across chunks, rows and updates.

    A lane is the number of a row within its update, over all micro-batches. If the `Batch.origins` of a row continue
    the row that its lane had in the update before, the row begins with that row's memory. Any other row begins with
    none. A row of several documents, or with padding at its end, leaves no memory, because the place where its last
    document continues is not known. A batch without origins remembers within its rows only.

    Order (which masks and dropout read) and positions count through the document: the first token of a row gets its
    place in the document. So windows and rotary distances are right across rows. Dropout, a hash of (seed, update,
    lane, order), differs between the chunks and rows of a document. A row at the beginning of a document gets the same
    dropout as in the exact strategies. A length-dependent scaling is computed for the length chunk + remembered.

    Limits: one process and causal masks. However long a document is, its memory is at most `remembered` tokens.
    """

    def __init__(self, chunk: int, remembered: int, mlp_tile: int = 0):
        """
        Raises:
            ConfigError: a number is out of range.
        """
        if chunk < 1 or remembered < 1 or mlp_tile < 0:
            raise ConfigError(
                f"chunk {chunk}, remembered {remembered}, mlp_tile {mlp_tile}: chunk and remembered must be >= 1 (to "
                "train without a memory, shorten the rows), and mlp_tile must be >= 0"
            )
        self.chunk, self.remembered, self.mlp_tile = chunk, remembered, mlp_tile
        self._before: dict[int, _Lane] = {}  # the memory at the beginning of the current (or last) update
        self._lanes: dict[int, _Lane] = {}

    def __call__(self, model: Decoder, batch: Batch, request: Pass) -> Loss:
        """Train one micro-batch. The one with `request.first_row` 0 begins an update.

        If any exception ends it, the memory is reset to its state before the update.
        """
        self.check(model)
        if not request.objective.additive:
            name = type(request.objective).__name__
            raise ConfigError(f"objective {name} does not add up over positions, so it cannot be trained in chunks")
        mask = request.objective.mask(model, batch.marks())
        if looks_ahead(mask):
            raise ConfigError(
                f"mask {mask} shows a token later ones, which truncated training in chunks cannot do: choose "
                "memory.strategy = 'layer-outer', 'checkpoint' or 'plain'"
            )
        if request.world.size > 1:
            raise ConfigError(
                f"the recurrent memory lives in one process, but this run has {request.world.size}; start it without "
                "torchrun, or choose an exact strategy"
            )
        if not request.first_row:
            self._before, self._lanes = self._lanes, {}
        with ExitStack() as undo:
            undo.callback(self._undo)
            loss = self._run(model, batch, request)
            undo.pop_all()
        return loss

    def check(self, model: Decoder) -> None:
        """Check that the model can be trained by this strategy.

        Raises:
            ConfigError: the model's positions are a learned table, or the model is recurrent.
            CapacityError: a chunk with its memory is longer than the model's context.
        """
        if model.spec.recurrent:
            raise ConfigError(
                f"family {model.config.family} keeps a state and no keys to remember; choose strategy 'chunk-outer', "
                "which is exact through time and holds no more than a chunk"
            )
        seen = self.chunk + self.remembered
        if not model.rotations(Marks.run(0, 1), seen, model.head) and model.bias() is None:
            raise ConfigError(
                f"family {model.config.family} has learned positions, which end with their table, but recurrent "
                "training counts positions through the document; use rotary positions (llama) or an exact strategy"
            )
        if seen > model.config.context:
            raise CapacityError(
                f"chunk {self.chunk} + remembered {self.remembered} = {seen} tokens, but the model's context is "
                f"{model.config.context}; make one of them smaller, or lengthen the model's context first"
            )

    def forget(self) -> None:
        """Empty every lane. This is needed when the model's rotation changes, since the cached keys no longer fit."""
        self._before, self._lanes = {}, {}

    def state(self) -> dict[str, Tensor]:
        """The memory that the next update begins with.

        `lanes` (n, 3) int64 holds lane, document and the place of the token that follows. Each lane has `<lane>.keys`
        and `<lane>.values` (layers, K, r, E), whose marks are the r places before that token.
        """
        rows = [(number, lane.document, lane.following) for number, lane in sorted(self._lanes.items())]
        state = {"lanes": torch.tensor(rows, dtype=torch.int64).reshape(-1, 3)}
        for number, lane in sorted(self._lanes.items()):
            state |= {f"{number}.keys": lane.keys, f"{number}.values": lane.values}
        return state

    def restore(self, state: dict[str, Tensor], device: torch.device | None = None) -> None:
        """Continue from `state()` on the given device. The next update gives the same bits.

        Raises:
            CheckpointError: tensors are missing, or remember more than `remembered` tokens.
        """
        try:
            lanes = {
                number: _Lane(
                    state[f"{number}.keys"].to(device), state[f"{number}.values"].to(device), document, following
                )
                for number, document, following in state["lanes"].tolist()
            }
        except KeyError as error:
            raise CheckpointError(f"the recurrent memory lacks {error}; resume from another checkpoint") from None
        longest = max((lane.keys.shape[2] for lane in lanes.values()), default=0)
        if longest > self.remembered:
            raise CheckpointError(
                f"the checkpoint remembers {longest} tokens, but this run only {self.remembered}; resume with "
                f"remembered = {longest}"
            )
        self._before, self._lanes = {}, lanes

    def _undo(self) -> None:
        self._lanes = self._before

    def _run(self, model: Decoder, batch: Batch, request: Pass) -> Loss:
        marks = _in_document(batch)
        past = self._recalled(batch, marks, request.first_row)
        edges = range(0, marks.length, self.chunk)
        losses: list[Loss] = []
        for number, first in enumerate(edges, start=1):
            last = min(first + self.chunk, marks.length)
            loss = self._back(model, batch.part(first, last), marks.part(first, last), past, request)
            losses.append(loss.detached())
            request.pulse(number / len(edges))
        self._hand_on(batch, past, request.first_row)
        return summed(losses)

    def _back(self, model: Decoder, part: Batch, marks: Marks, past: "_Past", request: Pass) -> Loss:
        """Run one chunk forward and backward. Its keys and values are remembered."""
        with request.precision(model):
            x = model.embed(part.tokens, marks)
            mask = request.objective.mask(model, marks)
            shared = {"cache": past, "noise": request.noise, "mlp_tile": self.mlp_tile}
            context = model.context(x, marks, mask, self.chunk + self.remembered, **shared)
            loss = request.objective.loss(model, model.run(x, context), part)
        (loss.total / request.divisor).backward()
        return loss

    def _recalled(self, batch: Batch, marks: Marks, first_row: int) -> "_Past":
        """The memories of all lanes as one batch, with the newest token last.

        Rows that continue no earlier row have padding there.
        """
        origins = _origins(batch)
        lanes: list[_Lane | None] = []
        for row, origin in enumerate(origins):
            lane = self._before.get(first_row + row)
            lanes.append(lane if lane is not None and origin == (lane.document, lane.following) else None)
        sizes = [0 if lane is None else lane.keys.shape[2] for lane in lanes]
        past = _Past(self.remembered)
        longest = max(sizes)
        if not longest:
            return past
        device = batch.tokens.device
        kept = [(row, lane) for row, lane in enumerate(lanes) if lane is not None]
        for layer in range(kept[0][1].keys.shape[0]):
            past.held[layer] = (
                _aligned([(row, lane.keys[layer]) for row, lane in kept], len(lanes), longest),
                _aligned([(row, lane.values[layer]) for row, lane in kept], len(lanes), longest),
            )
        if marks.start is not None and min(sizes) == longest:
            past.marks = Marks.run(marks.start - longest, longest)
            return past
        first = [0 if origin is None else origin[1] for origin in origins]
        steps = torch.arange(longest, device=device)
        index = torch.tensor(first, device=device)[:, None] - longest + steps
        index = index.masked_fill(steps < longest - torch.tensor(sizes, device=device)[:, None], PADDING)
        segment = marks.tensors(device)[1][:, :1].expand_as(index)
        past.marks = Marks.of(index, segment)
        return past

    def _hand_on(self, batch: Batch, past: "_Past", first_row: int) -> None:
        whole = torch.ones(batch.tokens.shape[0], dtype=torch.bool)
        if batch.index is not None and batch.segment is not None:
            whole = ((batch.segment == batch.segment[:, :1]) & (batch.index >= 0)).all(dim=1)
        held = (past.marks.tensors(batch.tokens.device)[0] >= 0).sum(dim=1).expand(len(whole)).tolist()
        for row, origin in enumerate(_origins(batch)):
            if origin is None or not whole[row]:
                continue
            keys, values = (
                torch.stack([past.held[layer][kind][row, :, -held[row] :] for layer in sorted(past.held)])
                for kind in (0, 1)
            )
            following = origin[1] + batch.tokens.shape[1]
            self._lanes[first_row + row] = _Lane(keys, values, origin[0], following)


class _Past(Keeper):
    """The cache of a chunk: it gives the remembered tokens and stores the chunk's keys and values."""

    def __init__(self, remembered: int):
        self.remembered = remembered
        self.marks = Marks.run(0, 0)
        self.held: dict[int, tuple[Tensor, Tensor]] = {}
        self._next: dict[int, tuple[Tensor, Tensor]] = {}
        self._new: Marks | None = None

    def append(self, layer: int, keys: Tensor, values: Tensor, marks: Marks) -> list[Span]:
        held = self.held.get(layer)
        old = (None, None) if held is None else held
        new_keys, new_values = (self._tail(a, b.detach()) for a, b in zip(old, (keys, values), strict=True))
        self._next[layer], self._new = (new_keys, new_values), marks
        own = Span(keys, values, marks)
        # A span with its own `accumulate` is no part of the graph. This one drops its gradient.
        return [own] if held is None else [Span(*held, self.marks, accumulate=_stopped), own]

    def commit(self) -> None:
        assert self._new is not None
        keys, _ = self._next[min(self._next)]
        every = Marks.join([self.marks, self._new], keys.shape[0], keys.device)
        self.marks = every.part(every.length - keys.shape[2], every.length)
        self.held, self._next, self._new = self._next, {}, None

    def _tail(self, old: Tensor | None, new: Tensor) -> Tensor:
        """A copy of the last `remembered` tokens."""
        if old is None or new.shape[2] >= self.remembered:
            return new[:, :, -self.remembered :].clone(memory_format=torch.contiguous_format)
        surplus = max(0, old.shape[2] + new.shape[2] - self.remembered)
        return torch.cat([old[:, :, surplus:], new], dim=2)


def _stopped(first: int, keys: Tensor, values: Tensor) -> None:
    """Drop the gradient of the memory. This is the truncation."""


def _in_document(batch: Batch) -> Marks:
    """The batch's marks, counted through the documents.

    The order of all tokens of a row is shifted, but only the positions of its first segment.
    """
    starts = torch.zeros(batch.tokens.shape[0], dtype=torch.int64) if batch.origins is None else batch.origins[:, 1]
    starts = starts.to(batch.tokens.device)
    if batch.index is None and bool((starts == starts[0]).all()):
        return Marks.run(int(starts[0]), batch.tokens.shape[1])
    shape = batch.tokens.shape
    index, segment, positions = (tensor.expand(shape) for tensor in batch.marks().tensors(batch.tokens.device))
    real, shift = index >= 0, starts[:, None]
    first = real & (segment == segment[:, :1])
    return Marks.of(
        torch.where(real, index + shift, PADDING), segment, torch.where(first, positions + shift, positions)
    )


def _origins(batch: Batch) -> list[tuple[int, int] | None]:
    """For each row, the document and the place in it where the row begins. None: the batch does not know."""
    if batch.origins is None:
        return [None] * batch.tokens.shape[0]
    return [(document, start) for document, start in batch.origins.tolist()]


def _aligned(parts: Sequence[tuple[int, Tensor]], rows: int, length: int) -> Tensor:
    """A tensor (rows, K, length, E) that has each row's part (K, r, E) at the end."""
    like = parts[0][1]
    joined = like.new_zeros((rows, like.shape[0], length, like.shape[2]))
    for row, part in parts:
        joined[row, :, length - part.shape[1] :] = part
    return joined
