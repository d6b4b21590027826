"""The `Model` contract that every family keeps, and what training and generation may rely on."""

from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from handscroll.nn.attention import Context
from handscroll.nn.cache import Cache
from handscroll.nn.marks import Marks
from handscroll.nn.mask import Causal, Mask
from handscroll.nn.shapes import Embeddings, Logits, Tokens


class ModelConfig(Protocol):
    """What a family's frozen configuration offers to everybody."""

    family: str
    vocab: int
    width: int
    layers: int
    bos: int | None
    eos: tuple[int, ...]

    @property
    def context(self) -> int:
        """Tokens that the checkpoint may be used to now."""
        ...

    @property
    def trained(self) -> int:
        """Tokens it was trained to before any lengthening."""
        ...

    def cache_bytes_per_token(self, element_size: int) -> int:
        """Bytes of keys and values that one token adds to a full cache."""
        ...


class Model(nn.Module):
    """A language model: `embed`, `hidden`, `logits` and a frozen `config`.

    `hidden` runs all layers and the final norm. `length` is the declared length of the request (prompt +
    new tokens); only a length-dependent scaling needs it, and then refuses to run without it.
    """

    config: Any

    def embed(self, tokens: Tokens, marks: Marks) -> Embeddings:
        raise NotImplementedError

    def hidden(
        self, embeddings: Embeddings, marks: Marks, mask: Mask, cache: Cache | None = None, length: int | None = None
    ) -> Embeddings:
        raise NotImplementedError

    def logits(self, hidden: Embeddings) -> Logits:
        raise NotImplementedError

    @property
    def head(self) -> Tensor:
        """The (V, D) projection to the vocabulary, for the chunked loss; logits = hidden @ head.T."""
        raise NotImplementedError

    def mask(self) -> Mask:
        """The family's own mask for plain text."""
        raise NotImplementedError

    def new_cache(self, capacity: int = 0) -> Cache:
        return Cache(self.config.layers, capacity=capacity)

    @property
    def device(self):
        return self.head.device

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

    Subclasses set `embedding`, `layers`, `norm` and `projection` (None: tied) and write `embed` and `hidden`.
    """

    embedding: nn.Embedding
    layers: nn.ModuleList
    norm: nn.Module
    projection: nn.Linear | None

    def run(self, embeddings: Embeddings, context: Context) -> Embeddings:
        """All layers and the final norm; what the layers appended to the cache becomes part of it."""
        x = embeddings
        for layer in self.layers:
            x = layer(x, context)
        if context.cache is not None:
            context.cache.commit()
        return self.norm(x)

    def logits(self, hidden: Embeddings) -> Logits:
        return F.linear(hidden, self.head)

    @property
    def head(self) -> Tensor:
        return self.embedding.weight if self.projection is None else self.projection.weight

    def mask(self) -> Mask:
        return Causal()
