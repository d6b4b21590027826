"""The first two rungs: everything kept by autograd, or only the layers' inputs (Chen et al. 2016, checkpointing)."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from handscroll.base.allocator import trim
from handscroll.data.batch import Batch
from handscroll.models.model import Decoder
from handscroll.nn.attention import Context
from handscroll.objectives.loss import Loss
from handscroll.train.ladder.rung import Request


@dataclass(frozen=True)
class Plain:
    """Forward and backward of whole rows; the loss is chunked, so no T x V logits exist on any rung.

    `recompute` keeps one input per layer and runs each layer again in the backward; `mlp_tile` does the same
    with tiles of tokens inside the MLP.
    """

    recompute: bool = False
    mlp_tile: int = 0

    def __call__(self, model: Decoder, batch: Batch, request: Request) -> Loss:
        marks = batch.marks()
        with request.precision(model):
            x = model.embed(batch.tokens, marks)
            mask = request.objective.mask(model, marks)
            context = model.context(x, marks, mask, request.length, noise=request.noise, mlp_tile=self.mlp_tile)
            hidden = self._recomputed(model, x, context) if self.recompute else model.run(x, context)
            loss = request.objective.loss(model, hidden, batch)
        (loss.total / request.divisor).backward()
        request.pulse(1.0)
        return loss

    def _recomputed(self, model: Decoder, embeddings: Tensor, context: Context) -> Tensor:
        x = context.dropped(embeddings, 0)
        for layer in model.layers:
            # Dropout depends on the token alone, so no generator's state has to be kept for the second run.
            x = checkpoint(_tidied, layer, x, context, use_reentrant=False, preserve_rng_state=False)
        return model.norm(x)


def _tidied(layer: nn.Module, x: Tensor, context: Context) -> Tensor:
    trim()
    return layer(x, context)
