"""DistilBERT (Sanh et al. 2019, arXiv:1910.01108): BERT's layers without token types and without a pooler.

Its classifiers read the state of the first token through a layer of their own (ReLU), which stands where BERT has its
pooler.
"""

from collections.abc import Callable

from torch import Tensor

from handscroll.models.bert import Bert, BertConfig
from handscroll.models.classes import SUFFIXES
from handscroll.models.encoder_files import (
    ACTIVATIONS,
    activation,
    head_values,
    masked_head,
    tables,
    weights_and_biases,
)
from handscroll.models.foreign import Entry, Family, Foreign, original_length, required, written_ends
from handscroll.models.heads import HEAD_KEYS, written_head

NAME = "distilbert"
KEYS = HEAD_KEYS | frozenset(
    """
    vocab_size dim n_layers n_heads hidden_dim max_position_embeddings activation tie_word_embeddings bos_token_id
    eos_token_id original_max_position_embeddings
""".split()
)
UNREAD = frozenset(["sinusoidal_pos_embds"])  # how the table of positions once began; the file has the table


def _read(foreign: Foreign) -> BertConfig:
    heads = head_values(foreign, NAME)
    values = {
        "family": NAME,
        "vocab": required(foreign, "vocab_size", NAME),
        "width": required(foreign, "dim", NAME),
        "layers": required(foreign, "n_layers", NAME),
        "heads": required(foreign, "n_heads", NAME),
        "mlp_width": required(foreign, "hidden_dim", NAME),
        "context": required(foreign, "max_position_embeddings", NAME),
        "original": foreign.get("original_max_position_embeddings"),
        "kinds": 0,
        "activation": activation(foreign, "activation", NAME),
        **heads,
        "pooler": heads["head"] is not None and heads["head"].kind == "text",
        "pooler_activation": "relu",
    }
    return BertConfig.parse(values, "config.json")


def _settle(config: BertConfig, tensor: Callable[[str], Tensor | None]) -> BertConfig:
    """Whether there is a masked-LM head; `architectures` of published files are not always right about it."""
    if config.head:
        return config
    return config.model_copy(update={"masked": tensor("vocab_transform.weight") is not None})


def _write(config: BertConfig) -> Foreign:
    head = "ForMaskedLM" if config.masked else "Model"
    written: Foreign = {
        "architectures": ["DistilBert" + (SUFFIXES[config.head.kind] if config.head else head)],
        "model_type": NAME,
        "vocab_size": config.vocab,
        "dim": config.width,
        "n_layers": config.layers,
        "n_heads": config.heads,
        "hidden_dim": config.mlp_width,
        "activation": next(theirs for theirs, ours in ACTIVATIONS.items() if ours == config.activation),
        "max_position_embeddings": config.context,
        "tie_word_embeddings": config.tied,
        "bos_token_id": config.bos,
        "eos_token_id": written_ends(config.eos),
    }
    return written | original_length(config) | (written_head(config.head) if config.head else {})


_LAYER = {
    "attention.query": "attention.q_lin",
    "attention.key": "attention.k_lin",
    "attention.value": "attention.v_lin",
    "attention.output": "attention.out_lin",
    "attention_sum_norm": "sa_layer_norm",
    "mlp.up": "ffn.lin1",
    "mlp.down": "ffn.lin2",
    "mlp_sum_norm": "output_layer_norm",
}


def _entries(config: BertConfig) -> list[Entry]:
    base = "distilbert." if config.masked or config.head else ""
    entries = tables(base, "embedding", "position_embedding")
    modules = {"embedding_norm": f"{base}embeddings.LayerNorm"}
    for number in range(config.layers):
        layer = f"{base}transformer.layer.{number}"
        modules |= {f"layers.{number}.{ours}": f"{layer}.{theirs}" for ours, theirs in _LAYER.items()}
    if config.pooler:
        modules["pooler"] = "pre_classifier"
    if config.head:
        modules["classifier"] = "qa_outputs" if config.head.kind == "answer" else "classifier"
    masked, more = masked_head(config, "vocab_transform", "vocab_layer_norm", "vocab_projector")
    return entries + more + weights_and_biases(modules | masked)


def _copies(config: BertConfig) -> dict[str, str | None]:
    return {"vocab_projector.weight": "embedding.weight"} if config.masked and config.tied else {}


SMALL: Foreign = {
    "vocab_size": 97,
    "dim": 48,
    "hidden_dim": 80,
    "n_layers": 3,
    "n_heads": 6,
    "max_position_embeddings": 64,
}
FORMS: dict[str, Foreign] = {
    "": SMALL | {"architectures": ["DistilBertForMaskedLM"]},
    "classifier": SMALL
    | {"architectures": ["DistilBertForSequenceClassification"], "id2label": {"0": "bad", "1": "good"}},
    "bare": SMALL | {"architectures": ["DistilBertModel"], "activation": "relu"},
}
FAMILY = Family(
    NAME,
    Bert,
    _read,
    _write,
    _entries,
    FORMS,
    KEYS | UNREAD,
    absent={"max_position_embeddings": 512},
    settle=_settle,
    copies=_copies,
)
