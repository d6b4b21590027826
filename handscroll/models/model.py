"""The `Model` contract that every family fulfils, and on which training and generation rely."""

from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from handscroll.base.errors import ConfigError
from handscroll.base.spec import LayerSpec, ModelSpec
from handscroll.cache.cache import Cache
from handscroll.cache.full import FullCache
from handscroll.kernels.runs import capped
from handscroll.nn.adapted import dtype_of
from handscroll.nn.attention import Attention, Context, Heads
from handscroll.nn.bias import Bias
from handscroll.nn.block import LAYERS, Block, Norms
from handscroll.nn.keeper import Keeper
from handscroll.nn.linear import Linear, TokenTable
from handscroll.nn.marks import Marks
from handscroll.nn.mask import Causal, Everything, Mask
from handscroll.nn.memory import Memory
from handscroll.nn.mlp import mlp_of
from handscroll.nn.norm import LayerNorm, RMSNorm
from handscroll.nn.quantised import Quantised
from handscroll.nn.rope import Rotation
from handscroll.nn.shapes import Embeddings, Logits, Tokens

if TYPE_CHECKING:
    from handscroll.models.encoder_decoder import Encoder


class Model(nn.Module):
    """A language model: `embed`, `hidden`, `logits` and a frozen `config`.

    `hidden` runs all layers and the final norm. `length` is the declared length of the request (prompt + new tokens).
    Only a length-dependent scaling needs it, and such a scaling refuses to run without it.
    """

    config: Any
    both_ways = False  # True: every token sees those after it (an encoder)
    silent = False  # True: it has no head for tokens, so `logits` refuses
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
        """The description of the model, layer by layer."""
        return self.config.spec

    @property
    def head(self) -> Tensor:
        """The (V, D) projection to the vocabulary, for the chunked loss; quantised weights are widened each time.

        logits = prepared(hidden) @ head.T, then `logit_cap`.
        """
        raise NotImplementedError

    def project(self, hidden: Tensor) -> Tensor:
        """prepared (..., D) @ head.T, without `head_bias` and `logit_cap`; quantised weights stay as they lie."""
        raise NotImplementedError

    def mask(self) -> Mask:
        """The family's mask for plain text."""
        raise NotImplementedError

    # Only some models have the following; `spec` says which, and the others raise an error.

    def prepared(self, hidden: Tensor) -> Tensor:
        """The input of `head` and `head_bias` for hidden states (..., D)."""
        return hidden

    @property
    def head_bias(self) -> Tensor | None:
        """The bias (V,) that is added to hidden @ head.T, or None."""
        return None

    def judge(self, states: Tensor) -> Tensor:
        """The outputs (..., N) of the head `spec.head` for hidden states (..., D): one number a label."""
        raise self._lacks("head besides that for tokens")

    def following_logits(self, first: Tensor) -> Tensor:
        """Next-sentence logits (..., 2) from states of first tokens; class 0: the second text follows the first."""
        raise self._lacks("next-sentence head")

    def classify(self, hidden: Embeddings, marks: Marks, at: Tensor) -> Tensor:
        """Logits (N, labels) of the N documents whose states are read where `at` (B, T) is true, in their order.

        `at` marks the first or the last token of each document, as `spec.pool` says; either for a mean over the whole.
        """
        return self.judge(means(hidden, marks, at) if self.spec.pool == "mean" else hidden[at])

    def encode(self, source: Tokens, marks: Marks | None = None, **shared: Any) -> Memory:
        """Encode a source (B, S) and return its memory; `shared` are fields of `Context`."""
        raise self._lacks("encoder, which reads a source")

    def under(self, memory: Memory) -> "Model":
        """The decoder with the memory of a source, as an ordinary decoder model."""
        raise self._lacks("encoder, which reads a source")

    def source_context(self, marks: Marks, **shared: Any) -> Context:
        """The context that the encoder's layers share in one forward."""
        raise self._lacks("encoder, which reads a source")

    def _lacks(self, what: str) -> ConfigError:
        return ConfigError(f"family '{self.config.family}' as it is here has no {what}")

    def _no_cache(self) -> ConfigError:
        return ConfigError(
            f"a {self.config.family} is an encoder here: every token sees those after it, so nothing is cached and no "
            "text is generated; use embed or logits, or a causal model (llama, gpt2, ...)"
        )

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The number of tokens that each layer sees, including the current one; None means all of them."""
        return self.spec.windows

    def new_cache(self, capacity: int = 0, kind: Callable[..., Cache] = FullCache, **options: Any) -> Cache:
        """A cache of class `kind` for the layers of this model, with the options of that class.

        Raises:
            ConfigError: every token sees those after it, so nothing can be kept.
        """
        if self.both_ways:
            raise self._no_cache()
        kept = None if self.cache_dtype == self.dtype else self.cache_dtype
        return kind(self.config.layers, capacity=capacity, windows=self.windows, dtype=kept, **options)

    @property
    def device(self) -> torch.device:
        return next(chain(self.parameters(), self.buffers())).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the computation; rounded weights are widened to it (norms are never rounded)."""
        return next(self.parameters()).dtype

    @property
    def cache_dtype(self) -> torch.dtype:
        """The dtype in which caches keep keys and values: `dtype`, or float16 for rounded weights on a CPU.

        Such weights are rounded more than float16 rounds keys (docs/log.md); a model of float weights keeps its dtype.
        """
        rounded = any(isinstance(module, Quantised) for module in self.modules())
        narrow = rounded and self.dtype == torch.float32 and self.device.type == "cpu"
        return torch.float16 if narrow else self.dtype

    def forward(
        self, tokens: Tokens, marks: Marks | None = None, cache: Cache | None = None, length: int | None = None
    ) -> Logits:
        """Logits (B, T, V) of whole sequences, for convenience with short input."""
        start = 0 if cache is None else cache.length
        marks = Marks.run(start, tokens.shape[1]) if marks is None else marks
        hidden = self.hidden(self.embed(tokens, marks), marks, self.mask(), cache, length)
        return self.logits(hidden)


