"""The Llama form: Llama 2/3, Mistral, Qwen2, Qwen3 (Touvron et al. 2023 and successors).

Decoder layers are pre-norm, with rotary grouped-query attention and a gated MLP. The families differ in biases, q/k
norms, windows and tied heads, which are plain fields of the configuration.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import model_validator
from torch import Tensor

from handscroll.base.errors import ConfigError
from handscroll.base.spec import LayerSpec
from handscroll.models.foreign import (
    Entry,
    Family,
    Foreign,
    Part,
    end_tokens,
    layer_entries,
    only,
    required,
    written_ends,
)
from handscroll.models.gguf.rope import read_rope, write_rope
from handscroll.models.gguf.side import BASE_KEYS, GGUFSide, Header, Written, gguf_ends
from handscroll.models.heads import Places, headed
from handscroll.models.model import Layered
from handscroll.models.new import SIZES, About
from handscroll.models.positions import POSITION_KEYS, read_positions, unscaled, write_positions
from handscroll.models.sizes import FULL, SLIDING, RotaryHeads, windows_by_type
from handscroll.nn.marks import Marks
from handscroll.nn.rope import Rotation
from handscroll.nn.shapes import Embeddings, Tokens


class LlamaConfig(RotaryHeads):
    """Sizes and switches. `windows` is empty, or has one entry for each layer (None: full attention)."""

    family: str = "llama"
    norm_eps: float = 1e-5
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    query_key_norm: bool = False
    windows: tuple[int | None, ...] = ()
    bos: int | None = None
    eos: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _consistent(self):
        if self.windows and self.both_ways:
            raise ValueError("windows of a model that reads both ways (is_causal: false) are not known")
        return self

    @property
    def layer_form(self) -> dict[str, Any]:
        biases = {"attention_bias": self.attention_bias, "output_bias": self.output_bias, "mlp_bias": self.mlp_bias}
        return {"head_norms": self.query_key_norm} | biases


class Llama(Layered):
    """A decoder of the Llama form; a family with other layers overrides the part that differs."""

    def embed(self, tokens: Tokens, marks: Marks) -> Embeddings:
        return self.embedding(tokens)

    def rotations(self, marks: Marks, length: int | None, like: Tensor) -> tuple[Rotation, ...]:
        size = self.config.rotary_size
        return tuple(one.rotation(marks, size, length, like) for one in self.config.every_positions)


ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
KEYS = frozenset(
    """
    vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads
    head_dim rms_norm_eps hidden_act tie_word_embeddings bos_token_id eos_token_id attention_bias
    mlp_bias
