"""What is to be run, as plain numbers: the planner's question. Imports no torch and knows no model."""

import math
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from handscroll.base.config import Config

Kind = Literal["train", "extend", "generate", "serve"]
RungName = Literal["auto", "plain", "checkpoint", "chunk-outer", "layer-outer", "staged"]
# The settings of a recipe's table `memory` that a forecast depends on.
MEMORY = ("rung", "stage_layers", "chunk", "offload", "mlp_tile")
CHUNKED = ("chunk-outer", "layer-outer", "staged")


class Shape(Config):
    """Sizes of a model. `positions` are rows of a learned position table (0: none). `both_ways`: tokens see those after
    them, so layers are worked on one by one (rung layer-outer) or whole.

    An encoder-decoder has `encoder_layers` besides the decoder's `layers`; it is counted as its two `sides`, of which
    the decoder's is `crossed`: its layers read the other's states. `biased`: a learned bias is added to the scores, and
    nothing is rotated; `sloped`: a fixed one is (ALiBi). `gated` False: a layer of the Llama form has a plain MLP.

    `encoder`: those of a BERT, whose hidden tokens alone go through a transform to the head, with no norm before it.
    `extra` are numbers that belong to no layer and no table: an encoder's heads, transform and pooler.
    `trainable` None means all of it; less means LoRA of `lora_rank` on `lora_targets` projections of each layer.
    """

    family: Literal["llama", "gpt2", "lstm"]
    layers: int = Field(ge=1)
    width: int = Field(ge=1)
    heads: int = Field(ge=1)
    kv_heads: int = Field(ge=1)
    head_size: int = Field(ge=1)
    mlp_width: int = Field(ge=1)
    vocab: int = Field(ge=1)
    tied: bool = False
    positions: int = Field(default=0, ge=0)
    both_ways: bool = False
    encoder: bool = False
    extra: int = Field(default=0, ge=0)
    windows: tuple[int | None, ...] = ()
    encoder_layers: int = Field(default=0, ge=0)
    crossed: bool = False
    biased: bool = False
    sloped: bool = False
    gated: bool = True
    norms: int = Field(default=2, ge=2, description="norms of a layer of the Llama form")
    lora_rank: int = Field(default=0, ge=0)
    lora_targets: int = Field(default=4, ge=0)

    @classmethod
    def of(cls, config: Any, **changes: Any) -> Self:
        """The shape of a model's configuration, which says itself how it is counted (`models/sizes.py: Sizes`)."""
        return cls(**config.shape() | changes)

    @property
    def inner(self) -> int:
        """Width of all query heads together."""
        return 0 if self.family == "lstm" else self.heads * self.head_size

    @property
    def shared(self) -> int:
        """Width of all key (or value) heads together."""
        return 0 if self.family == "lstm" else self.kv_heads * self.head_size

    @property
    def products(self) -> int:
        """Matrices of a layer's MLP."""
        return 3 if self.family == "llama" and self.gated else 2

    @property
    def sides(self) -> tuple[Self, Self]:
        """The encoder of an encoder-decoder, without tables or a head, and the decoder with them."""
        rest = {"encoder_layers": 0}
        return (
            self.model_copy(update=rest | {"layers": self.encoder_layers, "both_ways": True, "extra": 0, "tied": True}),
            self.model_copy(update=rest | {"crossed": True}),
        )

    @property
    def layer_matrices(self) -> int:
        """Numbers in the projections of one layer; of an LSTM's four gates, from input and state."""
        if self.family == "lstm":
            return 8 * self.width**2
        attention = 2 * self.inner + 2 * self.shared
        return self.width * ((2 if self.crossed else 1) * attention + self.products * self.mlp_width)

    @property
    def table(self) -> int:
        """Numbers of the embedding, which are those of the head."""
        return self.vocab * self.width

    @property
    def tables(self) -> int:
        """Numbers in the embedding, an own head and learned positions."""
        return (1 if self.tied else 2) * self.table + self.positions * self.width

    @property
    def layer_vectors(self) -> int:
        """Norms and biases of one layer (Llama's optional biases and head norms are left out: under 0.1 %)."""
        if self.family == "lstm":
            return 8 * self.width
        if self.family == "llama":
            return (self.norms + self.crossed) * self.width
        return 6 * self.width + self.inner + 2 * self.shared + self.mlp_width

    @property
    def adapters(self) -> int:
        """Numbers of the LoRA matrices of one layer: rank x (in + out) of each target, attention first."""
        attention = [self.inner, self.shared, self.shared, self.inner]
        sizes = [self.width + out for out in attention] + [self.width + self.mlp_width] * 3
        again = sum(sizes[: min(self.lora_targets, 4)]) if self.crossed else 0
        return self.lora_rank * (sum(sizes[: self.lora_targets]) + again)

    @property
    def parameters(self) -> int:
        """All numbers of the model, adapters included."""
        if self.encoder_layers:
            source, target = self.sides
            return target.parameters + source.in_layers + self.width
        norm = self.width * {"llama": 1, "gpt2": 2, "lstm": 0}[self.family]
        return self.in_layers + self.tables + norm + self.extra

    @property
    def matrices(self) -> int:
        """Numbers in the projections of all layers."""
        if self.encoder_layers:
            return sum(side.matrices for side in self.sides)
        return self.layers * self.layer_matrices

    @property
    def in_layers(self) -> int:
        """Numbers of all layers, adapters included."""
        return self.layers * (self.layer_matrices + self.layer_vectors + self.adapters)

    @property
    def trainable(self) -> int:
        """Numbers that get gradients."""
        if self.lora_rank and self.encoder_layers:
            return sum(side.layers * side.adapters for side in self.sides)
        return self.layers * self.adapters if self.lora_rank else self.parameters

    @property
    def largest(self) -> int:
        """Numbers of the largest tensor that gets a gradient."""
        if self.lora_rank:
            return self.lora_rank * max(self.width, self.inner, self.mlp_width if self.lora_targets > 4 else 0)
        return max(self.table, self.width * self.mlp_width, self.width * self.inner, self.positions * self.width)


