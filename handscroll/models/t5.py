"""T5 (Raffel et al. 2020, arXiv:1910.10683), T5 v1.1, Flan-T5 and mT5: encoder-decoders with a learned relative bias.

They are pre-norm with RMS norm, without biases, and without a scale in attention, because the initialisation contains
it. v1.0 has ReLU and a head tied to the embedding, and multiplies hidden states by 1/sqrt(width) before the head. v1.1
(Shazeer 2020, arXiv:2002.05202) and mT5 (Xue et al. 2021, arXiv:2010.11934) have a gated MLP and a head of their own.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from handscroll.base.errors import ConfigError, nearest
from handscroll.base.spec import LayerSpec, ModelSpec
from handscroll.models.encoder_decoder import Encoder, EncoderDecoder
from handscroll.models.foreign import (
    Entry,
    Family,
    Foreign,
    end_tokens,
    original_length,
    required,
    written_ends,
)
from handscroll.models.gguf.side import GGUFSide, Header, Written
from handscroll.models.new import SIZES, About
from handscroll.models.sizes import Sizes
from handscroll.nn.attention import Attention, CrossAttention, Heads
from handscroll.nn.bias import Buckets, Relative
from handscroll.nn.block import Block, Norms
from handscroll.nn.linear import Linear, TokenTable
from handscroll.nn.marks import Marks
from handscroll.nn.mlp import mlp_of
from handscroll.nn.norm import RMSNorm
from handscroll.nn.positions.buckets import Buckets as BucketPositions
from handscroll.nn.shapes import Embeddings, Tokens

TRAINED = 512  # source tokens for every published T5 (mT5: 1,024, which its files do not record)
# By the name in files: the library's name, and ours.
ACTIVATIONS = {"relu": ("relu", "relu"), "gated-gelu": ("gelu_new", "gelu-tanh"), "gated-silu": ("silu", "silu")}


class T5Config(Sizes):
    """Sizes of a T5. `layers` counts those of the decoder; `context` is the limit of tokens for source and target each.

    `buckets` and `reach` describe the relative bias (`nn/bias.py: Buckets`), and `factor` divides its distances. With
    `scaled`, hidden states are multiplied by 1/sqrt(width) before the head. `start` begins every decoder text.
    """

    family: Literal["t5", "mt5"] = "t5"
    vocab: int = Field(ge=1)
    width: int = Field(ge=1)
    encoder_layers: int = Field(ge=1)
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    head_size: int = Field(ge=1)
    mlp_width: int = Field(ge=1)
    mlp: Literal["relu", "gated-gelu", "gated-silu"] = "gated-gelu"
    buckets: int = Field(default=32, ge=4, multiple_of=4)
    reach: int = 128
    factor: float = Field(default=1.0, ge=1.0, allow_inf_nan=False)
    context: int = TRAINED
    original: int | None = None
    norm_eps: float = 1e-6
    tied: bool = False
    scaled: bool = False
    start: int
    bos: int | None = None
    eos: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _consistent(self):
        if self.reach <= self.buckets // 2:
            raise ValueError(f"reach {self.reach} tokens: the first {self.buckets // 2} have buckets of their own")
        if not 0 <= self.start < self.vocab:
            raise ValueError(f"start {self.start} is outside the vocabulary of {self.vocab} tokens")
        return self

    @property
    def kv_heads(self) -> int:
        return self.heads

    @property
    def trained(self) -> int:
        return self.original or self.context

    @property
    def spec(self) -> ModelSpec:
        names = ("width", "heads", "kv_heads", "head_size", "mlp_width")
        form = {"gated": self.mlp != "relu", "activation": ACTIVATIONS[self.mlp][1], "scale": 1.0}
        layer = LayerSpec(**{name: getattr(self, name) for name in names}, **form)
        about = ("context", "trained", "buckets", "reach", "factor")
        return ModelSpec(
            family=self.family,
            vocab=self.vocab,
            layers=(layer.model_copy(update={"crossed": True}),) * self.layers,
            encoder=(layer,) * self.encoder_layers,
            positions=(BucketPositions(**{name: getattr(self, name) for name in about}),),
            tied=self.tied,
            reads="source",
            extra=2 * self.buckets * self.heads,
        )


class FinalNorm(RMSNorm):
    """RMS norm, and the factor 1/sqrt(width) of a tied T5 before its head (1 otherwise)."""

    def __init__(self, config: T5Config):
        super().__init__(config.width, config.norm_eps)
        self.scale = config.width**-0.5 if config.scaled else 1.0

    def forward(self, x: Embeddings) -> Embeddings:
        normed = super().forward(x)
        return normed if self.scale == 1.0 else normed * self.scale


def block(config: T5Config, layer: LayerSpec, number: int) -> Block:
    """Attention and MLP; between them a decoder has attention to the source."""
    heads, norms = Heads.of(layer, config.norm_eps), Norms(lambda: RMSNorm(config.width, config.norm_eps))
    cross = CrossAttention(heads, number, site=2 * config.layers + 1 + number) if layer.crossed else None
    return Block(Attention(heads, number), mlp_of(layer), norms, cross)


class T5Encoder(Encoder):
    """Encoder layers that share one table of relative positions."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.position_bias = nn.Embedding(config.buckets, config.heads)
        self.layers = nn.ModuleList(block(config, layer, number) for number, layer in enumerate(config.spec.encoder))
        self.norm = RMSNorm(config.width, config.norm_eps)


