"""Encoders of BERT's form in foreign files: the keys of `config.json` and the tensors that several families share."""

from typing import Any

from handscroll.base.errors import ConfigError
from handscroll.models.classes import SUFFIXES, architecture, named_head
from handscroll.models.foreign import (
    ACTIVATIONS,
    Entry,
    Foreign,
    end_tokens,
    known_activation,
    original_length,
    required,
    written_ends,
)
from handscroll.models.heads import HEAD_KEYS, read_head, written_head

KEYS = HEAD_KEYS | frozenset(
    """
    vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act layer_norm_eps
    max_position_embeddings type_vocab_size position_embedding_type is_decoder add_cross_attention
    tie_word_embeddings bos_token_id eos_token_id original_max_position_embeddings
""".split()
)


def encoder_values(foreign: Foreign, name: str, offset: int = 0) -> dict[str, Any]:
    """The fields that the keys of BERT's `config.json` give; `offset` rows of the position table are unused."""
    for key, only in (("position_embedding_type", "absolute"), ("is_decoder", False), ("add_cross_attention", False)):
        if (foreign.get(key) or only) != only:
            raise ConfigError(f"{name} with {key} = {foreign[key]!r}: only {only!r} is known")
    original = foreign.get("original_max_position_embeddings")
    return {
        "family": name,
        "vocab": required(foreign, "vocab_size", name),
        "width": required(foreign, "hidden_size", name),
        "layers": required(foreign, "num_hidden_layers", name),
        "heads": required(foreign, "num_attention_heads", name),
        "mlp_width": required(foreign, "intermediate_size", name),
        "context": required(foreign, "max_position_embeddings", name) - offset,
        "original": None if original is None else original - offset,
        "offset": offset,
        "kinds": foreign.get("type_vocab_size", 2),
        "activation": activation(foreign, "hidden_act", name),
        "norm_eps": foreign.get("layer_norm_eps", 1e-12),
        **head_values(foreign, name),
    }


def activation(foreign: Foreign, key: str, name: str) -> str:
    """Our name of an activation."""
    return known_activation(foreign, key, "gelu", name)


def head_values(foreign: Foreign, name: str) -> dict[str, Any]:
    """The fields that tell the heads, the end tokens and whether the table of tokens is the projection."""
    made, named = architecture(foreign), named_head(foreign, name)
    head = None if named == "none" else read_head(foreign, named)
    full = made.endswith("ForPreTraining") and head is None
    return {
        "tied": bool(foreign.get("tie_word_embeddings", True)),
        "masked": full or made.endswith("ForMaskedLM"),
        "pooler": named == "text" if head else not made.endswith("ForMaskedLM"),
        "following": full,
        "head": head,
        "bos": foreign.get("bos_token_id"),
        "eos": end_tokens(foreign.get("eos_token_id")),
    }


def written_encoder(config: Any, prefix: str) -> Foreign:
    """The keys of BERT's `config.json` for an encoder whose classes begin with `prefix`."""
    head = "ForPreTraining" if config.following else "ForMaskedLM" if config.masked else "Model"
    written: Foreign = {
        "architectures": [prefix + (SUFFIXES[config.head.kind] if config.head else head)],
        "model_type": config.family,
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_width,
        "hidden_act": next(theirs for theirs, ours in ACTIVATIONS.items() if ours == config.activation),
        "max_position_embeddings": config.context + config.offset,
        "type_vocab_size": config.kinds,
        "layer_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "bos_token_id": config.bos,
        "eos_token_id": written_ends(config.eos),
    }
    if config.offset:
        written["pad_token_id"] = config.offset - 1
    return written | original_length(config, config.offset) | (written_head(config.head) if config.head else {})


_LAYER = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "attention_sum_norm": "attention.output.LayerNorm",
    "mlp.up": "intermediate.dense",
    "mlp.down": "output.dense",
    "mlp_sum_norm": "output.LayerNorm",
}


def encoder_modules(config: Any, base: str) -> dict[str, str]:
    """Our modules and theirs in the embedding and the layers of BERT's form, with `base` before their names."""
    modules = {"embedding_norm": f"{base}embeddings.LayerNorm"}
    for number in range(config.layers):
        modules |= {f"layers.{number}.{ours}": f"{base}encoder.layer.{number}.{part}" for ours, part in _LAYER.items()}
    return modules


def tables(base: str, *names: str) -> list[Entry]:
    """The tables of the embedding, by our names."""
    theirs = {"embedding": "word", "position_embedding": "position", "kind_embedding": "token_type"}
    return [Entry(f"{base}embeddings.{theirs[name]}_embeddings.weight", (f"{name}.weight",)) for name in names]


def masked_head(config: Any, dense: str, norm: str, projection: str) -> tuple[dict[str, str], list[Entry]]:
    """Our modules and theirs, and the entries, of a head for hidden tokens whose bias lies with the projection."""
    if not config.masked:
        return {}, []
    entries = [Entry(f"{projection}.bias", ("masked.bias",))]
    if not config.tied:
        entries.append(Entry(f"{projection}.weight", ("projection.weight",)))
    return {"masked.dense": dense, "masked.norm": norm}, entries


def weights_and_biases(modules: dict[str, str]) -> list[Entry]:
    """The entries of modules (ours to theirs); files of the first release name those of a norm gamma and beta."""
    old = {"weight": "gamma", "bias": "beta"}
    entries = []
    for ours, theirs in modules.items():
        for part in ("weight", "bias"):
            also = (f"{theirs}.{old[part]}",) if theirs.endswith("LayerNorm") else ()
            entries.append(Entry(f"{theirs}.{part}", (f"{ours}.{part}",), also=also))
    return entries
