"""Foreign configurations in and out: the Hugging Face `config.json` of each family.

Every key is either read here, listed as knowingly ignored (it does not change the logits at inference), or
refused. Defaults for absent keys are those that the published configuration of the family defines.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from handscroll.base.errors import ConfigError, nearest
from handscroll.models.bloom import Bloom, BloomConfig
from handscroll.models.gpt2 import GPT2, GPT2Config
from handscroll.models.llama import Llama, LlamaConfig
from handscroll.models.model import Model
from handscroll.models.names import Entry, bloom_entries, gpt2_entries, llama_entries
from handscroll.models.positions import POSITION_KEYS, read_positions, write_positions

Foreign = dict[str, Any]

# Knowingly ignored: training-time dropout, initialisation, bookkeeping, decoding defaults.
IGNORED = frozenset(
    """
    _name_or_path architectures model_type torch_dtype dtype transformers_version use_cache
    initializer_range attention_dropout hidden_dropout embd_pdrop attn_pdrop resid_pdrop pretraining_tp
    return_dict output_attentions output_hidden_states pad_token_id unk_token_id task_specific_params
    gradient_checkpointing chunk_size_feed_forward is_encoder_decoder problem_type id2label label2id
    bad_words_ids num_beams do_sample temperature top_k top_p max_length min_length repetition_penalty
    summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout
    attn_implementation _attn_implementation_autoset
""".split()
)


@dataclass(frozen=True)
class Family:
    """How one foreign `model_type` is read, built and written."""

    name: str
    build: Callable[[Any], Model]
    read: Callable[[Foreign], Any]
    write: Callable[[Any], Foreign]
    entries: Callable[[Any], list[Entry]]


def known_keys(foreign: Foreign, allowed: frozenset[str], name: str) -> None:
    """Refuse quantised checkpoints, remote code and keys that nobody has looked at."""
    if "quantization_config" in foreign:
        raise ConfigError(
            "config.json has 'quantization_config': the weights are quantised; use the full-precision one"
        )
    if foreign.get("auto_map"):
        raise ConfigError("config.json has 'auto_map': the model needs remote code, which is never run")
    for key in foreign:
        if key not in allowed and key not in IGNORED and key != "auto_map":
            raise ConfigError(
                f"config.json of family '{name}' has the unknown key '{key}' = {foreign[key]!r}, which may change "
                f"the model: {nearest(key, allowed)}"
            )


def required(foreign: Foreign, key: str, name: str) -> Any:
    if foreign.get(key) is None:
        raise ConfigError(f"config.json of family '{name}' has no '{key}'; it cannot be guessed")
    return foreign[key]


def _eos(value: int | list[int] | None) -> tuple[int, ...]:
    return () if value is None else tuple(value) if isinstance(value, list) else (value,)


LLAMA_KEYS = frozenset(
    """
    vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads
    head_dim rms_norm_eps hidden_act tie_word_embeddings bos_token_id eos_token_id attention_bias
    mlp_bias
""".split()
) | set(POSITION_KEYS)
WINDOW_KEYS = frozenset(["sliding_window", "use_sliding_window", "max_window_layers", "layer_types"])


def _read_llama(foreign: Foreign, name: str) -> LlamaConfig:
    windowed = name in ("mistral", "qwen2", "qwen3")
    known_keys(foreign, LLAMA_KEYS | WINDOW_KEYS if windowed else LLAMA_KEYS | {"layer_types"}, name)
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
        "positions": read_positions(foreign, head_size),
        "bos": foreign.get("bos_token_id"),
        "eos": _eos(foreign.get("eos_token_id")),
    }
    return LlamaConfig.parse(values, "config.json")


def _windows(foreign: Foreign, name: str, layers: int) -> tuple[int | None, ...]:
    """One window a layer. Mistral: every layer; Qwen: only when switched on, from `max_window_layers` up."""
    window = foreign.get("sliding_window")
    types = foreign.get("layer_types")
    if name in ("qwen2", "qwen3") and not foreign.get("use_sliding_window", False):
        window = None
    if types is not None:
        unknown = set(types) - {"full_attention", "sliding_attention"}
        if unknown or len(types) != layers:
            raise ConfigError(f"layer_types {sorted(set(types))} x {len(types)} does not describe {layers} layers")
        if "sliding_attention" in types and window is None:
            raise ConfigError("layer_types names sliding_attention but no sliding_window is in force")
        sliding = [kind == "sliding_attention" for kind in types]
        if name == "mistral" and window is not None:
            sliding = [True] * layers  # transformers' Mistral reads sliding_window alone
    elif name in ("qwen2", "qwen3"):
        sliding = [number >= foreign.get("max_window_layers", 28) for number in range(layers)]
    else:
        sliding = [True] * layers
    if window is None or not any(sliding):
        return ()
    return tuple(window if slides else None for slides in sliding)


def _write_llama(config: LlamaConfig) -> Foreign:
    foreign: Foreign = {
        "architectures": [_ARCHITECTURES[config.family]],
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
        "eos_token_id": list(config.eos) if len(config.eos) > 1 else (config.eos[0] if config.eos else None),
        **write_positions(config.positions),
    }
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
    return foreign


_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}

GPT2_KEYS = frozenset(
    """
    vocab_size n_embd n_layer n_head n_inner n_positions n_ctx layer_norm_epsilon activation_function
    tie_word_embeddings bos_token_id eos_token_id scale_attn_weights scale_attn_by_inverse_layer_idx
    reorder_and_upcast_attn add_cross_attention
