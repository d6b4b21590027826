"""GPT-2 (Radford et al. 2019): pre-norm decoder with learned positions, biases and a GELU MLP."""

from typing import Any, Literal

from torch import nn

from handscroll.base.errors import CapacityError, ConfigError
from handscroll.base.spec import ModelSpec
from handscroll.models.foreign import (
    WRITTEN_ACTIVATIONS,
    Entry,
    Family,
    Foreign,
    end_tokens,
    known_activation,
    original_length,
    required,
    written_ends,
)
from handscroll.models.gguf.side import GGUF_LAYER, GGUFSide, Header, Written, gguf_ends, gguf_layers
from handscroll.models.heads import Places, headed
from handscroll.models.model import Layered
from handscroll.models.new import SIZES, About
from handscroll.models.sizes import DECODER_HEADS, WholeHeads
from handscroll.nn.marks import Marks
from handscroll.nn.positions.learned import Table, largest
from handscroll.nn.shapes import Embeddings, Tokens


class GPT2Config(WholeHeads):
    """Sizes of a GPT-2; `context` is the number of rows of the learned position table."""

    head_kinds = DECODER_HEADS
    head_pool = "last"
    family: str = "gpt2"
    mlp_width: int
    activation: Literal["gelu", "gelu-tanh", "relu"] = "gelu-tanh"
    context: int
    original: int | None = None  # rows before interpolation, if the table was lengthened here
    norm_eps: float = 1e-5
    tied: bool = True
    bos: int | None = None
    eos: tuple[int, ...] = ()

    @property
    def trained(self) -> int:
        return self.original or self.context

    @property
    def spec(self) -> ModelSpec:
        positions = Table(context=self.context, trained=self.trained)
        return self.model_spec(positions, self.layer_spec(activation=self.activation))


class GPT2(Layered):
    """A GPT-2 decoder. Positions past the learned table are refused, never clamped."""

    def begin(self) -> None:
        self.position_embedding = nn.Embedding(self.config.context, self.config.width)

    def embed(self, tokens: Tokens, marks: Marks) -> Embeddings:
        positions = marks.tensors(tokens.device)[2]
        last = largest(positions)
        if last >= self.config.context:
            raise CapacityError(
                f"position {last} is past the learned position table of {self.config.context}; lengthen the "
                f"checkpoint first (handscroll extend ... --to {last + 1}) or read with a window"
            )
        return self.embedding(tokens) + self.position_embedding(positions)


KEYS = frozenset(
    """
    vocab_size n_embd n_layer n_head n_inner n_positions layer_norm_epsilon activation_function
    tie_word_embeddings bos_token_id eos_token_id original_max_position_embeddings scale_attn_weights
    scale_attn_by_inverse_layer_idx add_cross_attention
""".split()
)
ALSO = {  # names that the reference library takes as well
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
ABSENT = {"n_positions": 1024, "bos_token_id": 50_256, "eos_token_id": 50_256}


def new(sizes: dict[str, Any], about: About) -> GPT2Config:
    """A configuration from the sizes of a recipe."""
    return GPT2Config.parse(sizes, SIZES)


def _read(foreign: Foreign) -> GPT2Config:
    for key, only in (
        ("scale_attn_weights", True),
        ("scale_attn_by_inverse_layer_idx", False),
        ("add_cross_attention", False),
    ):
        if foreign.get(key, only) != only:
            raise ConfigError(f"gpt2 with {key} = {foreign[key]!r}: only {only!r} is known")
    width = required(foreign, "n_embd", "gpt2")
    context = required(foreign, "n_positions", "gpt2")
    values = {
        "vocab": required(foreign, "vocab_size", "gpt2"),
        "width": width,
        "layers": required(foreign, "n_layer", "gpt2"),
        "heads": required(foreign, "n_head", "gpt2"),
        "mlp_width": foreign.get("n_inner") or 4 * width,
        "context": context,
        "original": foreign.get("original_max_position_embeddings"),
        "activation": known_activation(foreign, "activation_function", "gelu_new", "gpt2"),
        "norm_eps": foreign.get("layer_norm_epsilon", 1e-5),
        "tied": bool(foreign.get("tie_word_embeddings", True)),
        "bos": foreign.get("bos_token_id"),
        "eos": end_tokens(foreign.get("eos_token_id")),
    }
    return GPT2Config.parse(values, "config.json")


def _write(config: GPT2Config) -> Foreign:
    written: Foreign = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab,
        "n_embd": config.width,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_inner": config.mlp_width,
        "n_positions": config.context,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": WRITTEN_ACTIVATIONS[config.activation],
        "tie_word_embeddings": config.tied,
        "bos_token_id": config.bos,
        "eos_token_id": written_ends(config.eos),
    }
    return written | original_length(config)


