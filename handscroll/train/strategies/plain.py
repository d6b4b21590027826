"""The first two strategies: autograd keeps everything, or only the layers' inputs (Chen et al. 2016)."""

from dataclasses import dataclass

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from handscroll.base.allocator import trim
from handscroll.data.batch import Batch
from handscroll.models.encoder_decoder import Encoder
from handscroll.models.model import Decoder
from handscroll.nn.attention import Context
from handscroll.nn.memory import Memory
from handscroll.objectives.loss import Loss
from handscroll.train.strategies.strategy import Pass

TRIMS = 4  # how often a plain step gives free pages back, in the forward and again in the backward


@dataclass(frozen=True)
class Plain:
    """The strategy that runs whole rows. The loss is chunked, so T x V logits never exist, here as in every strategy.

    `recompute` keeps one input per layer and runs each layer again in the backward. `mlp_tile` does the same with
    tiles of tokens inside the MLP.
    """

    recompute: bool = False
    mlp_tile: int = 0

    def __call__(self, model: Decoder, batch: Batch, request: Pass) -> Loss:
        marks = batch.marks()
        with request.precision(model):
            memory = None if batch.source is None else self._read(model, batch.source, request)
            x = model.embed(batch.tokens, marks)
            mask = request.objective.mask(model, marks)
            shared = {"noise": request.noise, "mlp_tile": self.mlp_tile, "memory": memory}
            context = model.context(x, marks, mask, request.length, **shared)
            hidden = self._run(model, x, context)
            loss = request.objective.loss(model, hidden, batch)
        (loss.total / request.divisor).backward()
        trim()  # before the update allocates its own tensors
        request.pulse(1.0)
        return loss

    def _read(self, model: Decoder, source: Batch, request: Pass) -> Memory:
        """Run the source of an encoder-decoder through the encoder, in the same way as the decoder runs."""
        assert model.spec.encoder, "the batch has a source, but the model has no encoder"
        marks = source.marks()
        context = model.source_context(marks, noise=request.noise, mlp_tile=self.mlp_tile)
        return Memory(self._run(model.encoder, model.embed(source.tokens, marks), context), marks)

    def _run(self, model: Decoder | Encoder, embeddings: Tensor, context: Context) -> Tensor:
        """Run all layers and the final norm. Free heap pages are given back during the forward and the backward."""
        x = context.dropped(embeddings, 0)
        every = 1 if self.recompute else max(1, len(model.layers) // TRIMS)
        for number, layer in enumerate(model.layers):
            if number % every == 0:
                trim()
                if x.requires_grad:
                    x.register_hook(_trimmed)
            # Dropout depends on the token alone, so no generator state has to be kept for the second run.
            x = (
                checkpoint(layer, x, context, use_reentrant=False, preserve_rng_state=False)
                if self.recompute
                else layer(x, context)
            )
        trim()
        return model.norm(x)


def _trimmed(_: Tensor) -> None:
    """A backward hook that gives back the memory of the layers above before the layers below begin."""
    trim()