""".split()
)


def _read_gpt2(foreign: Foreign) -> GPT2Config:
    known_keys(foreign, GPT2_KEYS, "gpt2")
    for key, only in (
        ("activation_function", "gelu_new"),
        ("scale_attn_weights", True),
        ("scale_attn_by_inverse_layer_idx", False),
        ("add_cross_attention", False),
    ):
        if foreign.get(key, only) != only:
            raise ConfigError(f"gpt2 with {key} = {foreign[key]!r}: only {only!r} is known")
    width = required(foreign, "n_embd", "gpt2")
    context = required(foreign, "n_positions", "gpt2")
    if foreign.get("n_ctx", context) != context:
        raise ConfigError(f"n_ctx {foreign['n_ctx']} contradicts n_positions {context}")
    values = {
        "vocab": required(foreign, "vocab_size", "gpt2"),
        "width": width,
        "layers": required(foreign, "n_layer", "gpt2"),
        "heads": required(foreign, "n_head", "gpt2"),
        "mlp_width": foreign.get("n_inner") or 4 * width,
        "context": context,
        "norm_eps": foreign.get("layer_norm_epsilon", 1e-5),
        "tied": bool(foreign.get("tie_word_embeddings", True)),
        "bos": foreign.get("bos_token_id"),
        "eos": _eos(foreign.get("eos_token_id")),
    }
    return GPT2Config.parse(values, "config.json")


def _write_gpt2(config: GPT2Config) -> Foreign:
    return {
        "architectures": [_ARCHITECTURES["gpt2"]],
        "model_type": "gpt2",
        "vocab_size": config.vocab,
        "n_embd": config.width,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_inner": config.mlp_width,
        "n_positions": config.context,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": "gelu_new",
        "tie_word_embeddings": config.tied,
        "bos_token_id": config.bos,
        "eos_token_id": config.eos[0] if config.eos else None,
    }


# How Megatron trained and how it sharded, in the published configurations; `transformers` reads none of them.
BLOOM_IGNORED = frozenset(
    """
    attention_softmax_in_fp32 bias_dropout_fusion masked_softmax_fusion offset_alibi skip_bias_add skip_bias_add_qkv
    n_inner slow_but_exact
""".split()
)
BLOOM_KEYS = frozenset(
    """
    vocab_size hidden_size n_embed n_layer num_hidden_layers n_head num_attention_heads layer_norm_epsilon seq_length
    apply_residual_connection_post_layernorm tie_word_embeddings bos_token_id eos_token_id alibi_factor
""".split()
)
BLOOM_TRAINED = 2048  # tokens, of every published BLOOM
INTERPOLATED = "bloom-interpolated"  # a model_type that other libraries refuse: they would use the slopes as trained


def _read_bloom(foreign: Foreign, name: str) -> BloomConfig:
    known_keys(foreign, BLOOM_KEYS | BLOOM_IGNORED, name)
    if foreign.get("apply_residual_connection_post_layernorm", False):
        raise ConfigError(f"{name} with apply_residual_connection_post_layernorm: only false is known")
    if ("alibi_factor" in foreign) != (name == INTERPOLATED):
        raise ConfigError(f"config.json: 'alibi_factor' belongs to model_type '{INTERPOLATED}', which needs it")
    width = _either(foreign, ("hidden_size", "n_embed"), name)
    if foreign.get("n_inner") not in (None, 4 * width):
        raise ConfigError(f"{name} with n_inner {foreign['n_inner']}: only 4 x hidden_size ({4 * width}) is known")
    values = {
        "vocab": required(foreign, "vocab_size", name),
        "width": width,
        "layers": _either(foreign, ("n_layer", "num_hidden_layers"), name),
        "heads": _either(foreign, ("n_head", "num_attention_heads"), name),
        "context": foreign.get("seq_length") or BLOOM_TRAINED,
        "factor": foreign.get("alibi_factor", 1.0),
        "norm_eps": foreign.get("layer_norm_epsilon", 1e-5),
        "tied": bool(foreign.get("tie_word_embeddings", True)),
        "bos": foreign.get("bos_token_id"),
        "eos": _eos(foreign.get("eos_token_id")),
    }
    return BloomConfig.parse(values, "config.json")


def _either(foreign: Foreign, keys: tuple[str, str], name: str) -> int:
    found = {foreign[key] for key in keys if foreign.get(key) is not None}
    if len(found) > 1:
        raise ConfigError(f"config.json: {' and '.join(keys)} mean the same and differ: {sorted(found)}")
    return found.pop() if found else required(foreign, keys[0], name)


def _write_bloom(config: BloomConfig) -> Foreign:
    foreign: Foreign = {
        "architectures": ["BloomForCausalLM"],
        "model_type": "bloom",
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "n_layer": config.layers,
        "n_head": config.heads,
        "layer_norm_epsilon": config.norm_eps,
        "seq_length": config.context,
        "tie_word_embeddings": config.tied,
        "bos_token_id": config.bos,
        "eos_token_id": config.eos[0] if config.eos else None,
    }
    if config.factor != 1.0:
        foreign |= {"model_type": INTERPOLATED, "architectures": ["BloomInterpolatedForCausalLM"]}
        foreign["alibi_factor"] = config.factor
    return foreign


def _llama_family(name: str) -> Family:
    return Family(name, Llama, lambda foreign: _read_llama(foreign, name), _write_llama, llama_entries)


LLAMA, MISTRAL, QWEN2, QWEN3 = (_llama_family(name) for name in ("llama", "mistral", "qwen2", "qwen3"))
GPT2_FAMILY = Family("gpt2", GPT2, _read_gpt2, _write_gpt2, gpt2_entries)
BLOOM, BLOOM_INTERPOLATED = (
    Family(name, Bloom, lambda foreign, name=name: _read_bloom(foreign, name), _write_bloom, bloom_entries)
    for name in ("bloom", INTERPOLATED)
)
