"""What is to be run, as plain numbers: the planner's question. Imports no torch and knows no model."""

import math
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from handscroll.base.config import Config
from handscroll.base.spec import LayerSpec, ModelSpec, kinds, over

Kind = Literal["train", "extend", "generate", "serve"]
StrategyName = Literal["auto", "plain", "checkpoint", "chunk-outer", "layer-outer", "staged"]
# The settings of a recipe's table `memory` that a forecast depends on.
MEMORY = ("strategy", "stage_layers", "chunk", "offload", "mlp_tile")
CHUNKED = ("chunk-outer", "layer-outer", "staged")
BEST = 3  # copies of the best weights on disk besides one for each checkpoint: the last two, and one that is written


class Footprint(Config):
    """Bytes of a key-value cache of one row: `each` for a token that is kept, whatever keeps it.

    `most` tokens are kept at most (0: all), and one more while it is read; with `whole` all of a prompt is kept until
    its end. `fixed` are buffers whatever the length. `reading`: bytes of a token of the chunk being read, until it is
    put away. `filed`: bytes of a token on disk. `hosted`: bytes of a token in host memory, beside a GPU. `rolling`: of
    layers that keep a window, bytes of a token and the most tokens, for each size of window; twice that while more than
    a window is read.
    """

    each: float = Field(ge=0)
    most: int = Field(default=0, ge=0)
    whole: bool = False
    fixed: int = Field(default=0, ge=0)
    reading: float = Field(default=0.0, ge=0)
    filed: float = Field(default=0.0, ge=0)
    hosted: float = Field(default=0.0, ge=0)
    rolling: tuple[tuple[float, int], ...] = ()

    def held(self, tokens: int) -> int:
        """Bytes once `tokens` have gone by and the next is read."""
        windows = sum(each * min(tokens, most) for each, most in self.rolling)
        return math.ceil(self.fixed + self.each * (min(tokens, self.most + 1) if self.most else tokens) + windows)

    def peak(self, prompt: int, new: int, chunk: int) -> int:
        """Most bytes at any time of a request: a prompt in chunks, then `new` tokens, the last of which is not kept."""
        tokens, chunk = prompt + max(0, new - 1), min(chunk, prompt)
        windows = math.ceil(sum(each * min(prompt, most) * (1 + (prompt > most)) for each, most in self.rolling))
        if not self.most:
            without = self.model_copy(update={"rolling": ()})
            reading = without.held(tokens) + math.ceil(self.reading * chunk) + windows
            return max(self.held(tokens), reading)
        read = prompt if self.whole else min(prompt, self.most + chunk)
        return max(self.held(tokens), math.ceil(self.fixed + self.each * read) + windows)