class Decoder(Model):
    """The common parts of decoders: token table, layers, final norm, tied or own projection, causal mask.

    Subclasses set `embedding`, `layers`, `norm` and `projection` (None: tied), and write `embed`, and `rotations` or
    `bias` if those encode positions. A layer is `layer(x, context) -> x`; `layer.remember(x, context)` only appends its
    keys and values.
    """

    embedding: TokenTable
    layers: nn.ModuleList
    norm: nn.Module
    projection: nn.Linear | None
    classifier: nn.Linear | None  # the last layer of a head that says something else than tokens
    encoder: "Encoder"  # only in an encoder-decoder

    def __init__(self) -> None:
        super().__init__()
        self.classifier = None

    @property
    def stacks(self) -> "list[Decoder | Encoder]":
        """The modules that have layers and a final norm: the model itself, and its encoder if it has one."""
        return [self, self.encoder] if self.spec.encoder else [self]

    def ready(self) -> None:
        """Make the parameters outside the layers usable; a sharded model gathers them here."""

    def context(self, like: Tensor, marks: Marks, mask: Mask, length: int | None = None, **shared: Any) -> Context:
        """The context that the layers share in one forward; `shared` are further fields of `Context`."""
        return Context(marks, mask, self.rotations(marks, length, like), self.bias(), **shared)

    def rotations(self, marks: Marks, length: int | None, like: Tensor) -> tuple[Rotation, ...]:
        """Rotary tables for tokens with `marks` in a request of `length`, one for each kind of layer."""
        return ()

    def bias(self) -> Bias | None:
        """The bias that is added to the attention scores of every layer, if the family encodes positions so."""
        return None

    def hidden(
        self, embeddings: Embeddings, marks: Marks, mask: Mask, cache: Keeper | None = None, length: int | None = None
    ) -> Embeddings:
        if cache is not None and self.both_ways:
            raise self._no_cache()
        return self.run(embeddings, self.context(embeddings, marks, mask, length, cache=cache))

    def run(self, embeddings: Embeddings, context: Context) -> Embeddings:
        """Run all layers and the final norm, and commit what the layers appended to the cache."""
        x = self.through(context.dropped(embeddings, 0), context)
        if context.cache is not None:
            context.cache.commit()
        return self.norm(x)

    def through(self, x: Embeddings, context: Context) -> Embeddings:
        """Run all layers, one after the other (`nn/block.py: _one_by_one`) or, for a few new tokens, in one call."""
        return LAYERS(self.layers, x, context)

    def judge(self, states: Tensor) -> Tensor:
        if self.classifier is None:
            return super().judge(states)
        return self.classifier(states.to(dtype_of(self.classifier)))  # a head that is trained may be wider

    def logits(self, hidden: Embeddings) -> Logits:
        if self.silent:
            self.spec.require("logits", head=True)
        return capped(self.project(self.prepared(hidden)), self.logit_cap)

    def project(self, hidden: Tensor) -> Tensor:
        return self.embedding.project(hidden) if self.projection is None else self.projection(hidden)

    @property
    def head(self) -> Tensor:
        return self.embedding.weight if self.projection is None else self.projection.weight

    def mask(self) -> Mask:
        return Everything() if self.both_ways else Causal()


