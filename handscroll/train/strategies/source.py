"""The source of an encoder-decoder in a long step.

The encoder runs forward before the decoder, and its backward runs after the decoder's. It is a stack like any other
(`stack.py`), and its final states are kept. For each stage of the decoder, the source's keys and values are computed
chunk by chunk. All chunks of the decoder read them and add gradients to them. These gradients then go back through the
projections and are summed on the final states. The encoder's backward starts from that sum.

Kept per token of the source: (encoder layers + 1) x D numbers as for an encoder alone with its final states, the
gradient of the final states, and 4 x H x E numbers for the current decoder layer. Keys and values are projected twice
more for every layer.
"""

import torch

from handscroll.data.batch import Batch
from handscroll.kernels import gradient
from handscroll.nn.attention import CrossAttention
from handscroll.nn.memory import Memory
from handscroll.nn.span import Span
from handscroll.train.strategies.stack import LongStep, Stack, StackSetup, give


class Source:
    """The source that the decoder of a step reads (`stack.py: SourceReader`)."""

    def __init__(self, step: LongStep, source: Batch):
        assert step.model.spec.encoder, "the batch has a source, but the model has no encoder"
        self.step, self.model, self.source = step, step.model, source
        self.stack = Stack(step, StackSetup.encoder(step, source))
        self.states = self.stack.last + 1  # the stack keeps its final states here, and their gradient one place further
        self.slopes = self.states + 1
        self.carry = step.carry(self.stack.marks, source.tokens, step.place(), self.stack.reach, whole=True)
        step.expect(self.stack.chunks * 3 * len(self.model.layers))

    def read(self) -> None:
        """Compute the encoder's final states."""
        for stage in range(len(self.stack.stages)):
            self.stack.forward(stage)

    def back(self) -> None:
        """Run the encoder's backward from the gradients that the decoder stored for its final states."""
        for chunk in range(self.stack.chunks):
            self.stack.keep(self.states, chunk, self.stack.kept(self.slopes, chunk))
            self.stack.forget(self.slopes, chunk)
        self.stack.back()

    @gradient.repeated()
    def remember(self, layers: range) -> Memory:
        """Compute the keys and values of all chunks for some decoder layers."""
        for chunk in range(self.stack.chunks):
            for number in layers:
                span = self._keys(number, self.stack.kept(self.states, chunk), chunk)
                self.carry.put(number, chunk, span.keys, span.values)
            self.step.pulse()
        return Memory(None, self.source.marks(), lambda layer: self.carry.past(layer, self.stack.chunks))

    def leave(self, layers: range, back: bool) -> None:
        """Drop all keys and values. If `back`, first backpropagate their gradients to the final states."""
        for chunk in range(self.stack.chunks - 1, -1, -1) if back else ():
            states = self.stack.kept(self.states, chunk).requires_grad_()
            for number in layers:
                span = self._keys(number, states, chunk)
                give(self.carry, number, chunk, span.keys, span.values)
            grad = torch.zeros_like(states) if states.grad is None else states.grad
            self.stack.add(self.slopes, chunk, grad)
            self.step.pulse()
        self.carry.drop(0)

    def _keys(self, number: int, states: torch.Tensor, chunk: int) -> Span:
        cross = self.model.layers[number].cross
        assert isinstance(cross, CrossAttention)
        with self.step.request.precision(self.model):
            return cross.keep(Memory(states, self.stack.marks[chunk]))