""".split()
) | set(POSITION_KEYS)
SILU = {"hidden_act": "silu"}
WINDOW_KEYS = frozenset(["sliding_window", "use_sliding_window", "max_window_layers", "layer_types"])


def new(sizes: dict[str, Any], about: About) -> LlamaConfig:
    """A configuration from the sizes of a recipe; `context` (with `base`) stands for unscaled positions."""
    return LlamaConfig.parse(unscaled(sizes), SIZES)


def read_form(foreign: Foreign, name: str) -> dict[str, Any]:
    """The values of `LlamaConfig` that the families of this form read alike, without norms, biases and positions."""
    width, heads = required(foreign, "hidden_size", name), required(foreign, "num_attention_heads", name)
    return {
        "family": name,
        "vocab": required(foreign, "vocab_size", name),
        "width": width,
        "layers": required(foreign, "num_hidden_layers", name),
        "heads": heads,
        "kv_heads": foreign.get("num_key_value_heads") or heads,
        "head_size": foreign.get("head_dim") or width // heads,
        "mlp_width": required(foreign, "intermediate_size", name),
        "tied": bool(foreign.get("tie_word_embeddings", False)),
        "bos": foreign.get("bos_token_id"),
        "eos": end_tokens(foreign.get("eos_token_id")),
    }


def _read(foreign: Foreign, name: str) -> LlamaConfig:
    only(foreign, name, SILU)
    values = read_form(foreign, name)
    if name == "qwen3":
        values["head_size"] = foreign.get("head_dim") or 128
    bias = bool(foreign.get("attention_bias", False))
    values |= {
        "norm_eps": foreign.get("rms_norm_eps", 1e-6),
        "attention_bias": True if name == "qwen2" else bias,
        "output_bias": False if name == "qwen2" else bias,
        "mlp_bias": bool(foreign.get("mlp_bias", False)),
        "query_key_norm": name == "qwen3",
        "windows": _windows(foreign, name, values["layers"]),
        "both_ways": foreign.get("is_causal") is False,
        "positions": read_positions(foreign, values["head_size"]),
    }
    return LlamaConfig.parse(values, "config.json")


def _windows(foreign: Foreign, name: str, layers: int) -> tuple[int | None, ...]:
    """One window for each layer: in Mistral always; in Qwen if switched on, from layer `max_window_layers` up."""
    window = foreign.get("sliding_window")
    types = foreign.get("layer_types")
    if name in ("qwen2", "qwen3") and not foreign.get("use_sliding_window", False):
        window = None
    if types is not None and not (name == "mistral" and window is not None):
        return windows_by_type(types, window, layers)  # transformers' Mistral reads only sliding_window
    from_layer = foreign.get("max_window_layers", 28) if name in ("qwen2", "qwen3") else 0
    return windows_by_type([FULL if number < from_layer else SLIDING for number in range(layers)], window, layers)


def written_form(config: Any, architecture: str) -> Foreign:
    """The entries of `config.json` that all families of the Llama form share."""
    return {
        "architectures": [architecture],
        "model_type": config.family,
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "silu",
        "tie_word_embeddings": config.tied,
        "bos_token_id": config.bos,
        "eos_token_id": written_ends(config.eos),
        **write_positions(config.positions),
    }


def _write(config: LlamaConfig) -> Foreign:
    foreign = written_form(config, ARCHITECTURES[config.family])
    if config.family in ("llama", "qwen3"):
        foreign["attention_bias"] = config.attention_bias
    if config.family == "llama":
        foreign["mlp_bias"] = config.mlp_bias
    if config.family == "mistral":
        foreign["sliding_window"] = next(iter(config.windows), None)
    if config.family in ("qwen2", "qwen3"):
        foreign |= written_windows(config)
        foreign["max_window_layers"] = foreign["layer_types"].count(FULL)
    return foreign | ({"is_causal": False} if config.both_ways else {})


def written_windows(config: LlamaConfig) -> Foreign:
    """The windows of the layers, where they can be switched off."""
    return {
        "sliding_window": next((window for window in config.windows if window is not None), None),
        "use_sliding_window": bool(config.windows),
        "layer_types": config.layer_types,
    }


def ends(tied: bool) -> list[Entry]:
    """The tensors outside the layers: token table, last norm, and an own head."""
    entries = [Entry("model.embed_tokens.weight", ("embedding.weight",)), Entry("model.norm.weight", ("norm.weight",))]
    return entries if tied else [*entries, Entry("lm_head.weight", ("projection.weight",))]


NAMES = {
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.o_proj": "attention.output",
    "mlp.gate_proj": "mlp.gate",
    "mlp.up_proj": "mlp.up",
    "mlp.down_proj": "mlp.down",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "mlp_norm",
    "self_attn.q_norm": "attention.query_norm",
    "self_attn.k_norm": "attention.key_norm",
}
GGUF_NAMES = {
    "attn_q": "attention.query",
    "attn_k": "attention.key",
    "attn_v": "attention.value",
    "attn_output": "attention.output",
    "ffn_gate": "mlp.gate",
    "ffn_up": "mlp.up",
    "ffn_down": "mlp.down",
    "attn_norm": "attention_norm",
    "ffn_norm": "mlp_norm",
    "attn_q_norm": "attention.query_norm",
    "attn_k_norm": "attention.key_norm",
}


def parts(config: Any, names: Mapping[str, str] = NAMES, pairs: tuple[int, int] | None = None) -> dict[str, Part]:
    """The modules of a layer by their `names` in files; `pairs`: how the files store rotated heads (`Entry`)."""
    layer: LayerSpec = config.spec.layers[0]
    turned = {"attention.query": pairs, "attention.key": pairs}
    biases: dict[str, bool] = {"attention.output": layer.output_bias}
    biases |= dict.fromkeys((*turned, "attention.value"), layer.attention_bias)
    biases |= dict.fromkeys(("mlp.gate", "mlp.up", "mlp.down"), layer.mlp_bias)
    absent = () if layer.head_norms or layer.joint_norms else ("attention.query_norm", "attention.key_norm")
    return {
        theirs: Part(ours, biases.get(ours, layer.norm == "layer"), pairs=turned.get(ours))
        for theirs, ours in names.items()
        if ours not in absent
    }


def entries(config: LlamaConfig) -> list[Entry]:
    """The tensors of a model of this form in the files of the reference library."""
    return ends(config.tied) + layer_entries(config.layers, "model.layers", parts(config))


def from_gguf(header: Header, mlp_bias: bool = False, tensors: bool = False) -> Foreign:
    """What the files of this form say besides `BASE_KEYS`; `tensors`: rotary factors may lie in tensors."""
    width, heads = header.need("embedding_length"), header.need("attention.head_count")
    head_size = header.get("attention.key_length", width // heads)
    header.only("attention.value_length", head_size)
    return {
        "head_dim": head_size,
        "vocab_size": header.rows("token_embd.weight"),
        "tie_word_embeddings": not header.has("output.weight"),
        "attention_bias": header.has("blk.0.attn_q.bias"),
        **({"mlp_bias": header.has("blk.0.ffn_up.bias")} if mlp_bias else {}),
        **read_rope(header, head_size, tensors),
    }


def to_gguf(config: LlamaConfig, tensors: bool = False) -> Written:
    """The keys that `BASE_KEYS` leaves out.

    Raises:
        ConfigError: llama.cpp does not compute the model.
    """
    if config.windows:
        raise ConfigError(f"llama.cpp reads all keys in every layer of a '{config.family}': windows are not exported")
    rope = write_rope(config.positions, config.rotary_size, tensors)
    return Written({"attention.value_length": config.head_size} | rope.keys, rope.tensors)


def gguf_entries(config: LlamaConfig, paired: bool) -> list[Entry]:
    """The tensors in GGUF files; some architectures store rotated heads in pairs."""
    pairs = (config.head_size, config.head_size) if paired else None
    return gguf_ends(config.tied) + layer_entries(config.layers, "blk", parts(config, GGUF_NAMES, pairs))


def _gguf(name: str) -> GGUFSide:
    """Mistral lies in files as a Llama; architecture 'llama' has rotary factors in tensors, and heads in pairs."""
    architecture = "llama" if name == "mistral" else name
    llama = architecture == "llama"

    def read(header: Header) -> Foreign:
        header.only("expert_count", 0)
        found = from_gguf(header, mlp_bias=llama, tensors=llama)
        return found if name != "qwen2" else found | {"attention_bias": None}

    return GGUFSide(
        architecture,
        BASE_KEYS,
        read,
        lambda config, foreign: to_gguf(config, tensors=llama),
        lambda config: gguf_entries(config, paired=llama),
    )


SMALL: Foreign = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOWS = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}
CLASSIFIER: Foreign = {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "bad", "1": "good"}}
BARE: Foreign = {"architectures": ["MistralModel"], "sliding_window": None}
FORMS: dict[str, dict[str, Foreign]] = {
    "llama": {
        "": SMALL,
        "biased": SMALL | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
        "mha": SMALL | {"num_key_value_heads": 6, "head_dim": 16},
    },
    "mistral": {"": SMALL | {"sliding_window": None}, "window": SMALL | {"sliding_window": 24}},
    "qwen2": {
        "": SMALL | {"tie_word_embeddings": True},
        "window": SMALL | WINDOWS,
        "encoder": SMALL | {"is_causal": False},
    },
    "qwen3": {"": SMALL | {"head_dim": 16, "attention_bias": False}},
}


# What a file leaves out, as published.
ABSENT: dict[str, Foreign] = {
    "llama": {"max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2},
    "mistral": {
        "max_position_embeddings": 131_072,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
    "qwen2": {"max_position_embeddings": 32_768, "num_key_value_heads": 32, "sliding_window": 4096},
    "qwen3": {"max_position_embeddings": 32_768, "num_key_value_heads": 32, "sliding_window": 4096},
}
# The reference library keeps an old prefix beside the heads for answers of some of these families.
PLACES = {
    "llama": Places("Llama", answer_base="transformer.", forms={"classifier": CLASSIFIER | {"pad_token_id": 0}}),
    "mistral": Places("Mistral", forms={"bare": BARE}),
    "qwen2": Places("Qwen2", answer_base="transformer."),
    "qwen3": Places("Qwen3", answer_base="transformer."),
}


def _family(name: str) -> Family:
    keys = KEYS | {"is_causal"} | (WINDOW_KEYS if "sliding_window" in ABSENT[name] else {"layer_types"})
    about = {"keys": keys, "absent": ABSENT[name], "gguf": _gguf(name)}
    kind = Family(name, Llama, lambda foreign: _read(foreign, name), _write, entries, FORMS[name], **about)
    return headed(kind, PLACES[name])


LLAMA, MISTRAL, QWEN2, QWEN3 = (_family(name) for name in FORMS)