class T5(EncoderDecoder):
    """A T5: an encoder, a decoder, and one token table for both."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.config = config
        self.embedding = TokenTable(config.vocab, config.width)
        self.encoder = T5Encoder(config)
        self.position_bias = nn.Embedding(config.buckets, config.heads)
        self.layers = nn.ModuleList(block(config, layer, number) for number, layer in enumerate(config.spec.layers))
        self.norm = FinalNorm(config)
        self.projection = None if config.tied else Linear(config.width, config.vocab, bias=False)

    def embed(self, tokens: Tokens, marks: Marks) -> Embeddings:
        return self.embedding(tokens)

    def bias(self) -> Relative:
        return Relative(self.position_bias.weight, self._buckets(both=False))

    def source_bias(self) -> Relative:
        return Relative(self.encoder.get_parameter("position_bias.weight"), self._buckets(both=True))

    def _buckets(self, both: bool) -> Buckets:
        return Buckets(self.config.buckets, self.config.reach, both, self.config.factor)


KEYS = frozenset(
    """
    vocab_size d_model d_kv d_ff num_layers num_decoder_layers num_heads relative_attention_num_buckets
    relative_attention_max_distance layer_norm_epsilon feed_forward_proj dense_act_fn is_gated_act n_positions
    tie_word_embeddings scale_decoder_outputs decoder_start_token_id eos_token_id bos_token_id is_decoder
    relative_attention_factor original_max_position_embeddings is_encoder_decoder pad_token_id
