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

An encoder-decoder is two such stacks of layers, with the source between them (`source.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass

from handscroll.base.errors import ConfigError
from handscroll.data.batch import Batch
from handscroll.models.model import Decoder
from handscroll.objectives.loss import Loss
from handscroll.train.strategies.blocks import Blocks
from handscroll.train.strategies.source import Source
from handscroll.train.strategies.stack import Side, Stack, Work
from handscroll.train.strategies.strategy import Pass


@dataclass(frozen=True)
class Staged:
    """Stages of `stage_layers` layers (0: all of them), chunks of `chunk` tokens.

    `blocks`, where given, makes the place where keys, values, their gradients and stage inputs wait.
    """

    chunk: int
    stage_layers: int = 0
    mlp_tile: int = 0
    blocks: Callable[[], Blocks] | None = None

    def __call__(self, model: Decoder, batch: Batch, request: Pass) -> Loss:
        if not request.objective.additive:
            name = type(request.objective).__name__
            raise ConfigError(f"objective {name} does not add up over positions, so it cannot be trained in chunks")
        work = Work(model, request, self.chunk, self.stage_layers, self.mlp_tile, self.blocks)
        try:
            source = None if batch.source is None else Source(work, batch.source)
            stack = Stack(work, Side.own(work, batch), source)
            if source is not None:
                source.read()
            loss = stack.run()
            if source is not None:
                source.back()
            request.pulse(1.0)
            return loss
        finally:
            work.close()
