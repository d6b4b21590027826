"""The Llama form: Llama 2/3, Mistral, Qwen2, Qwen3 (Touvron et al. 2023 and successors).

Decoder layers are pre-norm, with rotary grouped-query attention and a gated MLP. The families differ in biases, q/k
norms, windows and tied heads, which are plain fields of the configuration.
"""

from typing import Any

from pydantic import model_validator
from torch import Tensor, nn

from handscroll.base.errors import ConfigError
from handscroll.base.spec import ModelSpec
from handscroll.models.foreign import Entry, Family, Foreign, end_tokens, required, written_ends
from handscroll.models.gguf.rope import read_rope, write_rope
from handscroll.models.gguf.side import GGUFSide, Header, Written, gguf_ends
from handscroll.models.heads import Places, headed
from handscroll.models.model import Decoder
from handscroll.models.new import SIZES, About
from handscroll.models.positions import POSITION_KEYS, read_positions, unscaled, write_positions
from handscroll.models.sizes import RotaryHeads
from handscroll.nn.attention import Attention, Heads
from handscroll.nn.block import Block, Norms
from handscroll.nn.linear import Linear, TokenTable
from handscroll.nn.marks import Marks
from handscroll.nn.mlp import GatedMLP
from handscroll.nn.norm import RMSNorm
from handscroll.nn.rope import Rotation
from handscroll.nn.shapes import Embeddings, Tokens


class LlamaConfig(RotaryHeads):
    """Sizes and switches. `windows` is empty, or has one entry for each layer (None: full attention)."""

    family: str = "llama"
    mlp_width: int
    norm_eps: float = 1e-5
    tied: bool = False
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    query_key_norm: bool = False
    windows: tuple[int | None, ...] = ()
    bos: int | None = None
    eos: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _consistent(self):
        if self.head_size % 2:
            raise ValueError(f"rotary positions need an even head size, got {self.head_size}")
        if self.windows and len(self.windows) != self.layers:
            raise ValueError(f"{len(self.windows)} windows for {self.layers} layers")
        if self.windows and self.both_ways:
            raise ValueError("windows of a model that reads both ways (is_causal: false) are not known")
        return self

    @property
    def rotated_size(self) -> int:
        """The number of values of each head that are rotated."""
        return self.head_size

    @property
    def spec(self) -> ModelSpec:
        biases = {"attention_bias": self.attention_bias, "output_bias": self.output_bias, "mlp_bias": self.mlp_bias}
        return self.model_spec(self.rotated_size, self.windows, head_norms=self.query_key_norm, **biases)


