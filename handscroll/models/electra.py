"""ELECTRA (Clark et al. 2020, arXiv:2003.10555): BERT's encoder over tables of their own width.

The published discriminators have a head that gives every token one number: how likely it was replaced (one label,
problem "several"). The generators have a masked-LM head, which ends in the width of the tables.
"""

from collections.abc import Callable

from pydantic import model_validator
from torch import Tensor

from handscroll.base.spec import HeadSpec
from handscroll.models.bert import Bert, BertConfig
from handscroll.models.classes import architecture
from handscroll.models.encoder_files import (
    KEYS,
    encoder_modules,
    encoder_values,
    masked_head,
    tables,
    weights_and_biases,
    written_encoder,
)
from handscroll.models.foreign import Entry, Family, Foreign, required

NAME = "electra"
REPLACED = HeadSpec(kind="tokens", labels=("REPLACED",), problem="several")
DISCRIMINATOR = "ElectraForPreTraining"


class ElectraConfig(BertConfig):
    """Sizes of an ELECTRA; its masked-LM head always has a GELU, whatever the layers have."""

    family: str = NAME

    @model_validator(mode="after")
    def _no_pairs(self):
        if self.following:
            raise ValueError("an ELECTRA has no next-sentence head")
        return self

    @property
    def masked_activation(self) -> str:
        return "gelu"

    @property
    def replaced(self) -> bool:
        """Whether it is a discriminator."""
        return self.head == REPLACED


def _read(foreign: Foreign) -> ElectraConfig:
    values = encoder_values(foreign, NAME)
    narrow = required(foreign, "embedding_size", NAME)
    values |= {"table_width": None if narrow == values["width"] else narrow, "following": False}
    if architecture(foreign) == DISCRIMINATOR:
        values |= {"head": REPLACED, "masked": False}
    return ElectraConfig.parse(values | _pooler(values), "config.json")


def _pooler(values: dict) -> dict[str, object]:
    """The layer before a head: for texts with a GELU, for replaced tokens with the activation of the layers."""
    head = values["head"]
    own = head is not None and (head.kind == "text" or head == REPLACED)
    return {"pooler": own, "pooler_activation": values["activation"] if head == REPLACED else "gelu"}


def _settle(config: ElectraConfig, tensor: Callable[[str], Tensor | None]) -> ElectraConfig:
    """Whether there is a masked-LM head, or a discriminator's; many files name only the bare encoder."""
    if config.head is not None and not config.replaced:
        return config
    found = {"masked": tensor("generator_predictions.dense.weight") is not None, "head": None}
    if tensor("discriminator_predictions.dense.weight") is not None:
        found |= {"head": REPLACED, "masked": False}
    values = config.model_dump() | found
    return ElectraConfig.parse(values | _pooler(values), "checkpoint")


def _write(config: ElectraConfig) -> Foreign:
    written = written_encoder(config, "Electra") | {"embedding_size": config.narrow}
    if config.replaced:
        written = {key: value for key, value in written.items() if key not in ("id2label", "label2id", "problem_type")}
        written["architectures"] = [DISCRIMINATOR]
    return written


def _entries(config: ElectraConfig) -> list[Entry]:
    base = "electra." if config.masked or config.head else ""
    entries = tables(base, "embedding", "position_embedding", "kind_embedding")
    modules = encoder_modules(config, base)
    if config.table_width:
        modules["widening"] = f"{base}embeddings_project"
    if config.replaced:
        modules["pooler"] = "discriminator_predictions.dense"
        modules["classifier"] = "discriminator_predictions.dense_prediction"
    elif config.head:
        names = {"text": "classifier.out_proj", "tokens": "classifier", "answer": "qa_outputs"}
        modules["classifier"] = names[config.head.kind]
        modules |= {"pooler": "classifier.dense"} if config.pooler else {}
    names = ("generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head")
    masked, more = masked_head(config, *names)
    return entries + more + weights_and_biases(modules | masked)


def _copies(config: ElectraConfig) -> dict[str, str | None]:
    return {"generator_lm_head.weight": "embedding.weight"} if config.masked and config.tied else {}


SMALL: Foreign = {
    "vocab_size": 97,
    "embedding_size": 32,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
}
FORMS: dict[str, Foreign] = {
    "": SMALL | {"architectures": ["ElectraForMaskedLM"]},
    "discriminator": SMALL | {"architectures": [DISCRIMINATOR]},
    "classifier": SMALL
    | {"architectures": ["ElectraForSequenceClassification"], "id2label": {"0": "bad", "1": "good"}},
    "bare": SMALL | {"architectures": ["ElectraModel"], "embedding_size": 48},
}
FAMILY = Family(
    NAME,
    Bert,
    _read,
    _write,
    _entries,
    FORMS,
    KEYS | {"embedding_size"},
    absent={"max_position_embeddings": 512, "embedding_size": 128},
    settle=_settle,
    copies=_copies,
)
