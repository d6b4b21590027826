"""BERT in GGUF files: bare encoders (llama.cpp reads a RoBERTa as a BERT without its unused positions)."""

from typing import Any

from handscroll.base.errors import ConfigError
from handscroll.models.foreign import Entry, Foreign
from handscroll.models.gguf.side import GGUFSide, Header, Written, gguf_layers

GGUF_KEYS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "feed_forward_length": "intermediate_size",
    "attention.layer_norm_epsilon": "layer_norm_eps",
}
_GGUF_LAYER = {
    "attn_q": "attention.query",
    "attn_k": "attention.key",
    "attn_v": "attention.value",
    "attn_output": "attention.output",
    "attn_output_norm": "attention_sum_norm",
    "ffn_up": "mlp.up",
    "ffn_down": "mlp.down",
    "layer_output_norm": "mlp_sum_norm",
}


def _from_gguf(header: Header) -> Foreign:
    """A bare encoder: the files have no masked-LM head, and the unexpected tensors of a classifier are refused."""
    header.only("attention.causal", False)
    header.only("attention.head_count_kv", header.need("attention.head_count"))
    sizes = {"vocab_size": header.rows("token_embd.weight"), "type_vocab_size": header.rows("token_types.weight")}
    return sizes | {"architectures": ["BertModel"]}


def _to_gguf(config: Any, foreign: Foreign) -> Written:
    if config.masked or config.head or config.following or config.activation != "gelu":
        raise ConfigError(
            "GGUF holds bare encoders with a GELU, without heads (masked-LM, next sentence, classifier); "
            "load the bare encoder, or save a folder"
        )
    return Written({"attention.causal": False, "pooling_type": 1, "context_length": config.context}, {})


def _gguf_entries(config: Any) -> list[Entry]:
    tables = {"token_embd": "embedding", "position_embd": "position_embedding", "token_types": "kind_embedding"}
    entries = [Entry(f"{theirs}.weight", (f"{ours}.weight",)) for theirs, ours in tables.items()]
    entries += [Entry(f"token_embd_norm.{part}", (f"embedding_norm.{part}",)) for part in ("weight", "bias")]
    return entries + gguf_layers(config.layers, _GGUF_LAYER)


GGUF = GGUFSide("bert", GGUF_KEYS, _from_gguf, _to_gguf, _gguf_entries)
