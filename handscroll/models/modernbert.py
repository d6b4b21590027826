"""ModernBERT (Warner et al. 2024, arXiv:2412.13663): a pre-norm encoder with rotary positions, for 8,192 tokens.

Most layers see a window on both sides and have a rope base of their own; every third sees the whole text, and only
those are lengthened. There are no biases by default, the MLP is gated, and the first layer has no norm before its
attention, because the embedding is normalised. All heads read their state through one more layer.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from handscroll.base.errors import ConfigError
from handscroll.base.spec import HeadSpec, LayerSpec, ModelSpec
from handscroll.models.bert import ACTIVATIONS
from handscroll.models.classes import SUFFIXES
from handscroll.models.encoder_files import activation, head_values
from handscroll.models.foreign import Entry, Family, Foreign, required, written_ends
from handscroll.models.heads import HEAD_KEYS, written_head
from handscroll.models.model import Layered
from handscroll.models.positions import POSITION_KEYS, of_layer_type, read_positions, write_positions
from handscroll.models.sizes import FULL, SLIDING, Rotating, WholeHeads, unlengthened, windows_by_type
from handscroll.nn.block import Block
from handscroll.nn.linear import Linear
from handscroll.nn.marks import Marks
from handscroll.nn.positions.rotary import Rotary
from handscroll.nn.rope import Rotation
from handscroll.nn.shapes import Embeddings, Logits, Tokens

NAME = "modernbert"
Activation = Literal["gelu", "gelu-tanh", "relu"]


class ModernBertConfig(Rotating, WholeHeads):
    """Sizes and switches. `windows` are of the tokens seen on each side, the own one included (`Rotating`).

    `local_base` is the rope base of the windowed layers, whose positions are never scaled. `masked` is the head for
    hidden tokens; it and every `head` begin with a layer (`head_activation`, `head_bias`) and a norm. `head_state` is
    the state of a text that a head for labels reads.
    """

    head_kinds = ("text", "tokens", "answer")
    family: str = NAME
    mlp_width: int
    local_base: float = Field(gt=1)
    windows: tuple[int | None, ...] = ()
    activation: Activation = "gelu"
    norm_eps: float = 1e-5
    norm_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    tied: bool = True
    masked: bool = True
    decoder_bias: bool = True
    head_bias: bool = False
    head_activation: Activation = "gelu"
    head_state: Literal["first", "mean"] = "first"
    bos: int | None = None
    eos: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _consistent(self):
        if self.head and self.masked:
            raise ValueError("a model with a head for labels or answers has no other: masked is false")
        return self

    @property
    def every_positions(self) -> tuple[Rotary, ...]:
        return self.positions, unlengthened(self.local_base, self.context, self.trained)

    def beside(self, head: HeadSpec) -> dict[str, Any]:
        pool = self.head_state if head.kind == "text" else self.head_pool
        return {"head": head.model_copy(update={"pool": pool}).model_dump(), "masked": False, "tied": True}

    @property
    def spec(self) -> ModelSpec:
        norm = self.width * (2 if self.norm_bias else 1)
        extra = norm + (0 if self.head is None else self.head.numbers(self.width))  # the norm is that of the embedding
        if self.masked or self.head:
            extra += self.width * self.width + self.width * self.head_bias + norm
        extra += self.vocab * self.decoder_bias if self.masked else 0
        return ModelSpec(
            family=self.family,
            vocab=self.vocab,
            layers=tuple(self._layer(number) for number in range(self.layers)),
            positions=self.every_positions,
            tied=self.tied or not self.masked,
            norm="layer" if self.norm_bias else "rms",  # the numbers of a norm without a bias
            reads="both",
            predicts=self.masked,
            transformed=self.masked,
            head=self.head,
            extra=extra,
        )

    def _layer(self, number: int) -> LayerSpec:
        window = self.every_window[number]
        return self.layer_spec(
            rotated=self.head_size,
            window=window,
            ahead=window is not None,
            positions=int(window is not None),
            norms=1 if number == 0 else 2,
            norm_bias=self.norm_bias,
            gated=True,
            activation=self.activation,
            attention_bias=self.attention_bias,
            output_bias=self.attention_bias,
            mlp_bias=self.mlp_bias,
        )


class ModernBert(Layered):
    """An encoder of pre-norm layers; windowed layers see as far ahead as back."""

    def __init__(self, config: ModernBertConfig):
        super().__init__(config)
        headed = config.masked or config.head
        self.head_dense = Linear(config.width, config.width, bias=config.head_bias) if headed else None
        self.head_norm = self.new_norm(config.spec.layers[-1]) if headed else None
        biased = config.masked and config.decoder_bias
        self.decoder_bias = nn.Parameter(torch.zeros(config.vocab)) if biased else None
        self.classifier = Linear(config.width, config.head.outputs) if config.head else None

    def begin(self) -> None:
        self.embedding_norm = self.new_norm(self.config.spec.layers[0])

    def block(self, layer: LayerSpec, number: int) -> Block:
        block = super().block(layer, number)
        if layer.norms == 1:
            block.attention_norm = nn.Identity()
        return block

    def embed(self, tokens: Tokens, marks: Marks) -> Embeddings:
        return self.embedding_norm(self.embedding(tokens))

    def rotations(self, marks: Marks, length: int | None, like: Tensor) -> tuple[Rotation, ...]:
        size = self.config.rotary_size
        return tuple(one.rotation(marks, size, length, like) for one in self.config.every_positions)

    def prepared(self, hidden: Tensor) -> Tensor:
        """The states (..., D) that the last layer of a head reads.

        Raises:
            ConfigError: the checkpoint is a bare encoder.
        """
        if self.head_dense is None or self.head_norm is None:
            raise ConfigError(
                f"this {self.config.family} checkpoint has no masked-LM head (a bare encoder), so it gives no logits "
                "and cannot learn masked tokens. Use embed, or a checkpoint with the head"
            )
        return self.head_norm(ACTIVATIONS[self.config.head_activation](self.head_dense(hidden)))

    @property
    def head_bias(self) -> Tensor | None:
        return self.decoder_bias

    def judge(self, states: Tensor) -> Tensor:
        return super().judge(self.prepared(states))

    def logits(self, hidden: Embeddings) -> Logits:
        """Masked-LM logits for the token at each position."""
        self.spec.require("logits", head=True)
        bare = super().logits(hidden)
        return bare if self.decoder_bias is None else bare + self.decoder_bias


BASE, LOCAL_BASE = 160_000.0, 10_000.0
KEYS = (
    HEAD_KEYS
    | frozenset(
        """
    vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads hidden_activation norm_eps norm_bias
    attention_bias mlp_bias tie_word_embeddings decoder_bias classifier_pooling classifier_bias classifier_activation
    global_attn_every_n_layers local_attention global_rope_theta local_rope_theta layer_types bos_token_id eos_token_id
    """.split()
    )
    | set(POSITION_KEYS)
)
# Beside norm_eps older files have layer_norm_eps, and position_embedding_type for rotary positions; neither is read.
# The sparse prediction is how training leaves out tokens.
UNREAD = frozenset(["layer_norm_eps", "position_embedding_type", "sparse_prediction", "sparse_pred_ignore_index"])


def _read(foreign: Foreign) -> ModernBertConfig:
    heads = head_values(foreign, NAME)
    pool = _pool(foreign)
    if heads["head"] is not None and heads["head"].kind == "text":
        heads["head"] = heads["head"].model_copy(update={"pool": pool})
    width, layers = required(foreign, "hidden_size", NAME), required(foreign, "num_hidden_layers", NAME)
    count = required(foreign, "num_attention_heads", NAME)
    positions = {kind: _positions(foreign, kind, width // count) for kind in (FULL, SLIDING)}
    if positions[SLIDING].scaling.name != "none":
        raise ConfigError(f"config.json: the rope of {SLIDING} is scaled; layers that see a window never need it")
    values = {
        "vocab": required(foreign, "vocab_size", NAME),
        "width": width,
        "layers": layers,
        "heads": count,
        "mlp_width": required(foreign, "intermediate_size", NAME),
        "positions": positions[FULL],
        "local_base": positions[SLIDING].base,
        "windows": _windows(foreign, layers),
        "activation": activation(foreign, "hidden_activation", NAME),
        "norm_eps": foreign.get("norm_eps", 1e-5),
        "norm_bias": bool(foreign.get("norm_bias", False)),
        "attention_bias": bool(foreign.get("attention_bias", False)),
        "mlp_bias": bool(foreign.get("mlp_bias", False)),
        "decoder_bias": bool(foreign.get("decoder_bias", True)),
        "head_bias": bool(foreign.get("classifier_bias", False)),
        "head_activation": activation(foreign, "classifier_activation", NAME),
        "head_state": pool,
        **{key: heads[key] for key in ("tied", "masked", "head", "bos", "eos")},
    }
    return ModernBertConfig.parse(values, "config.json")


def _pool(foreign: Foreign) -> str:
    pooling = foreign.get("classifier_pooling", "cls")
    if pooling not in POOLS:
        raise ConfigError(f"config.json: classifier_pooling is {pooling!r}; known are {', '.join(POOLS)}")
    return POOLS[pooling]


POOLS = {"cls": "first", "mean": "mean"}


def _positions(foreign: Foreign, kind: str, head_size: int) -> Rotary:
    """The positions of one kind of layer; a base stands in a table of that kind, or in a key of its own."""
    key, default = {FULL: ("global_rope_theta", BASE), SLIDING: ("local_rope_theta", LOCAL_BASE)}[kind]
    own, named = of_layer_type(foreign, kind, (FULL, SLIDING)), foreign.get(key)
    shared = [one for one in ("rope_theta", "rope_scaling", "rope_parameters") if own.get(one) == foreign.get(one)]
    if any(foreign.get(one) for one in shared):
        raise ConfigError(
            f"config.json of family '{NAME}' has {shared[0]} for all layers, but windowed and full layers have their "
            f"own rope: write rope_parameters with a table for {FULL} and one for {SLIDING}"
        )
    found = read_positions(own, head_size, default if named is None else float(named))
    if named is not None and found.base != float(named):
        raise ConfigError(f"config.json: {key} {named} contradicts rope_theta {found.base:g} of {kind}")
    return found


def _windows(foreign: Foreign, layers: int) -> tuple[int | None, ...]:
    """One window for each layer, from `layer_types` or, in older files, from which layers are full."""
    every, both = (_count(foreign, key) for key in ("global_attn_every_n_layers", "local_attention"))
    types = foreign.get("layer_types") or [SLIDING if number % every else FULL for number in range(layers)]
    return windows_by_type(types, both // 2 + 1, layers) or (None,) * layers  # the file counts both sides


def _count(foreign: Foreign, key: str) -> int:
    value = required(foreign, key, NAME)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 1 << 31:
        raise ConfigError(f"config.json: {key} is {value!r}; expected a positive whole number")
    return value


def _settle(config: ModernBertConfig, tensor: Callable[[str], Tensor | None]) -> ModernBertConfig:
    """Whether there is a masked-LM head; a bare encoder may be named so, or the other way round."""
    if config.head:
        return config
    return config.model_copy(update={"masked": tensor("head.dense.weight") is not None})


def _write(config: ModernBertConfig) -> Foreign:
    head, window = config.head, next((one for one in config.windows if one is not None), 65)
    pool = head.pool if head and head.kind == "text" else config.head_state
    named = SUFFIXES[head.kind] if head else "ForMaskedLM" if config.masked else "Model"
    full = write_positions(config.positions)
    tables = {
        FULL: {"rope_type": "default", "rope_theta": full.pop("rope_theta")} | (full.pop("rope_scaling") or {}),
        SLIDING: {"rope_type": "default", "rope_theta": config.local_base},
    }
    written: Foreign = {
        "architectures": ["ModernBert" + named],
        "model_type": NAME,
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "hidden_activation": _theirs(config.activation),
        "norm_eps": config.norm_eps,
        "norm_bias": config.norm_bias,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "tie_word_embeddings": config.tied,
        "decoder_bias": config.decoder_bias,
        "classifier_bias": config.head_bias,
        "classifier_activation": _theirs(config.head_activation),
        "classifier_pooling": next(theirs for theirs, ours in POOLS.items() if ours == pool),
        "local_attention": 2 * (window - 1),
        "layer_types": config.layer_types,
        **full,
        "rope_parameters": tables,
        "pad_token_id": None,  # the default of the class lies outside a small vocabulary
        "bos_token_id": config.bos,
        "eos_token_id": written_ends(config.eos),
    }
    return written | (written_head(head) if head else {})


def _theirs(activation: str) -> str:
    return {"gelu": "gelu", "gelu-tanh": "gelu_pytorch_tanh", "relu": "relu"}[activation]


def _entries(config: ModernBertConfig) -> list[Entry]:
    headed = config.masked or config.head
    base = "model." if headed else ""
    entries = [Entry(f"{base}embeddings.tok_embeddings.weight", ("embedding.weight",))]
    norms = {f"{base}embeddings.norm": "embedding_norm", f"{base}final_norm": "norm"}
    linear: dict[str, tuple[tuple[str, ...], bool]] = {}
    for number in range(config.layers):
        theirs, ours = f"{base}layers.{number}", f"layers.{number}"
        linear[f"{theirs}.attn.Wqkv"] = (
            tuple(f"{ours}.attention.{part}" for part in ("query", "key", "value")),
            config.attention_bias,
        )
        linear[f"{theirs}.attn.Wo"] = ((f"{ours}.attention.output",), config.attention_bias)
        linear[f"{theirs}.mlp.Wi"] = ((f"{ours}.mlp.gate", f"{ours}.mlp.up"), config.mlp_bias)
        linear[f"{theirs}.mlp.Wo"] = ((f"{ours}.mlp.down",), config.mlp_bias)
        norms |= {f"{theirs}.attn_norm": f"{ours}.attention_norm"} if number else {}
        norms[f"{theirs}.mlp_norm"] = f"{ours}.mlp_norm"
    if headed:
        linear["head.dense"], norms["head.norm"] = (("head_dense",), config.head_bias), "head_norm"
    if config.head:
        linear["classifier"] = (("classifier",), True)
    if config.masked and config.decoder_bias:
        entries.append(Entry("decoder.bias", ("decoder_bias",)))
    if config.masked and not config.tied:
        entries.append(Entry("decoder.weight", ("projection.weight",)))
    modules = linear | {theirs: ((ours,), config.norm_bias) for theirs, ours in norms.items()}
    return entries + [
        Entry(f"{theirs}.{part}", tuple(f"{name}.{part}" for name in ours))
        for theirs, (ours, biased) in modules.items()
        for part in (("weight", "bias") if biased else ("weight",))
    ]


def _copies(config: ModernBertConfig) -> dict[str, str | None]:
    return {"decoder.weight": "embedding.weight"} if config.masked and config.tied else {}


SMALL: Foreign = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
    "local_attention": 16,
    "global_rope_theta": 900.0,
    "local_rope_theta": 50.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FORMS: dict[str, Foreign] = {
    "": SMALL | {"architectures": ["ModernBertForMaskedLM"]},
    "biased": SMALL
    | {"architectures": ["ModernBertForMaskedLM"], "norm_bias": True, "attention_bias": True, "mlp_bias": True}
    | {"classifier_bias": True, "tie_word_embeddings": False, "layer_types": [SLIDING, FULL, SLIDING, FULL]},
    "classifier": SMALL
    | {"architectures": ["ModernBertForSequenceClassification"], "id2label": {"0": "bad", "1": "good"}}
    | {"classifier_pooling": "mean"},
    "bare": SMALL | {"architectures": ["ModernBertModel"]},
}
FAMILY = Family(
    NAME,
    ModernBert,
    _read,
    _write,
    _entries,
    FORMS,
    KEYS | UNREAD,
    absent={"max_position_embeddings": 8192, "global_attn_every_n_layers": 3, "local_attention": 128},
    settle=_settle,
    copies=_copies,
)
