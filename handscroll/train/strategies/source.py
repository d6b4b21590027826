"""The source of an encoder-decoder in a long step: read before the decoder runs, trained through after it.

The encoder is a stack like any other (`stack.py`), whose final states are kept. Each stage of the decoder has keys and
values of the source made for its own layers, chunk by chunk; all chunks of the decoder read them and leave gradients on
them, which then go through the projections and are added up on the final states. From there the encoder goes back.

Kept per token of the source: (encoder layers + 1) x D, as for an encoder alone and its final states, the gradient of
those, and 4 x H x E for the decoder layer in work. Keys and values are projected twice more for every layer.
"""

import torch

from handscroll.data.batch import Batch
from handscroll.nn.attention import CrossAttention
from handscroll.nn.memory import Memory
from handscroll.nn.span import Span
from handscroll.train.strategies.stack import Side, Stack, Work, give


class Source:
    """What the decoder of a step reads (`stack.py: Reads`)."""

    def __init__(self, work: Work, source: Batch):
        assert work.model.spec.encoder, "a source, but nothing that reads it"
        self.work, self.model, self.source = work, work.model, source
        self.stack = Stack(work, Side.encoder(work, source))
        self.states = self.stack.last + 1  # where the stack keeps its end, and behind it the gradient of that
        self.slopes = self.states + 1
        self.carry = work.carry(self.stack.marks, source.tokens, work.place(), self.stack.reach, whole=True)
        work.expect(self.stack.chunks * 3 * len(self.model.layers))

    def read(self) -> None:
        """The encoder's final states."""
        for stage in range(len(self.stack.stages)):
            self.stack.forward(stage)

    def back(self) -> None:
        """Back through the encoder, from the gradients that the decoder left on its final states."""
        for chunk in range(self.stack.chunks):
            self.stack.keep(self.states, chunk, self.stack.kept(self.slopes, chunk))
            self.stack.forget(self.slopes, chunk)
        self.stack.back()

    @torch.no_grad()
    def remember(self, layers: range) -> Memory:
        """Keys and values of all chunks for some decoder layers."""
        for chunk in range(self.stack.chunks):
            for number in layers:
                span = self._keys(number, self.stack.kept(self.states, chunk), chunk)
                self.carry.put(number, chunk, span.keys, span.values)
            self.work.pulse()
        return Memory(None, self.source.marks(), lambda layer: self.carry.past(layer, self.stack.chunks))

    def leave(self, layers: range, back: bool) -> None:
        """Take what was left on keys and values to the final states, and drop them all."""
        for chunk in range(self.stack.chunks - 1, -1, -1) if back else ():
            states = self.stack.kept(self.states, chunk).requires_grad_()
            for number in layers:
                span = self._keys(number, states, chunk)
                give(self.carry, number, chunk, span.keys, span.values)
            grad = torch.zeros_like(states) if states.grad is None else states.grad
            self.stack.add(self.slopes, chunk, grad)
            self.work.pulse()
        self.carry.drop(0)

    def _keys(self, number: int, states: torch.Tensor, chunk: int) -> Span:
        cross = self.model.layers[number].cross
        assert isinstance(cross, CrossAttention)
        with self.work.request.precision(self.model):
            return cross.keep(Memory(states, self.stack.marks[chunk]))