class Layered(Decoder):
    """A decoder that makes each layer from its `LayerSpec`; a family overrides the method of the part that differs."""

    def __init__(self, config: Any):
        super().__init__()
        spec: ModelSpec = config.spec
        self.config, self.both_ways = config, spec.reads == "both"
        self.embedding = TokenTable(config.vocab, config.width)
        self.begin()
        self.layers = nn.ModuleList(self.block(layer, number) for number, layer in enumerate(spec.layers))
        self.norm = self.new_norm(spec.layers[-1])
        self.projection = None if spec.tied else Linear(config.width, config.vocab, bias=False)

    def begin(self) -> None:
        """Make the modules of the embedding besides the table of tokens."""

    def new_norm(self, layer: LayerSpec) -> nn.Module:
        """A norm of the residual stream."""
        if layer.norm == "rms":
            return RMSNorm(layer.width, self.config.norm_eps)
        return LayerNorm(layer.width, eps=self.config.norm_eps, bias=layer.norm_bias)

    def heads(self, layer: LayerSpec) -> Heads:
        """The heads of a layer's attention."""
        return Heads.of(layer, self.config.norm_eps)

    def mlp(self, layer: LayerSpec) -> nn.Module:
        """The MLP of a layer."""
        return mlp_of(layer)

    def block(self, layer: LayerSpec, number: int) -> Block:
        """Layer `number` of the stack; one of four norms also normalises what its branches give."""
        norms = Norms(partial(self.new_norm, layer), branch=layer.norms == 4)
        return Block(Attention(self.heads(layer), number), self.mlp(layer), norms)


def means(hidden: Embeddings, marks: Marks, at: Tensor) -> Tensor:
    """The mean state (N, D) of each document that has a mark in `at` (B, T), in the order of the marks."""
    index, segment, _ = (tensor.expand(at.shape) for tensor in marks.tensors(hidden.device))
    real = index >= 0
    row = torch.arange(len(at), device=hidden.device)[:, None].expand_as(segment)
    document = row * (int(segment.max()) + 1) + segment
    _, numbers = torch.unique(document[real], return_inverse=True)  # in the order of rows and documents
    sums = hidden.new_zeros(int(numbers.max()) + 1, hidden.shape[2]).index_add(0, numbers, hidden[real])
    counts = torch.bincount(numbers).to(hidden.dtype)
    place = torch.zeros_like(segment)
    place[real] = numbers
    chosen = place[at]
    return sums[chosen] / counts[chosen][:, None]