""".split()
)
# Other libraries refuse this model_type, because they would not divide the distances. A class that loads the folder
# despite its type meets an unknown activation, and refuses it too.
INTERPOLATED, DIVIDED = "-interpolated", "interpolated-"
ALSO = {  # further names in newer files
    "hidden_size": "d_model",
    "num_attention_heads": "num_heads",
    "num_hidden_layers": "num_layers",
    "head_dim": "d_kv",
}


def new(sizes: dict[str, Any], about: About) -> T5Config:
    """A configuration from the sizes of a recipe; decoder texts begin with the padding token, or else with the end
    token.

    Raises:
        ConfigError: the tokenizer has neither token and the sizes have no `start`, or the sizes do not fit together.
    """
    start = sizes.get("start", about.tokenizer.eos if about.tokenizer.pad is None else about.tokenizer.pad)
    if start is None:
        raise ConfigError(
            "every decoder text of a T5 begins with the padding token, or without one with the end token, and this "
            "tokenizer has neither: train one with '<pad>' or '</s>' in tokenizer.train.special, or give "
            "model.sizes.start"
        )
    return T5Config.parse({"start": start} | sizes, SIZES)


def _read(foreign: Foreign, model_type: str) -> T5Config:
    name = model_type.removesuffix(INTERPOLATED)
    if ("relative_attention_factor" in foreign) != (name != model_type):
        raise ConfigError(
            f"config.json: 'relative_attention_factor' belongs to model_type '{name}{INTERPOLATED}', which needs it"
        )
    if foreign.get("is_encoder_decoder") is False or foreign.get("is_decoder"):
        raise ConfigError(f"{name} without encoder or decoder: only complete encoder-decoders are known")
    if foreign.get("decoder_start_token_id") is None:
        raise ConfigError(
            f"config.json of family '{name}' has no 'decoder_start_token_id', which begins every decoder text; "
            f'published ones use the padding token: add "decoder_start_token_id": {foreign.get("pad_token_id", 0)} '
            "if this model was trained so"
        )
    mlp = _mlp(foreign, name)
    tied = foreign.get("tie_word_embeddings", True) is not False
    values = {
        "family": name,
        "vocab": required(foreign, "vocab_size", name),
        "width": required(foreign, "d_model", name),
        "encoder_layers": required(foreign, "num_layers", name),
        "layers": foreign.get("num_decoder_layers") or required(foreign, "num_layers", name),
        "heads": required(foreign, "num_heads", name),
        "head_size": required(foreign, "d_kv", name),
        "mlp_width": required(foreign, "d_ff", name),
        "mlp": mlp,
        "buckets": foreign.get("relative_attention_num_buckets", 32),
        "reach": foreign.get("relative_attention_max_distance", 128),
        "factor": foreign.get("relative_attention_factor", 1.0),
        "context": foreign.get("n_positions") or TRAINED,
        "original": foreign.get("original_max_position_embeddings"),
        "norm_eps": foreign.get("layer_norm_epsilon", 1e-6),
        "tied": tied,
        "scaled": name == "t5" and bool(foreign.get("scale_decoder_outputs", tied)),
        "start": foreign["decoder_start_token_id"],
        "bos": foreign.get("bos_token_id"),
        "eos": end_tokens(foreign.get("eos_token_id", 1)),
    }
    return T5Config.parse(values, "config.json")


def _mlp(foreign: Foreign, name: str) -> str:
    mlp = str(foreign.get("feed_forward_proj", "relu" if name == "t5" else "gated-gelu")).removeprefix(DIVIDED)
    if mlp not in ACTIVATIONS:
        raise ConfigError(f"{name} with feed_forward_proj {mlp!r}: {nearest(mlp, ACTIVATIONS)}")
    stated = (foreign.get("dense_act_fn"), foreign.get("is_gated_act"))
    if stated[0] not in (None, ACTIVATIONS[mlp][0]) or stated[1] not in (None, mlp.startswith("gated")):
        raise ConfigError(f"config.json: dense_act_fn {stated[0]} and is_gated_act {stated[1]} contradict {mlp}")
    return mlp


def _settle(config: T5Config, tensor: Callable[[str], Tensor | None]) -> T5Config:
    """Untie the head if the file has its own, and tie it if there is none: `transformers` 5 ties every T5 that has no
    head, and writes tie_word_embeddings true for every model; without the factor of v1.0 if the file said false.
    """
    head, table = tensor("lm_head.weight"), tensor("shared.weight")
    if not config.tied and head is None and table is not None:
        return config.model_copy(update={"tied": True})
    if config.tied and not config.scaled and head is not None and table is not None and not torch.equal(head, table):
        return config.model_copy(update={"tied": False})
    return config


def _copies(config: T5Config) -> dict[str, str | None]:
    """Copies of the token table in old checkpoints, and an unused table of the first cross-attention."""
    tied = {"lm_head.weight": "embedding.weight"} if config.tied else {}
    tables = {f"{side}.embed_tokens.weight": "embedding.weight" for side in ("encoder", "decoder")}
    return tied | tables | {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": None}


def _write(config: T5Config) -> Foreign:
    foreign: dict[str, Any] = {
        "architectures": [{"t5": "T5", "mt5": "MT5"}[config.family] + "ForConditionalGeneration"],
        "model_type": config.family,
        "is_encoder_decoder": True,
        "vocab_size": config.vocab,
        "d_model": config.width,
        "d_kv": config.head_size,
        "d_ff": config.mlp_width,
        "num_layers": config.encoder_layers,
        "num_decoder_layers": config.layers,
        "num_heads": config.heads,
        "relative_attention_num_buckets": config.buckets,
        "relative_attention_max_distance": config.reach,
        "n_positions": config.context,
        "layer_norm_epsilon": config.norm_eps,
        "feed_forward_proj": config.mlp,
        "tie_word_embeddings": config.tied,
        "decoder_start_token_id": config.start,
        "bos_token_id": config.bos,
        "eos_token_id": written_ends(config.eos),
        "pad_token_id": config.start,  # as in every published T5; `save_model` gets that of the tokenizer
    }
    if config.family == "t5":
        foreign["scale_decoder_outputs"] = config.scaled
    if config.factor != 1.0:
        foreign |= {"model_type": config.family + INTERPOLATED, "relative_attention_factor": config.factor}
        foreign["architectures"] = [f"{config.family.upper()}InterpolatedForConditionalGeneration"]
        foreign["feed_forward_proj"] = DIVIDED + config.mlp
    return foreign | original_length(config)


def _entries(config: T5Config) -> list[Entry]:
    entries = [Entry("shared.weight", ("embedding.weight",))]
    if not config.tied:
        entries.append(Entry("lm_head.weight", ("projection.weight",)))
    for side, ours, count in (("encoder", "encoder.", config.encoder_layers), ("decoder", "", config.layers)):
        table = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        entries.append(Entry(table, (f"{ours}position_bias.weight",)))
        entries.append(Entry(f"{side}.final_layer_norm.weight", (f"{ours}norm.weight",)))
        for number in range(count):
            block, layer = f"{side}.block.{number}.layer", f"{ours}layers.{number}"
            parts = ["attention", *(["cross"] if side == "decoder" else []), "mlp"]
            for place, part in enumerate(parts):
                entries.append(Entry(f"{block}.{place}.layer_norm.weight", (f"{layer}.{part}_norm.weight",)))
                inside = {"attention": "SelfAttention", "cross": "EncDecAttention", "mlp": "DenseReluDense"}[part]
                entries += [
                    Entry(f"{block}.{place}.{inside}.{theirs}.weight", (f"{layer}.{part}.{name}.weight",))
                    for theirs, name in _names(config, part).items()
                ]
    return entries


def _names(config: T5Config, part: str) -> dict[str, str]:
    if part != "mlp":
        return {"q": "query", "k": "key", "v": "value", "o": "output"}
    if config.mlp.startswith("gated"):
        return {"wi_0": "gate", "wi_1": "up", "wo": "down"}
    return {"wi": "up", "wo": "down"}


GGUF_KEYS = {
    "context_length": "n_positions",
    "embedding_length": "d_model",
    "feed_forward_length": "d_ff",
    "block_count": "num_layers",
    "decoder_block_count": "num_decoder_layers",
    "attention.head_count": "num_heads",
    "attention.key_length": "d_kv",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
    "attention.relative_buckets_count": "relative_attention_num_buckets",
    "decoder_start_token_id": "decoder_start_token_id",
}


def _from_gguf(header: Header) -> Foreign:
    header.only("attention.value_length", header.need("attention.key_length"))
    header.only("attention.layer_norm_rms_epsilon", header.need("attention.layer_norm_epsilon"))
    header.only("attention.head_count_kv", header.need("attention.head_count"))
    return {
        "vocab_size": header.rows("token_embd.weight"),
        "feed_forward_proj": "gated-gelu" if header.has("enc.blk.0.ffn_gate.weight") else "relu",
        "tie_word_embeddings": not header.has("output.weight"),
    }


def _to_gguf(config: T5Config, foreign: Foreign) -> Written:
    if config.reach != 128 or config.mlp not in ("relu", "gated-gelu"):
        raise ConfigError(
            f"llama.cpp computes a T5 with buckets up to distance 128 and relu or gated-gelu, not {config.reach} and "
            f"{config.mlp}: save a folder"
        )
    if config.scaled != config.tied:
        raise ConfigError(
            "GGUF does not say whether a T5 scales its outputs: only tied ones that do, and untied ones, are exported"
        )
    rms = {"attention.layer_norm_rms_epsilon": config.norm_eps, "attention.value_length": config.head_size}
    return Written(rms, {})


def _gguf_entries(config: T5Config) -> list[Entry]:
    entries = [Entry("token_embd.weight", ("embedding.weight",))]
    if not config.tied:
        entries.append(Entry("output.weight", ("projection.weight",)))
    heads = {"q": "query", "k": "key", "v": "value", "o": "output"}
    for side, ours, count in (("enc", "encoder.", config.encoder_layers), ("dec", "", config.layers)):
        entries.append(Entry(f"{side}.blk.0.attn_rel_b.weight", (f"{ours}position_bias.weight",)))
        entries.append(Entry(f"{side}.output_norm.weight", (f"{ours}norm.weight",)))
        names = {"attn_norm": "attention_norm", "ffn_norm": "mlp_norm"}
        names |= {f"attn_{theirs}": f"attention.{name}" for theirs, name in heads.items()}
        if side == "dec":
            names |= {"cross_attn_norm": "cross_norm"}
            names |= {f"cross_attn_{theirs}": f"cross.{name}" for theirs, name in heads.items()}
        names |= {f"ffn_{name}": f"mlp.{name}" for name in _names(config, "mlp").values()}
        for number in range(count):
            for theirs, name in names.items():
                entries.append(Entry(f"{side}.blk.{number}.{theirs}.weight", (f"{ours}layers.{number}.{name}.weight",)))
    return entries


GGUF = GGUFSide("t5", GGUF_KEYS, _from_gguf, _to_gguf, _gguf_entries)
SMALL: Foreign = {
    "vocab_size": 97,
    "d_model": 48,
    "d_kv": 8,
    "d_ff": 80,
    "num_layers": 3,
    "num_decoder_layers": 3,
    "num_heads": 6,
    "decoder_start_token_id": 0,
    "eos_token_id": 2,
}
GATED: Foreign = SMALL | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
APART: Foreign = GATED | {"relative_attention_factor": 1.5, "feed_forward_proj": DIVIDED + "gated-gelu"}
NEAR = {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 20}
FORMS: dict[str, dict[str, Foreign]] = {
    "t5": {
        "": SMALL | NEAR | {"feed_forward_proj": "relu", "tie_word_embeddings": True, "scale_decoder_outputs": True},
        "v1.1": GATED,
        "shallow": GATED | {"feed_forward_proj": "gated-silu", "num_decoder_layers": 2},
    },
    "mt5": {"": GATED},
    "t5" + INTERPOLATED: {"": APART},
    "mt5" + INTERPOLATED: {"": APART},
}
T5_FAMILY, MT5, T5_INTERPOLATED, MT5_INTERPOLATED = (
    Family(
        name,
        T5,
        lambda foreign, name=name: _read(foreign, name),
        _write,
        _entries,
        forms,
        KEYS,
        also=ALSO,
        own=name.endswith(INTERPOLATED),
        settle=_settle,
        copies=_copies,
        gguf=None if name.endswith(INTERPOLATED) else GGUF,
    )
    for name, forms in FORMS.items()
)
