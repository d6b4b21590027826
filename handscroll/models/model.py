"""The `Model` contract that every family keeps, and what training and generation may rely on."""

from collections.abc import Callable
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from handscroll.base.errors import ConfigError
from handscroll.base.spec import ModelSpec
from handscroll.cache.cache import Cache
from handscroll.cache.full import FullCache
from handscroll.kernels.runs import capped
from handscroll.nn.attention import Context
from handscroll.nn.bias import Bias
from handscroll.nn.block import LAYERS
from handscroll.nn.keeper import Keeper
from handscroll.nn.linear import TokenTable
from handscroll.nn.marks import Marks
from handscroll.nn.mask import Causal, Mask
from handscroll.nn.memory import Memory
from handscroll.nn.rope import Rotation
from handscroll.nn.shapes import Embeddings, Logits, Tokens

if TYPE_CHECKING:
    from handscroll.models.encoder_decoder import Encoder


class Model(nn.Module):
    """A language model: `embed`, `hidden`, `logits` and a frozen `config`.

    `hidden` runs all layers and the final norm. `length` is the declared length of the request (prompt +
    new tokens); only a length-dependent scaling needs it, and then refuses to run without it.
    """

    config: Any
    logit_cap: float | None = None  # logits z are cap * tanh(z / cap) (Gemma 2)

    def embed(self, tokens: Tokens, marks: Marks) -> Embeddings:
        raise NotImplementedError

    def hidden(
        self, embeddings: Embeddings, marks: Marks, mask: Mask, cache: Keeper | None = None, length: int | None = None
    ) -> Embeddings:
        raise NotImplementedError

    def logits(self, hidden: Embeddings) -> Logits:
        raise NotImplementedError

    @property
    def spec(self) -> ModelSpec:
        """What the model is, layer by layer."""
        return self.config.spec

    @property
    def head(self) -> Tensor:
        """The (V, D) projection to the vocabulary, for the chunked loss; logits = hidden @ head.T, then `logit_cap`."""
        raise NotImplementedError

    def mask(self) -> Mask:
        """The family's own mask for plain text."""
        raise NotImplementedError

    # What only some models have: `spec` says which, and the others refuse.

    def prepared(self, hidden: Tensor) -> Tensor:
        """What `head` and `head_bias` are applied to, for hidden states (..., D)."""
        return hidden

    @property
    def head_bias(self) -> Tensor | None:
        """What is added to hidden @ head.T (V,)."""
        return None

    def following_logits(self, first: Tensor) -> Tensor:
        """(..., 2) from the states of first tokens: 0, the second text follows the first; 1, it does not."""
        raise self._lacks("next-sentence head")

    def classify(self, hidden: Embeddings, marks: Marks, at: Tensor) -> Tensor:
        """Logits (N, labels) of the N documents whose states are read where `at` (B, T) is true, in their order."""
        raise self._lacks("labels to tell apart")

    def encode(self, source: Tokens, marks: Marks | None = None, **shared: Any) -> Memory:
        """The memory of a source (B, S); `shared` are fields of `Context`."""
        raise self._lacks("encoder, which reads a source")

    def under(self, memory: Memory) -> "Model":
        """The decoder alone, under what was read of a source: a model like any other."""
        raise self._lacks("encoder, which reads a source")

    def source_context(self, marks: Marks, **shared: Any) -> Context:
        """What the encoder's layers share in a forward."""
        raise self._lacks("encoder, which reads a source")

    def _lacks(self, what: str) -> ConfigError:
        return ConfigError(f"family '{self.config.family}' as it is here has no {what}")

    @property
    def windows(self) -> tuple[int | None, ...]:
        """How many tokens each layer sees, itself included; None: all of them."""
        return self.spec.windows

    def new_cache(self, capacity: int = 0, kind: Callable[..., Cache] = FullCache, **options: Any) -> Cache:
        """A cache of a policy for the layers of this model, with the options of its class."""
        return kind(self.config.layers, capacity=capacity, windows=self.windows, **options)

    @property
    def device(self) -> torch.device:
        return next(chain(self.parameters(), self.buffers())).device

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in; of rounded weights, what they are widened to (norms are never rounded)."""
        return next(self.parameters()).dtype

    def forward(
        self, tokens: Tokens, marks: Marks | None = None, cache: Cache | None = None, length: int | None = None
    ) -> Logits:
        """Logits (B, T, V) of whole sequences; a convenience for short input."""
        start = 0 if cache is None else cache.length
        marks = Marks.run(start, tokens.shape[1]) if marks is None else marks
        hidden = self.hidden(self.embed(tokens, marks), marks, self.mask(), cache, length)
        return self.logits(hidden)


class Decoder(Model):
    """What decoders share: token table, layers, final norm, tied or own projection, causal mask.

    Subclasses set `embedding`, `layers`, `norm` and `projection` (None: tied), write `embed`, and `rotations` or
    `bias` where those tell positions. A layer is `layer(x, context) -> x`, and `layer.remember(x, context)` only
    appends its keys and values.
    """

    embedding: TokenTable
    layers: nn.ModuleList
    norm: nn.Module
    projection: nn.Linear | None
    encoder: "Encoder"  # of an encoder-decoder alone

    @property
    def stacks(self) -> "list[Decoder | Encoder]":
        """What has layers and a final norm: the model itself, and its encoder."""
        return [self, self.encoder] if self.spec.encoder else [self]

    def ready(self) -> None:
        """Make the parameters outside the layers usable; a sharded model gathers them here."""

    def context(self, like: Tensor, marks: Marks, mask: Mask, length: int | None = None, **shared: Any) -> Context:
        """What the layers share in one forward: `shared` are further fields of `Context`."""
        return Context(marks, mask, self.rotations(marks, length, like), self.bias(), **shared)

    def rotations(self, marks: Marks, length: int | None, like: Tensor) -> tuple[Rotation, ...]:
        """Rotary tables for tokens with `marks` in a request of `length`, one for each kind of layer."""
        return ()

    def bias(self) -> Bias | None:
        """What is added to the attention scores of every layer, where that is how positions are told."""
        return None

    def hidden(
        self, embeddings: Embeddings, marks: Marks, mask: Mask, cache: Keeper | None = None, length: int | None = None
    ) -> Embeddings:
        return self.run(embeddings, self.context(embeddings, marks, mask, length, cache=cache))

    def run(self, embeddings: Embeddings, context: Context) -> Embeddings:
        """All layers and the final norm; what the layers appended to the cache becomes part of it."""
        x = self.through(context.dropped(embeddings, 0), context)
        if context.cache is not None:
            context.cache.commit()
        return self.norm(x)

    def through(self, x: Embeddings, context: Context) -> Embeddings:
        """All layers, one after the other or, for a few new tokens where it can be, together."""
        return LAYERS(self.layers, x, context)

    def logits(self, hidden: Embeddings) -> Logits:
        bare = self.embedding.project(hidden) if self.projection is None else self.projection(hidden)
        return capped(bare, self.logit_cap)

    @property
    def head(self) -> Tensor:
        return self.embedding.weight if self.projection is None else self.projection.weight

    def mask(self) -> Mask:
        return Causal()
