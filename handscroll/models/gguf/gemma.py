"""Gemma 2 and 3 in GGUF files: norms are stored as 1 + w, and windows follow a pattern."""

from typing import Any

from handscroll.base.errors import ConfigError
from handscroll.models.foreign import Entry, Foreign
from handscroll.models.gguf.rope import read_rope, write_rope
from handscroll.models.gguf.side import BASE_KEYS, GGUFSide, Header, Written, gguf_ends
from handscroll.models.sizes import FULL, SLIDING

KEYS = BASE_KEYS | {
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
EVERY = {"gemma2": 2, "gemma3": 6}  # one layer in so many has full attention
LARGE = {"gemma2": 46, "gemma3": 62}  # layers of the 27B models, whose scores are scaled by width / heads
LOCAL_BASE = 10_000.0


def _scalar(architecture: str, layers: int, width: int, heads: int, head_size: int) -> float:
    """The square of the divisor of the scores; the files omit it, and llama.cpp infers it from the number of layers."""
    return width / heads if layers == LARGE[architecture] else head_size


def _read(header: Header, architecture: str) -> Foreign:
    head_size, layers = header.get("attention.key_length", 256), header.need("block_count")
    header.only("attention.value_length", head_size)
    heads = header.need("attention.head_count")
    pattern = header.get("attention.sliding_window_pattern", EVERY[architecture])
    if isinstance(pattern, list):
        types = [SLIDING if windowed else FULL for windowed in pattern]
    else:
        types = [SLIDING if (number + 1) % pattern else FULL for number in range(layers)]
    header.need("attention.sliding_window")
    found: Foreign = {
        "head_dim": head_size,
        "vocab_size": header.rows("token_embd.weight"),
        "tie_word_embeddings": not header.has("output.weight"),
        "query_pre_attn_scalar": _scalar(architecture, layers, header.need("embedding_length"), heads, head_size),
        "layer_types": types,
        **read_rope(header, head_size),
    }
    if architecture == "gemma3":
        found["rope_local_base_freq"] = header.get("rope.freq_base_swa", LOCAL_BASE)
    return found


def _write(config: Any, architecture: str) -> Written:
    every = EVERY[architecture]
    wanted = tuple(bool((number + 1) % every) for number in range(config.layers))
    scalar = _scalar(architecture, config.layers, config.width, config.heads, config.head_size)
    if tuple(window is not None for window in config.every_window) != wanted:
        raise ConfigError(f"llama.cpp reads all keys in every {every}th layer of a '{architecture}', and in no other")
    if config.query_scalar != scalar or config.attention_bias:
        raise ConfigError(
            f"llama.cpp computes a '{architecture}' of these sizes without biases and with scores over "
            f"sqrt({scalar:g}); this one has {config.query_scalar:g}"
        )
    if architecture == "gemma2" and None in (config.score_cap, config.logit_cap):
        raise ConfigError("llama.cpp caps the scores and logits of every 'gemma2'; this one has none")
    if architecture == "gemma3" and config.positions.scaling.name not in ("none", "pi"):
        raise ConfigError(
            f"llama.cpp scales the full layers of a 'gemma3' by 'pi' alone, not by '{config.positions.scaling.name}'"
        )
    rope = write_rope(config.positions, config.head_size)
    keys = {"attention.value_length": config.head_size} | rope.keys
    if config.local_base is not None:
        keys["rope.freq_base_swa"] = config.local_base
    return Written(keys, rope.tensors)


def _entries(config: Any) -> list[Entry]:
    matrices = {
        "attn_q": "attention.query",
        "attn_k": "attention.key",
        "attn_v": "attention.value",
        "attn_output": "attention.output",
        "ffn_gate": "mlp.gate",
        "ffn_up": "mlp.up",
        "ffn_down": "mlp.down",
    }
    norms = {
        "attn_norm": "attention_norm",
        "post_attention_norm": "attention_branch_norm",
        "ffn_norm": "mlp_norm",
        "post_ffw_norm": "mlp_branch_norm",
    }
    if config.query_key_norm:
        norms |= {"attn_q_norm": "attention.query_norm", "attn_k_norm": "attention.key_norm"}
    entries = [
        Entry(entry.theirs, entry.ours, plus=float(entry.theirs.startswith("output_norm")))
        for entry in gguf_ends(config.tied)
    ]
    for number in range(config.layers):
        for names, plus in ((matrices, 0.0), (norms, 1.0)):
            for theirs, ours in names.items():
                entries.append(Entry(f"blk.{number}.{theirs}.weight", (f"layers.{number}.{ours}.weight",), plus=plus))
    return entries


def _side(architecture: str) -> GGUFSide:
    def write(config: Any, foreign: Foreign) -> Written:
        return _write(config, architecture)

    return GGUFSide(architecture, KEYS, lambda header: _read(header, architecture), write, _entries)


GEMMA_2, GEMMA_3 = _side("gemma2"), _side("gemma3")