class Llama(Decoder):
    """A decoder of the Llama form; a family with other layers overrides `block`."""

    def __init__(self, config: Any):
        super().__init__()
        self.config, self.both_ways = config, config.both_ways
        self.embedding = TokenTable(config.vocab, config.width)
        self.layers = nn.ModuleList(self.block(number) for number in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.projection = None if config.tied else Linear(config.width, config.vocab, bias=False)

    def block(self, number: int) -> Block:
        """Layer `number` of the stack: grouped-query attention, with a window if configured, and a gated MLP."""
        config = self.config
        heads = Heads(
            width=config.width,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_size=config.head_size,
            bias=config.attention_bias,
            output_bias=config.output_bias,
            norm_eps=config.norm_eps if config.query_key_norm else None,
            window=config.windows[number] if config.windows else None,
        )
        mlp = GatedMLP(config.width, config.mlp_width, config.mlp_bias)
        return Block(Attention(heads, number), mlp, Norms(lambda: RMSNorm(config.width, config.norm_eps)))

    def embed(self, tokens: Tokens, marks: Marks) -> Embeddings:
        return self.embedding(tokens)

    def rotations(self, marks: Marks, length: int | None, like: Tensor) -> tuple[Rotation, ...]:
        return (self.config.positions.rotation(marks, self.config.rotated_size, length, like),)


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
WINDOW_KEYS = frozenset(["sliding_window", "use_sliding_window", "max_window_layers", "layer_types"])


def new(sizes: dict[str, Any], about: About) -> LlamaConfig:
    """A configuration from the sizes of a recipe; `context` (with `base`) stands for unscaled positions."""
    return LlamaConfig.parse(unscaled(sizes), SIZES)


def _read(foreign: Foreign, name: str) -> LlamaConfig:
    activation = foreign.get("hidden_act", "silu")
    if activation != "silu":
        raise ConfigError(f"family '{name}' with hidden_act '{activation}': only 'silu' is known for it")
    width, heads = required(foreign, "hidden_size", name), required(foreign, "num_attention_heads", name)
    head_size = foreign.get("head_dim") or (128 if name == "qwen3" else width // heads)
    layers = required(foreign, "num_hidden_layers", name)
    bias = bool(foreign.get("attention_bias", False))
    values = {
        "family": name,
        "vocab": required(foreign, "vocab_size", name),
        "width": width,
        "layers": layers,
        "heads": heads,
        "kv_heads": foreign.get("num_key_value_heads") or heads,
        "head_size": head_size,
        "mlp_width": required(foreign, "intermediate_size", name),
        "norm_eps": foreign.get("rms_norm_eps", 1e-6),
        "tied": bool(foreign.get("tie_word_embeddings", False)),
        "attention_bias": True if name == "qwen2" else bias,
        "output_bias": False if name == "qwen2" else bias,
        "mlp_bias": bool(foreign.get("mlp_bias", False)),
        "query_key_norm": name == "qwen3",
        "windows": _windows(foreign, name, layers),
        "both_ways": foreign.get("is_causal") is False,
        "positions": read_positions(foreign, head_size),
        "bos": foreign.get("bos_token_id"),
        "eos": end_tokens(foreign.get("eos_token_id")),
    }
    return LlamaConfig.parse(values, "config.json")


def _windows(foreign: Foreign, name: str, layers: int) -> tuple[int | None, ...]:
    """One window for each layer: in Mistral always; in Qwen if switched on, from layer `max_window_layers` up."""
    window = foreign.get("sliding_window")
    types = foreign.get("layer_types")
    if name in ("qwen2", "qwen3") and not foreign.get("use_sliding_window", False):
        window = None
    if types is not None:
        unknown = set(types) - {"full_attention", "sliding_attention"}
        if unknown or len(types) != layers:
            raise ConfigError(f"layer_types {sorted(set(types))} x {len(types)} does not describe {layers} layers")
        if "sliding_attention" in types and window is None:
            raise ConfigError("layer_types names sliding_attention, but no sliding_window is set")
        sliding = [kind == "sliding_attention" for kind in types]
        if name == "mistral" and window is not None:
            sliding = [True] * layers  # transformers' Mistral reads only sliding_window
    elif name in ("qwen2", "qwen3"):
        sliding = [number >= foreign.get("max_window_layers", 28) for number in range(layers)]
    else:
        sliding = [True] * layers
    if window is None or not any(sliding):
        return ()
    return tuple(window if slides else None for slides in sliding)


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
    if config.family in ("mistral", "qwen2", "qwen3"):
        foreign["sliding_window"] = next((w for w in config.windows if w is not None), None)
    if config.family in ("qwen2", "qwen3"):
        foreign["use_sliding_window"] = bool(config.windows)
        kinds = [
            "full_attention" if not config.windows or w is None else "sliding_attention"
            for w in config.windows or [None] * config.layers
        ]
        foreign["layer_types"] = kinds
        foreign["max_window_layers"] = kinds.count("full_attention")
    return foreign | ({"is_causal": False} if config.both_ways else {})


def _entries(config: LlamaConfig) -> list[Entry]:
    entries = [Entry("model.embed_tokens.weight", ("embedding.weight",)), Entry("model.norm.weight", ("norm.weight",))]
    if not config.tied:
        entries.append(Entry("lm_head.weight", ("projection.weight",)))
    modules = {
        "self_attn.q_proj": ("attention.query", config.attention_bias),
        "self_attn.k_proj": ("attention.key", config.attention_bias),
        "self_attn.v_proj": ("attention.value", config.attention_bias),
        "self_attn.o_proj": ("attention.output", config.output_bias),
        "mlp.gate_proj": ("mlp.gate", config.mlp_bias),
        "mlp.up_proj": ("mlp.up", config.mlp_bias),
        "mlp.down_proj": ("mlp.down", config.mlp_bias),
        "input_layernorm": ("attention_norm", False),
        "post_attention_layernorm": ("mlp_norm", False),
    }
    if config.query_key_norm:
        modules |= {
            "self_attn.q_norm": ("attention.query_norm", False),
            "self_attn.k_norm": ("attention.key_norm", False),
        }
    for number in range(config.layers):
        for theirs, (ours, bias) in modules.items():
            for part in ("weight", "bias") if bias else ("weight",):
                entries.append(Entry(f"model.layers.{number}.{theirs}.{part}", (f"layers.{number}.{ours}.{part}",)))
    return entries


GGUF_KEYS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}


def _from_gguf(header: Header, name: str) -> Foreign:
    width, heads = header.need("embedding_length"), header.need("attention.head_count")
    head_size = header.get("attention.key_length", width // heads)
    header.only("attention.value_length", head_size)
    header.only("expert_count", 0)
    biases = {"attention_bias": header.has("blk.0.attn_q.bias")} if name != "qwen2" else {}
    if name == "llama":
        biases["mlp_bias"] = header.has("blk.0.ffn_up.bias")
    return {
        "head_dim": head_size,
        "vocab_size": header.rows("token_embd.weight"),
        "tie_word_embeddings": not header.has("output.weight"),
        **biases,
        **read_rope(header, head_size, tensors=name == "llama"),
    }


def _to_gguf(config: LlamaConfig, foreign: Foreign) -> Written:
    if config.windows:
        raise ConfigError(f"llama.cpp reads all keys in every layer of a '{config.family}': windows are not exported")
    rope = write_rope(config.positions, config.head_size, tensors=config.family in ("llama", "mistral"))
    return Written({"attention.value_length": config.head_size} | rope.keys, rope.tensors)


def _gguf_entries(config: LlamaConfig) -> list[Entry]:
    """The tensors in GGUF files; architecture 'llama' stores heads in pairs, the others do not."""
    turned = (config.head_size, config.head_size) if config.family in ("llama", "mistral") else None
    names = {
        "attn_q": ("attention.query", config.attention_bias, turned),
        "attn_k": ("attention.key", config.attention_bias, turned),
        "attn_v": ("attention.value", config.attention_bias, None),
        "attn_output": ("attention.output", config.output_bias, None),
        "ffn_gate": ("mlp.gate", config.mlp_bias, None),
        "ffn_up": ("mlp.up", config.mlp_bias, None),
        "ffn_down": ("mlp.down", config.mlp_bias, None),
        "attn_norm": ("attention_norm", False, None),
        "ffn_norm": ("mlp_norm", False, None),
    }
    if config.query_key_norm:
        names |= {
            "attn_q_norm": ("attention.query_norm", False, None),
            "attn_k_norm": ("attention.key_norm", False, None),
        }
    entries = gguf_ends(config.tied)
    for number in range(config.layers):
        for theirs, (ours, bias, pairs) in names.items():
            for part in ("weight", "bias") if bias else ("weight",):
                entries.append(Entry(f"blk.{number}.{theirs}.{part}", (f"layers.{number}.{ours}.{part}",), pairs=pairs))
    return entries


def _gguf(name: str) -> GGUFSide:
    architecture = "llama" if name == "mistral" else name
    return GGUFSide(architecture, GGUF_KEYS, lambda header: _from_gguf(header, architecture), _to_gguf, _gguf_entries)


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
    kind = Family(name, Llama, lambda foreign: _read(foreign, name), _write, _entries, FORMS[name], **about)
    return headed(kind, PLACES[name])


LLAMA, MISTRAL, QWEN2, QWEN3 = (_family(name) for name in FORMS)