class Footprint(Config):
    """Bytes of a key-value cache of one row: `each` for a token that is kept, whatever keeps it.

    `most` tokens are kept at most (0: all), and one more while it is read; with `whole` all of a prompt is kept until
    its end. `fixed` are buffers whatever the length. `reading`: bytes of a token of the chunk being read, until it is
    put away. `filed`: bytes of a token on disk.
    """

    each: float = Field(ge=0)
    most: int = Field(default=0, ge=0)
    whole: bool = False
    fixed: int = Field(default=0, ge=0)
    reading: float = Field(default=0.0, ge=0)
    filed: float = Field(default=0.0, ge=0)

    def held(self, tokens: int) -> int:
        """Bytes once `tokens` have gone by and the next is read."""
        return math.ceil(self.fixed + self.each * (min(tokens, self.most + 1) if self.most else tokens))

    def peak(self, prompt: int, new: int, chunk: int) -> int:
        """Most bytes at any time of a request: a prompt in chunks, then `new` tokens, the last of which is not kept."""
        tokens, chunk = prompt + max(0, new - 1), min(chunk, prompt)
        if not self.most:
            return self.held(tokens) + math.ceil(self.reading * chunk)
        read = prompt if self.whole else min(prompt, self.most + chunk)
        return max(self.held(tokens), math.ceil(self.fixed + self.each * read))


class Workload(Config):
    """A run on one machine. `rows` are rows of one micro-batch; `micro` are micro-batches of an update.

    `keep` checkpoints are kept on disk, and one more exists while it is written. For `generate` and `serve`: `length`
    tokens of prompt, `new` tokens, `rows` slots, and the dtype of weights and cache is `precision`; `cache` is what the
    cache of a row takes (None: every token in that dtype). `past` tokens before the prompt are kept already.
    """

    kind: Kind = "train"
    shape: Shape
    length: int = Field(ge=1)
    rows: int = Field(default=1, ge=1)
    micro: int = Field(default=1, ge=1)
    steps: int = Field(default=1, ge=1)
    packed: bool = False
    targets: float = Field(default=1.0, ge=0, le=1, description="share of tokens that the loss is of")
    read: float = Field(default=0.9, gt=0, description="encoder-decoders: tokens of source, by those of the row's text")
    written: float = Field(default=0.2, gt=0, description="encoder-decoders: tokens of target")
    precision: Literal["float32", "bfloat16"] = "float32"
    frozen: Literal["float32", "bfloat16"] = Field(default="float32", description="with LoRA: what the weights are in")
    optimizer: Literal["adam", "adamw", "sgd", "lamb", "muon", "adafactor"] = "adamw"
    average: bool = False
    dropout: bool = False
    rung: RungName = "auto"
    chunk: int = Field(default=0, ge=0)
    stage_layers: int = Field(default=0, ge=0)
    mlp_tile: int = Field(default=0, ge=0)
    offload: Literal["none", "host", "disk"] = "none"
    device: Literal["cpu", "cuda"] = "cpu"
    keep: int = Field(default=2, ge=0)
    new: int = Field(default=0, ge=0, description="generate, serve: new tokens")
    past: int = Field(default=0, ge=0, description="generate: tokens before the prompt, kept already")
    cache: Footprint | None = None
    data_bytes: int = Field(default=0, ge=0, description="the training text in memory")
    threads: int = Field(default=0, ge=0, description="0: as many as there are processors")

    @model_validator(mode="after")
    def _meant(self):
        if (self.rung == "staged") != bool(self.stage_layers):
            raise ValueError("stage_layers belongs to rung 'staged', and 'staged' needs it")
        if self.rung in ("plain", "checkpoint") and (self.chunk or self.offload != "none"):
            raise ValueError(f"rung '{self.rung}' has no chunks and offloads nothing: leave both out")
        return self

    @property
    def sides(self) -> tuple[Self, Self]:
        """Of an encoder-decoder, what is done with the source, and with the target."""
        source, target = self.shape.sides
        shares = ((source, self.read), (target, self.written))
        return tuple(  # type: ignore[return-value]
            self.model_copy(update={"shape": side, "length": max(1, math.ceil(share * self.length))})
            for side, share in shares
        )

    def changed(self, **values: Any) -> Self:
        """A validated copy with other values."""
        return type(self).model_validate(self.model_dump() | values)
