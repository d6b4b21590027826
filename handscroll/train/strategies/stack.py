"""Runs one stack of layers in a long step: stage by stage and chunk by chunk, first forward and then backward."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from handscroll.base.allocator import trim
from handscroll.base.errors import ConfigError
from handscroll.data.batch import Batch
from handscroll.kernels import gradient
from handscroll.models.model import Decoder
from handscroll.nn.attention import Context
from handscroll.nn.keeper import Keeper
from handscroll.nn.marks import Marks
from handscroll.nn.mask import Mask, looks_ahead
from handscroll.nn.memory import Memory
from handscroll.objectives.loss import Loss, summed
from handscroll.train.parallel.exchange import Exchange
from handscroll.train.strategies.blocks import Blocks
from handscroll.train.strategies.carry import BlockCarry, Carry, Collect, HeldCarry, Known, Reach, Recompute
from handscroll.train.strategies.strategy import Pass


@dataclass(eq=False)
class LongStep:
    """The step of one micro-batch on a chunked strategy: the settings that its stacks share, and its progress."""

    model: Decoder
    request: Pass
    chunk: int
    stage_layers: int
    mlp_tile: int
    blocks: Callable[[], Blocks] | None
    _open: list[Blocks] = field(default_factory=list)
    _all: int = 0
    _done: int = 0

    def place(self) -> Blocks | None:
        """Open a new storage for tensors that are set aside. None: they stay on the device."""
        if self.blocks is not None:
            self._open.append(self.blocks())
            return self._open[-1]
        return None

    def carry(self, marks: list[Marks], like: Tensor, blocks: Blocks | None, reach: Reach, whole: bool) -> Carry:
        """The carry of chunks with these marks. `like` and `whole` are as in `HeldCarry`."""
        return HeldCarry(marks, like, reach, whole) if blocks is None else BlockCarry(marks, blocks, reach, whole)

    def close(self) -> None:
        for blocks in self._open:
            blocks.close()

    def expect(self, parts: int) -> None:
        """Add `parts` to the total that the progress is measured against."""
        self._all += parts

    def free(self, phase: bool = False) -> None:
        """Give free pages of the heap back: after every chunk, or with stages of one layer after a `phase`.

        A phase ends when all chunks of a stage were read without gradient, and when the whole backward is done. The
        chunks of one layer need the same memory, one after the other. To give it back between them would bound the step
        no further, and pages that are new each time cost a seventh of its time.
        """
        if phase == (self.stage_layers == 1):
            trim()

    def pulse(self, parts: int = 1) -> None:
        """Count `parts` as done and report the progress."""
        self.free()
        self._done += parts
        self.request.pulse(min(1.0, self._done / self._all))


@dataclass(frozen=True, eq=False)
class StackSetup:
    """The layers of one stack, with their batch, mask and loss.

    `context(x, marks, **shared)` makes the context that all layers get in one forward.
    """

    layers: nn.ModuleList
    norm: nn.Module
    batch: Batch
    mask: Mask
    context: Callable[..., Context]
    windows: Sequence[int | None] = ()  # one for each layer; empty if no layer has a window
    loss: Callable[[Tensor, Batch], Loss] | None = None  # takes final states; None: another stack gives their gradient

    @classmethod
    def own(cls, step: LongStep, batch: Batch) -> Self:
        """The setup for the model's own layers."""
        model, request = step.model, step.request

        def context(x: Tensor, marks: Marks, **shared: Any) -> Context:
            return model.context(x, marks, mask, request.length, **shared)

        def loss(hidden: Tensor, part: Batch) -> Loss:
            return request.objective.loss(model, hidden, part)

        mask = request.objective.mask(model, batch.marks())
        return cls(model.layers, model.norm, batch, mask, context, model.windows, loss)

    @classmethod
    def encoder(cls, step: LongStep, source: Batch) -> Self:
        """The setup for the encoder layers of an encoder-decoder."""
        model = step.model
        assert model.spec.encoder, "the batch has a source, but the model has no encoder"

        def context(x: Tensor, marks: Marks, **shared: Any) -> Context:
            return model.source_context(marks, **shared)

        mask = model.source_context(source.marks()).mask
        return cls(model.encoder.layers, model.encoder.norm, source, mask, context)


class SourceReader(Protocol):
    """The source that the layers of a stage read besides their own tokens."""

    def remember(self, layers: range) -> Memory:
        """Compute the keys and values of the whole source for these layers."""
        ...

    def leave(self, layers: range, back: bool) -> None:
        """Drop these keys and values. If `back`, first backpropagate the gradients that were stored for them."""
        ...


