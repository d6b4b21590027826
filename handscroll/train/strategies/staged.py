"""Exact backpropagation through rows far longer than memory: layers run in stages, and each stage in chunks of tokens.

A stage first runs forward chunk by chunk without a graph and keeps only keys and values. Then it runs backward from the
last chunk to the first, one chunk at a time, with a graph (`carry.py`). The inputs of every stage but the first are
kept, and their gradients overwrite them. One stage of all layers is the chunk-outer order. Stages of one layer are the
layer-outer order. Kept per token: (stages - 1) x D + layers per stage x 4 x K x E numbers.

Cost: forward, recomputed forward and backward, as with gradient checkpointing. Stages of more than one layer, except
the last stage, need nearly one forward more. Going backward chunk by chunk with carried gradients follows Li et al.
2025 ("SeCO") and Luo et al. 2025 ("StreamBP").

If the mask shows a token later ones (encoders, a prefix), a stage is one layer, which is the layer-outer order. The
keys and values of all chunks are computed first, then the queries run chunk by chunk. The backward goes through the
queries of all chunks, which adds gradients to all keys and values, and then through the keys and values. Kept per
token: layers x D + 4 x K x E numbers. The gradient of a stage's input is stored in place of its output's gradient until
the keys and values are done. Keys and values are projected twice more.

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
from handscroll.train.strategies.stack import LongStep, Stack, StackSetup
from handscroll.train.strategies.strategy import Pass


@dataclass(frozen=True)
class Staged:
    """The strategy with stages of `stage_layers` layers (0: all of them) and chunks of `chunk` tokens.

    `blocks`, if given, opens the storage for keys, values, their gradients and stage inputs.
    """

    chunk: int
    stage_layers: int = 0
    mlp_tile: int = 0
    blocks: Callable[[], Blocks] | None = None

    def __call__(self, model: Decoder, batch: Batch, request: Pass) -> Loss:
        if not request.objective.additive:
            name = type(request.objective).__name__
            raise ConfigError(f"objective {name} does not add up over positions, so it cannot be trained in chunks")
        step = LongStep(model, request, self.chunk, self.stage_layers, self.mlp_tile, self.blocks)
        try:
            source = None if batch.source is None else Source(step, batch.source)
            stack = Stack(step, StackSetup.own(step, batch), source)
            if source is not None:
                source.read()
            loss = stack.run()
            if source is not None:
                source.back()
            request.pulse(1.0)
            return loss
        finally:
            step.close()
