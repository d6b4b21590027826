"""The contract of encoder-decoders: a source is encoded once, and a decoder reads its memory."""

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from handscroll.models.model import Decoder, Model
from handscroll.nn.attention import Context, CrossAttention
from handscroll.nn.bias import Bias
from handscroll.nn.keeper import Keeper
from handscroll.nn.marks import Marks
from handscroll.nn.mask import Everything, Mask, SameSegment
from handscroll.nn.memory import Memory
from handscroll.nn.shapes import Embeddings, Logits, Sources, Tokens


class Encoder(nn.Module):
    """The layers and final norm of an encoder."""

    layers: nn.ModuleList
    norm: nn.Module

    def run(self, embeddings: Embeddings, context: Context) -> Embeddings:
        """Run all layers and the final norm."""
        x = context.dropped(embeddings, 0)
        for layer in self.layers:
            x = layer(x, context)
        return self.norm(x)


class EncoderDecoder(Decoder):
    """A decoder whose layers also attend to a source, which its `encoder` reads in both directions.

    In addition to a decoder, subclasses set `encoder`, and a decoder layer has `cross`, its attention to the source.
    `config.start` is the token that begins every decoder text; `config.layers` counts decoder layers.
    """

    encoder: Encoder

    def source_bias(self) -> Bias | None:
        """The bias that is added to the encoder's attention scores, if the family encodes positions so."""
        return None

    def source_context(self, marks: Marks, **shared: Any) -> Context:
        """The context of the encoder: every token sees all of its document. `shared` are fields of `Context`."""
        mask: Mask = Everything() if marks.plain else SameSegment()
        if shared.get("noise") is not None:  # its dropout sites come after the decoder's three a layer
            shared["noise"] = replace(shared["noise"], first_site=3 * self.config.layers + 1)
        return Context(marks, mask, bias=self.source_bias(), **shared)

    def encode(self, source: Sources, marks: Marks | None = None, **shared: Any) -> Memory:
        """Encode a source (B, S) and return its memory; `marks` separate padding and packed documents."""
        marks = Marks.run(0, source.shape[1]) if marks is None else marks
        return Memory(self.encoder.run(self.embed(source, marks), self.source_context(marks, **shared)), marks)

    def keep(self, memory: Memory) -> Memory:
        """The memory with the keys and values of every decoder layer, so that decoding does not compute them again."""
        crosses = [layer.cross for layer in self.layers]
        assert all(isinstance(cross, CrossAttention) for cross in crosses)
        spans = [[cross.keep(memory)] for cross in crosses]  # type: ignore[union-attr]
        return replace(memory, known=spans.__getitem__)

    def hidden(
        self,
        embeddings: Embeddings,
        marks: Marks,
        mask: Mask,
        cache: Keeper | None = None,
        length: int | None = None,
        memory: Memory | None = None,
    ) -> Embeddings:
        """As in a decoder, but it needs the `memory` of the source.

        Raises:
            ConfigError: there is no memory.
        """
        return self.run(embeddings, self.context(embeddings, marks, mask, length, cache=cache, memory=memory))

    def under(self, memory: Memory) -> "Under":
        """The decoder with the memory of a source, as an ordinary decoder model."""
        return Under(self, memory)

    def forward(  # type: ignore[override]
        self, source: Sources, tokens: Tokens, source_marks: Marks | None = None, marks: Marks | None = None
    ) -> Logits:
        """Logits (B, T, V) of decoder texts (B, T) for sources (B, S), for convenience with short input."""
        marks = Marks.run(0, tokens.shape[1]) if marks is None else marks
        memory = self.encode(source, source_marks)
        mask = self.mask() if marks.plain else self.mask() & SameSegment()
        return self.logits(self.hidden(self.embed(tokens, marks), marks, mask, memory=memory))


class Under(Model):
    """An encoder-decoder with the memory of its source; decoding code needs no knowledge of either."""

    def __init__(self, model: EncoderDecoder, memory: Memory):
        super().__init__()
        self.config, self.logit_cap = model.config, model.logit_cap
        self.model = model
        self.memory = model.keep(memory)

    def embed(self, tokens: Tokens, marks: Marks) -> Embeddings:
        return self.model.embed(tokens, marks)

    def hidden(
        self, embeddings: Embeddings, marks: Marks, mask: Mask, cache: Keeper | None = None, length: int | None = None
    ) -> Embeddings:
        return self.model.hidden(embeddings, marks, mask, cache, length, self.memory)

    def logits(self, hidden: Embeddings) -> Logits:
        return self.model.logits(hidden)

    @property
    def head(self) -> Tensor:
        return self.model.head

    def project(self, hidden: Tensor) -> Tensor:
        return self.model.project(hidden)

    def mask(self) -> Mask:
        return self.model.mask()