class Stack:
    """Runs the layers of a setup through their stages. `source` gives what they read besides their own tokens."""

    def __init__(self, step: LongStep, setup: StackSetup, source: SourceReader | None = None):
        self.step, self.setup, self.source = step, setup, source
        self.model, self.request = step.model, step.request
        batch, layers = setup.batch, len(setup.layers)
        marks = batch.marks()
        self.whole = looks_ahead(setup.mask)
        if self.whole and step.stage_layers != 1:
            raise ConfigError(
                f"mask {setup.mask} shows a token later ones, so each layer needs all chunks of the one below: choose "
                "memory.strategy = 'layer-outer', 'checkpoint' or 'plain'"
            )
        world = self.request.world
        edges = _edges(batch.tokens.shape[1], step.chunk, world.context)
        self.chunks = len(edges) - 1
        cuts = [world.cut(a, b) for a, b in pairwise(edges)]  # for each chunk, the edges of the ranks' parts
        mine = [(cut[world.place], cut[world.place + 1]) for cut in cuts]
        size = step.stage_layers or layers
        self.stages = [range(a, min(a + size, layers)) for a in range(0, layers, size)]
        self.blocks = step.place()
        self.inputs: dict[tuple[int, int], Tensor] = {}
        self._parts = [batch.part(a, b) for a, b in mine]
        self.marks = [marks.part(a, b) for a, b in mine]
        self.reach = Reach(() if self.whole else setup.windows, edges, mine)
        self._exchanges: list[Exchange | None] = [None] * self.chunks
        if world.context > 1:
            sizes = [tuple(b - a for a, b in pairwise(cut)) for cut in cuts]
            self._exchanges = [
                Exchange(marks.part(a, b), size, world.place, world.context_group)
                for (a, b), size in zip(pairwise(edges), sizes, strict=True)
            ]
        step.expect(self.chunks * len(self.stages) * (6 if self.whole else 4))

    def run(self) -> Loss:
        """Run forward and backward, and return the loss."""
        for stage in range(len(self.stages) - 1):
            self.forward(stage)
        return self.back()

    @gradient.repeated()
    def forward(self, stage: int) -> None:
        """Compute and keep the outputs of a stage: the inputs of the next stage, or the normed final states.

        The keys and values are dropped afterwards.
        """
        carry = self._carry()
        memory = self._remember(stage)
        if self.whole:
            self._collect(stage, carry, memory)
        for chunk in range(self.chunks):
            with self.request.precision(self.model):
                cache = Known(carry, self.chunks) if self.whole else Collect(carry, chunk)
                x, context = self._enter(stage, chunk, cache, memory)
                for number in self.stages[stage]:
                    x = self.setup.layers[number](x, context)
                if stage == self.last:
                    x = self.setup.norm(x)
            self.keep(stage + 1, chunk, x)
            self.step.pulse()
        carry.drop(0)
        self._leave(stage, back=False)
        self.step.free(phase=True)

    def back(self) -> Loss:
        """Run the backward of all stages, from the loss or from the gradients that are kept in place of the outputs."""
        losses: list[Loss] = []
        for stage in range(self.last, -1, -1):
            carry = self._carry()
            memory = self._remember(stage)
            self._collect(stage, carry, memory)
            for chunk in range(self.chunks - 1, -1, -1):
                loss = self._back(stage, chunk, carry, memory)
                losses += [] if loss is None else [loss.detached()]
            for chunk in range(self.chunks - 1, -1, -1) if self.whole else ():
                self._back_keys(stage, chunk, carry)
            self._leave(stage, back=True)
        self.step.free(phase=True)  # before the update allocates its own tensors
        return summed(losses)

    @property
    def last(self) -> int:
        return len(self.stages) - 1

    @gradient.repeated()
    def _collect(self, stage: int, carry: Carry, memory: Memory | None) -> None:
        """Store the keys and values of all chunks. The last layer of the stage computes nothing else.

        Under a causal mask the last chunk is left out, because no other chunk reads its keys and values.
        """
        *before, last = self.stages[stage]
        for chunk in range(self.chunks if self.whole else self.chunks - 1):
            with self.request.precision(self.model):
                x, context = self._enter(stage, chunk, Collect(carry, chunk), memory)
                for number in before:
                    x = self.setup.layers[number](x, context)
                self.setup.layers[last].remember(x, context)  # type: ignore[operator]
            self.step.pulse()
        self.step.free(phase=True)

    def _back(self, stage: int, chunk: int, carry: Carry, memory: Memory | None) -> Loss | None:
        """Run the backward of one chunk of a stage. The last stage also returns the chunk's loss.

        The gradient of the chunk's input replaces the input. If all chunks see each other, only the gradient that does
        not pass through keys and values is computed here, and it replaces the output's gradient, because the input is
        still needed.
        """
        entry: Tensor | None = None
        loss = None
        cache = Known(carry, self.chunks) if self.whole else Recompute(carry, chunk)
        with self.request.precision(self.model):
            if stage:
                entry = self.kept(stage, chunk).requires_grad_()
            x, context = self._enter(stage, chunk, cache, memory, entry)
            # The backward of the queries also gives the gradient of keys that were computed outside this graph.
            if (self.whole or memory is not None) and not x.requires_grad:
                x = x.detach().requires_grad_()
            for number in self.stages[stage]:
                x = self.setup.layers[number](x, context)
            if stage == self.last and self.setup.loss is not None:
                loss = self.setup.loss(self.setup.norm(x), self._parts[chunk])
            elif stage == self.last:
                x = self.setup.norm(x)
        if loss is not None:
            (loss.total / self.request.divisor).backward()
        elif x.requires_grad:  # otherwise no layer below is trained
            x.backward(self.kept(stage + 1, chunk))
            self.forget(stage + 1, chunk)
        if not self.whole:
            carry.drop(chunk)
        if entry is not None and entry.grad is not None:
            self.keep(stage + 1 if self.whole else stage, chunk, entry.grad)
        self.step.pulse(2)
        return loss

    def _back_keys(self, stage: int, chunk: int, carry: Carry) -> None:
        """Backpropagate through one chunk's keys and values. The sum with the queries' gradient replaces the input."""
        (number,) = self.stages[stage]
        with self.request.precision(self.model):
            entry = self.kept(stage, chunk).requires_grad_() if stage else None
            x, context = self._enter(stage, chunk, None, None, entry)
            made = self.setup.layers[number].made(x, context)  # type: ignore[operator]
        give(carry, number, chunk, *made)
        carry.drop(chunk)
        if entry is not None:
            grad = self.kept(stage + 1, chunk)
            self.keep(stage, chunk, grad if entry.grad is None else grad + entry.grad)
            self.forget(stage + 1, chunk)
        self.step.pulse()

    def _enter(
        self, stage: int, chunk: int, cache: Keeper | None, memory: Memory | None, x: Tensor | None = None
    ) -> tuple[Tensor, Context]:
        marks = self.marks[chunk]
        self.model.ready()
        if x is None:
            x = self.kept(stage, chunk) if stage else self.model.embed(self._parts[chunk].tokens, marks)
        shared = {"noise": self.request.noise, "mlp_tile": self.step.mlp_tile, "exchange": self._exchanges[chunk]}
        context = self.setup.context(x, marks, cache=cache, memory=memory, **shared)
        return (x if stage else context.dropped(x, 0)), context

    def _remember(self, stage: int) -> Memory | None:
        return None if self.source is None else self.source.remember(self.stages[stage])

    def _leave(self, stage: int, back: bool) -> None:
        if self.source is not None:
            self.source.leave(self.stages[stage], back)

    def _carry(self) -> Carry:
        return self.step.carry(self.marks, self.setup.batch.tokens, self.blocks, self.reach, self.whole)

    def keep(self, stage: int, chunk: int, x: Tensor) -> None:
        """Keep one chunk of a stage's inputs (the outputs of the stage before), or of their gradient."""
        if self.blocks is not None:
            self.blocks.write(("input", stage, chunk), x)
        elif (stage, chunk) in self.inputs:
            self.inputs[stage, chunk].copy_(x)
        else:
            self.inputs[stage, chunk] = x

    def kept(self, stage: int, chunk: int) -> Tensor:
        if self.blocks is None:
            return self.inputs[stage, chunk].detach()
        x = self.blocks.read(("input", stage, chunk)).clone()
        self.blocks.release(("input", stage, chunk))
        return x

    def add(self, stage: int, chunk: int, x: Tensor) -> None:
        """Add `x` to the kept tensor, or keep `x` if there is none."""
        blocks = self.inputs if self.blocks is None else self.blocks
        key = (stage, chunk) if self.blocks is None else ("input", stage, chunk)
        self.keep(stage, chunk, self.kept(stage, chunk) + x if key in blocks else x)

    def forget(self, stage: int, chunk: int) -> None:
        self.inputs.pop((stage, chunk), None)
        if self.blocks is not None:
            self.blocks.discard(("input", stage, chunk))


def give(carry: Carry, layer: int, chunk: int, keys: Tensor, values: Tensor) -> None:
    """Backpropagate through keys and values, which have a graph, from the gradients that other chunks stored.

    A chunk of padding is read by no other and has none, but its backward runs all the same: the other ranks of a
    sharded model wait in the backward of this layer.
    """
    left = carry.left(layer, chunk) or (torch.zeros_like(keys), torch.zeros_like(values))
    pairs = [(own, grad.to(own.dtype)) for own, grad in zip((keys, values), left, strict=True)]
    trained = [(own, grad) for own, grad in pairs if own.requires_grad]
    if trained:
        torch.autograd.backward([own for own, _ in trained], [grad for _, grad in trained])


def _edges(length: int, chunk: int, ranks: int) -> list[int]:
    """The edges of the chunks. Every chunk has at least one token for each rank."""
    if length < ranks:
        raise ConfigError(f"rows of {length} tokens cannot be shared by {ranks} ranks")
    edges = [*range(0, length, chunk), length]
    if len(edges) > 2 and length - edges[-2] < ranks:
        edges.pop(-2)
    return edges