class Workload(Config):
    """A run on one machine. `rows` are rows of one micro-batch; `micro` are micro-batches of an update.

    `keep` checkpoints are kept on disk, and one more exists while it is written. For `generate` and `serve`: `length`
    tokens of prompt, `new` tokens, `rows` slots, and the dtype of weights (unless they are `stored` in other formats)
    and cache is `precision`; `cache` is what the cache of a row takes (None: every token in that dtype). `past` tokens
    before the prompt are kept already.
    """

    kind: Kind = "train"
    spec: ModelSpec
    lora: int = Field(default=0, ge=0, description="rank of LoRA; 0: all weights are trained")
    lora_targets: int = Field(default=4, ge=0, description="projections of a layer that LoRA adapts, attention first")
    tables: bool = Field(default=False, description="with LoRA: embeddings and norms are trained too")
    length: int = Field(ge=1)
    rows: int = Field(default=1, ge=1)
    micro: int = Field(default=1, ge=1)
    steps: int = Field(default=1, ge=1)
    packed: bool = False
    targets: float = Field(default=1.0, ge=0, le=1, description="share of tokens that the loss is of")
    read: float = Field(default=0.9, gt=0, description="encoder-decoders: tokens of source, by those of the row's text")
    written: float = Field(default=0.2, gt=0, description="encoder-decoders: tokens of target")
    precision: Literal["float32", "bfloat16"] = "float32"
    stored: int = Field(default=0, ge=0, description="bytes of weights that stay in number formats; 0: in `precision`")
    rounded: bool = Field(default=False, description="whether those formats have few bits: products of whole numbers")
    frozen: Literal["float32", "bfloat16"] = Field(default="float32", description="with LoRA: what the weights are in")
    optimizer: Literal["adam", "adamw", "sgd", "lamb", "muon", "adafactor"] = "adamw"
    average: bool = False
    dropout: bool = False
    strategy: StrategyName = "auto"
    chunk: int = Field(default=0, ge=0)
    stage_layers: int = Field(default=0, ge=0)
    mlp_tile: int = Field(default=0, ge=0)
    offload: Literal["none", "host", "disk"] = "none"
    device: Literal["cpu", "cuda"] = "cpu"
    keep: int = Field(default=2, ge=0)
    best: bool = Field(default=False, description="the best validated weights are kept beside the checkpoints")
    new: int = Field(default=0, ge=0, description="generate, serve: new tokens")
    past: int = Field(default=0, ge=0, description="generate: tokens before the prompt, kept already")
    made: bool = Field(default=False, description="train: the weights were made already, and lie on the device")
    copied: bool = Field(default=False, description="generate: whether what is kept of them is copied to the device")
    cache: Footprint | None = None
    data_bytes: int = Field(default=0, ge=0, description="the training text in memory")
    threads: int = Field(default=0, ge=0, description="0: as many as there are processors")

    @model_validator(mode="after")
    def _meant(self):
        if (self.strategy == "staged") != bool(self.stage_layers):
            raise ValueError("stage_layers belongs to strategy 'staged', and 'staged' needs it")
        if self.strategy in ("plain", "checkpoint") and (self.chunk or self.offload != "none"):
            raise ValueError(f"strategy '{self.strategy}' has no chunks and offloads nothing: leave both out")
        if self.tables and not self.lora:
            raise ValueError("tables are trained beside LoRA; without lora all weights are trained: leave tables out")
        return self

    @property
    def sides(self) -> tuple[Self, Self]:
        """Of an encoder-decoder, what is done with the source, and with the target."""
        spec = self.spec
        alone = {"encoder": (), "reads": "both", "layers": spec.encoder, "extra": 0, "tied": True}
        source = spec.model_copy(update=alone)
        target = spec.model_copy(update={"encoder": (), "reads": "forward"})
        shares = ((source, self.read), (target, self.written))
        return tuple(  # type: ignore[return-value]
            self.model_copy(update={"spec": side, "length": max(1, math.ceil(share * self.length))})
            for side, share in shares
        )

    def adapters(self, layer: LayerSpec) -> int:
        """Numbers of the LoRA matrices of one layer: rank x (in + out) of each target, attention first."""
        attention = [layer.inner, layer.shared, layer.shared, layer.inner]
        sizes = [layer.width + out for out in attention] + [max(1, layer.experts) * (layer.width + layer.mlp_width)] * 3
        again = sum(sizes[: min(self.lora_targets, 4)]) if layer.crossed else 0
        return self.lora * (sum(sizes[: self.lora_targets]) + again)

    @property
    def adapted(self) -> int:
        """Numbers of all LoRA matrices."""
        return over((*self.spec.encoder, *self.spec.layers), self.adapters)

    @property
    def learned_tables(self) -> int:
        """Numbers of embeddings and norms that are trained beside LoRA, but for the few vectors of an embedding norm.

        Embeddings that are stored in a number format get no gradient.
        """
        if not self.tables:
            return 0
        return self.spec.normed + (0 if self.stored else self.spec.embedded)

    @property
    def learned_table(self) -> bool:
        """Whether the table of tokens gets a gradient."""
        return not self.lora or (self.tables and not self.stored)

    @property
    def learned_norms(self) -> bool:
        """Whether the weights of norms get gradients."""
        return not self.lora or self.tables

    @property
    def learned_head(self) -> bool:
        """Whether the matrix of the head gets a gradient: a tied one is the table of tokens."""
        return self.learned_table and (self.spec.tied or not self.lora)

    @property
    def parameters(self) -> int:
        """All numbers of the model, LoRA's included."""
        return self.spec.parameters + self.adapted

    @property
    def trainable(self) -> int:
        """Numbers that get gradients."""
        return self.adapted + self.learned_tables if self.lora else self.parameters

    @property
    def largest(self) -> int:
        """Numbers of the largest tensor that gets a gradient."""
        layers = [layer for layer, _ in kinds((*self.spec.layers, *self.spec.encoder))]
        table = max(self.spec.table, max(one.rows for one in self.spec.positions) * self.spec.width)
        if self.lora:
            mlp = self.lora_targets > 4
            widest = self.lora * max(max(one.width, one.inner, one.mlp_width if mlp else 0) for one in layers)
            return max(widest, table) if self.learned_table else widest
        return max(table, *(one.width * max(one.mlp_width, one.inner) for one in layers))

    def changed(self, **values: Any) -> Self:
        """A validated copy with other values."""
        return type(self).model_validate(dict(self) | values)
