"""Exact backpropagation through rows far longer than memory: the layers in stages, each stage in chunks of tokens.

A stage is run forward chunk by chunk without a graph, keeping only keys and values; then back from the last chunk to
the first, one chunk at a time with a graph (`carry.py`). The inputs of every stage but the first are kept, and
their gradient is written over them. One stage of all layers is the chunk-outer order, stages of one layer are the
layer-outer order; what is kept per token is (stages - 1) x D + layers per stage x 4 x K x E numbers.

Cost: forward, recomputed forward, backward, as gradient checkpointing has it, and for stages of more than one layer
(but the last) nearly one forward more. The idea of going back chunk by chunk with carried gradients: Li et al. 2025
("SeCO"), Luo et al. 2025 ("StreamBP").

Under a mask that shows a token later ones (encoders, a prefix) a stage is one layer, the layer-outer order: keys and
values of all chunks, then the queries chunk by chunk; back through the queries of all chunks, which leaves gradients on
all keys and values, then through those. Kept per token: layers x D + 4 x K x E numbers; the gradient of a stage's input
waits in the place of its output's until the keys and values are done. Keys and values are projected twice more.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from handscroll.base.allocator import trim
from handscroll.base.errors import ConfigError
from handscroll.data.batch import Batch
from handscroll.models.model import Decoder
from handscroll.nn.attention import Context
from handscroll.nn.mask import Mask, looks_ahead
from handscroll.objectives.loss import Loss, summed
from handscroll.train.ladder.blocks import Blocks
from handscroll.train.ladder.carry import BlockCarry, Carry, Collect, HeldCarry, Known, Made, Recompute
from handscroll.train.ladder.rung import Request
from handscroll.train.parallel.exchange import Exchange


@dataclass(frozen=True)
class Staged:
    """Stages of `stage_layers` layers (0: all of them), chunks of `chunk` tokens.

    `blocks`, where given, makes the place where keys, values, their gradients and stage inputs wait.
    """

    chunk: int
    stage_layers: int = 0
    mlp_tile: int = 0
    blocks: Callable[[], Blocks] | None = None

    def __call__(self, model: Decoder, batch: Batch, request: Request) -> Loss:
        if not request.objective.additive:
            name = type(request.objective).__name__
            raise ConfigError(f"objective {name} does not add up over positions, so it cannot be trained in chunks")
        work = _Pass(self, model, batch, request)
        try:
            return work.run()
        finally:
            work.close()


class _Pass:
    """One micro-batch on its way through all stages."""

    def __init__(self, rung: Staged, model: Decoder, batch: Batch, request: Request):
        self.rung, self.model, self.batch, self.request = rung, model, batch, request
        self.marks = batch.marks()
        self.mask: Mask = request.objective.mask(model, self.marks)
        self.whole = looks_ahead(self.mask)
        if self.whole and rung.stage_layers != 1:
            raise ConfigError(
                f"mask {self.mask} shows a token later ones, so each layer needs all chunks of the one below: take "
                "memory.rung = 'layer-outer', 'checkpoint' or 'plain'"
            )
        world = request.world
        edges = _edges(batch.tokens.shape[1], rung.chunk, world.context)
        self.chunks = len(edges) - 1
        cuts = [world.cut(a, b) for a, b in pairwise(edges)]  # of each chunk, among the ranks that share it
        mine = [(cut[world.place], cut[world.place + 1]) for cut in cuts]
        size = rung.stage_layers or len(model.layers)
        self.stages = [range(a, min(a + size, len(model.layers))) for a in range(0, len(model.layers), size)]
        self.blocks = None if rung.blocks is None else rung.blocks()
        self.inputs: dict[tuple[int, int], Tensor] = {}
        self._parts = [batch.part(a, b) for a, b in mine]
        self._marks = [self.marks.part(a, b) for a, b in mine]
        self._exchanges: list[Exchange | None] = [None] * self.chunks
        if world.context > 1:
            sizes = [tuple(b - a for a, b in pairwise(cut)) for cut in cuts]
            self._exchanges = [
                Exchange(self.marks.part(a, b), size, world.place, world.context_group)
                for (a, b), size in zip(pairwise(edges), sizes, strict=True)
            ]
        self._done, self._work = 0, self.chunks * len(self.stages) * (6 if self.whole else 4)

    def run(self) -> Loss:
        last = len(self.stages) - 1
        for stage in range(last):
            self._forward(stage)
        losses: list[Loss] = []
        for stage in range(last, -1, -1):
            carry = self._carry(stage)
            self._collect(stage, carry)
            for chunk in range(self.chunks - 1, -1, -1):
                loss = self._back(stage, chunk, carry)
                losses += [] if loss is None else [loss.detached()]
            for chunk in range(self.chunks - 1, -1, -1) if self.whole else ():
                self._back_keys(stage, chunk, carry)
        self.request.pulse(1.0)
        return summed(losses)

    def close(self) -> None:
        if self.blocks is not None:
            self.blocks.close()

    @torch.no_grad()
    def _forward(self, stage: int) -> None:
        """Outputs of a stage, which are the inputs of the next; keys and values are dropped at its end."""
        carry = self._carry(stage)
        if self.whole:
            self._collect(stage, carry)
        for chunk in range(self.chunks):
            with self.request.precision(self.model):
                cache = Known(carry, self.chunks) if self.whole else Collect(carry, chunk)
                x, context = self._enter(stage, chunk, cache)
                for number in self.stages[stage]:
                    x = self.model.layers[number](x, context)
            self._keep(stage + 1, chunk, x)
            self._pulse()
        carry.drop(0)

    @torch.no_grad()
    def _collect(self, stage: int, carry: Carry) -> None:
        """Keys and values of all chunks (but the last, whose own are never anybody's past, where masks are causal);
        the last layer makes nothing else."""
        *before, last = self.stages[stage]
        for chunk in range(self.chunks if self.whole else self.chunks - 1):
            with self.request.precision(self.model):
                x, context = self._enter(stage, chunk, Collect(carry, chunk))
                for number in before:
                    x = self.model.layers[number](x, context)
                self.model.layers[last].remember(x, context)  # type: ignore[operator]
            self._pulse()

    def _back(self, stage: int, chunk: int, carry: Carry) -> Loss | None:
        """Gradients of one chunk of a stage; its input's gradient replaces the input. The loss, in the last stage.

        Where all chunks see each other, the gradient that does not come through keys and values, which replaces the
        output's: the input is still needed.
        """
        entry: Tensor | None = None
        loss = None
        cache = Known(carry, self.chunks) if self.whole else Recompute(carry, chunk)
        with self.request.precision(self.model):
            if stage:
                entry = self._kept(stage, chunk).requires_grad_()
            x, context = self._enter(stage, chunk, cache, entry)
            if self.whole and not x.requires_grad:  # the queries' backward forms the gradient of the keys too
                x = x.detach().requires_grad_()
            for number in self.stages[stage]:
                x = self.model.layers[number](x, context)
            if stage == len(self.stages) - 1:
                loss = self.request.objective.loss(self.model, self.model.norm(x), self._parts[chunk])
        if loss is not None:
            (loss.total / self.request.divisor).backward()
        elif x.requires_grad:  # nothing below is trained otherwise
            x.backward(self._kept(stage + 1, chunk))
            self._forget(stage + 1, chunk)
        if not self.whole:
            carry.drop(chunk)
        if entry is not None and entry.grad is not None:
            self._keep(stage + 1 if self.whole else stage, chunk, entry.grad)
        self._pulse(2)
        return loss

    def _back_keys(self, stage: int, chunk: int, carry: Carry) -> None:
        """Gradients of one chunk through its keys and values; with those through its queries they replace the input."""
        (number,) = self.stages[stage]
        left = carry.left(number, chunk)
        with self.request.precision(self.model):
            entry = self._kept(stage, chunk).requires_grad_() if stage else None
            x, context = self._enter(stage, chunk, Made(), entry)
            made = self.model.layers[number].remember(x, context)  # type: ignore[operator]
        if left is not None:
            pairs = [(own, grad.to(own.dtype)) for own, grad in zip(made, left, strict=True)]
            trained = [(own, grad) for own, grad in pairs if own.requires_grad]
            if trained:
                torch.autograd.backward([own for own, _ in trained], [grad for _, grad in trained])
        carry.drop(chunk)
        if entry is not None:
            grad = self._kept(stage + 1, chunk)
            self._keep(stage, chunk, grad if entry.grad is None else grad + entry.grad)
            self._forget(stage + 1, chunk)
        self._pulse()

    def _enter(self, stage: int, chunk: int, cache: Any, x: Tensor | None = None) -> tuple[Tensor, Context]:
        marks = self._marks[chunk]
        self.model.ready()
        if x is None:
            x = self._kept(stage, chunk) if stage else self.model.embed(self._parts[chunk].tokens, marks)
        exchange = self._exchanges[chunk]
        shared = {"noise": self.request.noise, "mlp_tile": self.rung.mlp_tile, "exchange": exchange}
        context = self.model.context(x, marks, self.mask, self.request.length, cache=cache, **shared)
        return (x if stage else context.dropped(x, 0)), context

    def _carry(self, stage: int) -> Carry:
        if self.blocks is None:
            return HeldCarry(self._marks, self.batch.tokens, self.whole)
        return BlockCarry(self._marks, self.blocks, self.whole)

    def _keep(self, stage: int, chunk: int, x: Tensor) -> None:
        if self.blocks is not None:
            self.blocks.write(("input", stage, chunk), x)
        elif (stage, chunk) in self.inputs:
            self.inputs[stage, chunk].copy_(x)
        else:
            self.inputs[stage, chunk] = x

    def _kept(self, stage: int, chunk: int) -> Tensor:
        if self.blocks is None:
            return self.inputs[stage, chunk].detach()
        x = self.blocks.read(("input", stage, chunk)).clone()
        self.blocks.release(("input", stage, chunk))
        return x

    def _forget(self, stage: int, chunk: int) -> None:
        self.inputs.pop((stage, chunk), None)
        if self.blocks is not None:
            self.blocks.discard(("input", stage, chunk))

    def _pulse(self, amount: int = 1) -> None:
        trim()
        self._done += amount
        self.request.pulse(min(1.0, self._done / self._work))


def _edges(length: int, chunk: int, ranks: int) -> list[int]:
    """Chunk edges; every chunk has a token for each rank."""
    if length < ranks:
        raise ConfigError(f"rows of {length} tokens cannot be shared by {ranks} ranks")
    edges = [*range(0, length, chunk), length]
    if len(edges) > 2 and length - edges[-2] < ranks:
        edges.pop(-2)
    return edges