def _entries(config: GPT2Config) -> list[Entry]:
    entries = [
        Entry("transformer.wte.weight", ("embedding.weight",)),
        Entry("transformer.wpe.weight", ("position_embedding.weight",)),
        Entry("transformer.ln_f.weight", ("norm.weight",)),
        Entry("transformer.ln_f.bias", ("norm.bias",)),
    ]
    if not config.tied:
        entries.append(Entry("lm_head.weight", ("projection.weight",)))
    fused = ("attention.query", "attention.key", "attention.value")
    modules = {
        "ln_1": (("attention_norm",), False),
        "attn.c_attn": (fused, True),
        "attn.c_proj": (("attention.output",), True),
        "ln_2": (("mlp_norm",), False),
        "mlp.c_fc": (("mlp.up",), True),
        "mlp.c_proj": (("mlp.down",), True),
    }
    for number in range(config.layers):
        for theirs, (ours, convolution) in modules.items():
            for part in ("weight", "bias"):
                names = tuple(f"layers.{number}.{name}.{part}" for name in ours)
                transposed = convolution and part == "weight"
                entries.append(Entry(f"transformer.h.{number}.{theirs}.{part}", names, transposed))
    return entries


GGUF_KEYS = {
    "context_length": "n_positions",
    "embedding_length": "n_embd",
    "block_count": "n_layer",
    "attention.head_count": "n_head",
    "feed_forward_length": "n_inner",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}


def _from_gguf(header: Header) -> Foreign:
    header.only("attention.head_count_kv", header.need("attention.head_count"))
    header.only("rope.dimension_count", header.need("embedding_length") // header.need("attention.head_count"))
    tied = not header.has("output.weight")
    return {"vocab_size": header.rows("token_embd.weight"), "tie_word_embeddings": tied}


def _to_gguf(config: GPT2Config, foreign: Foreign) -> Written:
    if config.activation != "gelu-tanh":
        raise ConfigError(f"llama.cpp computes a gpt2 with the activation gelu_new, not '{config.activation}'")
    return Written({}, {})


def _gguf_entries(config: GPT2Config) -> list[Entry]:
    entries = [*gguf_ends(config.tied), Entry("output_norm.bias", ("norm.bias",))]
    entries.append(Entry("position_embd.weight", ("position_embedding.weight",)))
    return entries + gguf_layers(config.layers, GGUF_LAYER)


GGUF = GGUFSide("gpt2", GGUF_KEYS, _from_gguf, _to_gguf, _gguf_entries)
SMALL: Foreign = {
    "vocab_size": 97,
    "n_embd": 48,
    "n_layer": 3,
    "n_head": 6,
    "n_positions": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FORMS = {"": SMALL, "untied": SMALL | {"tie_word_embeddings": False, "n_inner": 100, "activation_function": "gelu"}}
PLACES = Places("GPT2", tokens="classifier", base="transformer.", answer_base="transformer.")
FAMILY = headed(Family("gpt2", GPT2, _read, _write, _entries, FORMS, KEYS, gguf=GGUF, also=ALSO, absent=ABSENT), PLACES)
