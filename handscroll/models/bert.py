"""BERT (Devlin et al. 2019) and RoBERTa (Liu et al. 2019): post-norm encoders with learned positions.

The model has the heads of its checkpoint: the masked-LM head (transform, norm, tied projection, bias), the pooler, and
the next-sentence head. A bare encoder (for sentence vectors) has none. A classifier of documents has its own head on
the pooler.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from handscroll.base.errors import CapacityError, ConfigError, DataError
from handscroll.base.spec import ModelSpec
from handscroll.cache.cache import Cache
from handscroll.cache.full import FullCache
from handscroll.models.foreign import (
    Entry,
    Family,
    Foreign,
    end_tokens,
    original_length,
    required,
    written_ends,
)
from handscroll.models.gguf.bert import GGUF
from handscroll.models.model import Decoder
from handscroll.models.new import SIZES, About
from handscroll.models.sizes import Labels, WholeHeads
from handscroll.nn.attention import Attention, Heads
from handscroll.nn.block import Block, Norms
from handscroll.nn.keeper import Keeper
from handscroll.nn.linear import Linear, TokenTable
from handscroll.nn.marks import Marks
from handscroll.nn.mask import Everything, Mask
from handscroll.nn.mlp import MLP, gelu_tanh
from handscroll.nn.norm import LayerNorm
from handscroll.nn.positions.table import Table
from handscroll.nn.shapes import Embeddings, Logits, Tokens

ACTIVATIONS = {"gelu": F.gelu, "gelu-tanh": gelu_tanh, "relu": F.relu}


class BertConfig(WholeHeads, Labels):
    """Sizes of an encoder, and switches for its heads.

    `context` is the number of positions of a text; the learned table has `offset` unused rows before them (RoBERTa:
    padding id + 1). `kinds` is the number of token types. `following` is the next-sentence head, which reads the
    pooler. With `labels` the model classifies documents by the pooled state of their first token, and has no other
    head.
    """

    family: Literal["bert", "roberta"] = "bert"
    mlp_width: int
    context: int
    original: int | None = None  # positions before interpolation, if the table was lengthened here
    offset: int = 0
    kinds: int = 2
    activation: Literal["gelu", "gelu-tanh", "relu"] = "gelu"
    norm_eps: float = 1e-12
    tied: bool = True
    masked: bool = True
    pooler: bool = False
    following: bool = False
    bos: int | None = None
    eos: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _consistent(self):
        if self.following and not self.pooler:
            raise ValueError("the next-sentence head reads the pooler's output: pooler = true belongs to it")
        if self.labels and (self.masked or self.following or not self.pooler):
            raise ValueError("a classifier has a pooler and no other head: masked = false, following = false")
        return self

    @property
    def trained(self) -> int:
        return self.original or self.context

    def classifying(self, labels: tuple[str, ...]) -> "BertConfig":
        """The same encoder as a classifier of documents."""
        if self.labels:
            return self
        heads = {"masked": False, "following": False, "pooler": True, "tied": True}
        return BertConfig.parse(self.model_dump() | heads | {"labels": labels}, "labels")

    @property
    def spec(self) -> ModelSpec:
        square, width = self.width * self.width, self.width
        heads = self.masked * (square + 3 * width + self.vocab) + self.pooler * (square + width)
        classes = 2 * self.following + len(self.labels)
        return ModelSpec(
            family=self.family,
            vocab=self.vocab,
            layers=(self.layer_spec(activation=self.activation),) * self.layers,
            positions=(Table(context=self.context, trained=self.trained, unused=self.offset),),
            tied=self.tied or not self.masked,
            norm="",
            reads="both",
            predicts=self.masked,
            transformed=self.masked,
            labels=self.labels,
            pool="first",
            extra=heads + (self.kinds + 2) * width + classes * (width + 1),  # 2 for the norm of the embedding
        )


def block(config: BertConfig, number: int) -> Block:
    """A post-norm layer: norm(x + attention(x)), then norm(x + mlp(x))."""
    heads = Heads(config.width, config.heads, config.heads, config.head_size, bias=True, output_bias=True)
    mlp = MLP(config.width, config.mlp_width, activation=ACTIVATIONS[config.activation])
    norms = Norms(lambda: LayerNorm(config.width, eps=config.norm_eps), before=False, sum=True)
    return Block(Attention(heads, number), mlp, norms)


class MaskedHead(nn.Module):
    """The transform norm(act(W h)) before the (tied) projection, and the bias (V,) of the projection."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = Linear(config.width, config.width)
        self.norm = LayerNorm(config.width, eps=config.norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab))
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, hidden: Tensor) -> Tensor:
        return self.norm(self.activation(self.dense(hidden)))


class Bert(Decoder):
    """An encoder: every token sees all tokens of its document, so it has no cache and generates nothing.

    It uses the same stack of layers as decoders, without a norm after the last layer. Positions past the learned table
    are refused, never clamped. Dropout acts on embeddings and on both branches of a layer, not on attention weights.
    """

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config = config
        self.embedding = TokenTable(config.vocab, config.width)
        self.position_embedding = nn.Embedding(config.offset + config.context, config.width)
        self.kind_embedding = nn.Embedding(config.kinds, config.width)
        self.embedding_norm = LayerNorm(config.width, eps=config.norm_eps)
        self.layers = nn.ModuleList(block(config, number) for number in range(config.layers))
        self.norm = nn.Identity()
        self.projection = None if config.tied or not config.masked else Linear(config.width, config.vocab, bias=False)
        self.masked = MaskedHead(config) if config.masked else None
        self.pooler = Linear(config.width, config.width) if config.pooler else None
        self.following = Linear(config.width, 2) if config.following else None
        self.classifier = Linear(config.width, len(config.labels)) if config.labels else None

    def embed(self, tokens: Tokens, marks: Marks) -> Embeddings:
        """The normalised sum of token, position and token-type vectors; marks without kinds mean type 0."""
        positions = marks.tensors(tokens.device)[2]
        last = int(positions.max())
        if last >= self.config.context:
            raise CapacityError(
                f"position {last} is past the learned position table of {self.config.context}; shorten the text, cut "
                f"it into windows, or lengthen the checkpoint first (handscroll extend ... --to {last + 1})"
            )
        kinds = torch.zeros_like(positions) if marks.kinds is None else marks.kinds
        if int(kinds.max()) >= self.config.kinds:
            raise DataError(
                f"token type {int(kinds.max())} is unknown: this checkpoint has types 0 to {self.config.kinds - 1}"
            )
        summed = self.embedding(tokens) + self.kind_embedding(kinds)
        return self.embedding_norm(summed + self.position_embedding(positions + self.config.offset))

    def hidden(
        self, embeddings: Embeddings, marks: Marks, mask: Mask, cache: Keeper | None = None, length: int | None = None
    ) -> Embeddings:
        if cache is not None:
            raise ConfigError(_no_cache(self.config.family))
        return super().hidden(embeddings, marks, mask, None, length)

    def logits(self, hidden: Embeddings) -> Logits:
        """Masked-LM logits for the token at each position."""
        prepared = self.prepared(hidden)
        bare = self.embedding.project(prepared) if self.projection is None else self.projection(prepared)
        return bare + self.head_bias

    def prepared(self, hidden: Tensor) -> Tensor:
        """The input of `head` and `head_bias` for hidden states (..., D).

        Raises:
            ConfigError: the checkpoint has no masked-LM head.
        """
        return self._masked()(hidden)

    @property
    def head_bias(self) -> Tensor:
        return self._masked().bias

    def pooled(self, first: Tensor) -> Tensor:
        """tanh(W h) of the hidden states (..., D) of first tokens.

        Raises:
            ConfigError: the checkpoint has no pooler.
        """
        if self.pooler is None:
            raise ConfigError(f"this {self.config.family} checkpoint has no pooler; use the hidden states themselves")
        return torch.tanh(self.pooler(first))

    def following_logits(self, first: Tensor) -> Tensor:
        """Next-sentence logits (..., 2) from the hidden states of first tokens.

        Class 0 means that the second text follows the first, class 1 that it does not.

        Raises:
            ConfigError: the checkpoint has no next-sentence head.
        """
        if self.following is None:
            raise ConfigError(f"this {self.config.family} checkpoint has no next-sentence head")
        return self.following(self.pooled(first))

    def classify(self, hidden: Embeddings, marks: Marks, at: Tensor) -> Tensor:
        """Logits (N, labels) of the N documents whose first tokens are where `at` (B, T) is true, in their order.

        Raises:
            ConfigError: the checkpoint is not a classifier.
        """
        if self.classifier is None:
            raise ConfigError(f"this {self.config.family} checkpoint is not a classifier: it has no labels")
        return self.classifier(self.pooled(hidden[at]))

    def mask(self) -> Mask:
        return Everything()

    def new_cache(self, capacity: int = 0, kind: Callable[..., Cache] = FullCache, **options: Any) -> Cache:
        raise ConfigError(_no_cache(self.config.family))

    def _masked(self) -> MaskedHead:
        if self.masked is None:
            kind = "a classifier of documents" if self.config.labels else "a bare encoder"
            raise ConfigError(
                f"this {self.config.family} checkpoint has no masked-LM head ({kind}), so it gives no logits "
                "and cannot learn masked tokens. Use embed, or a checkpoint with the head "
                "(to lengthen it, name a method)"
            )
        return self.masked


def _no_cache(family: str) -> str:
    return (
        f"a {family} is an encoder: every token sees those after it, so nothing is cached and no text is generated; "
        "use embed or logits, or a causal model (llama, gpt2, ...)"
    )


CLASSIFIER = "ForSequenceClassification"
_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu-tanh", "gelu_pytorch_tanh": "gelu-tanh", "relu": "relu"}
KEYS = frozenset(
    """
    vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act layer_norm_eps
    max_position_embeddings type_vocab_size position_embedding_type is_decoder add_cross_attention
    tie_word_embeddings bos_token_id eos_token_id pad_token_id original_max_position_embeddings architectures id2label
""".split()
)


def new(sizes: dict[str, Any], about: About) -> BertConfig:
    """A configuration from the sizes of a recipe; with labels it is a classifier."""
    heads = {"masked": False, "pooler": True, "labels": about.labels} if about.labels else {}
    return BertConfig.parse(heads | sizes, SIZES)


def _read(foreign: Foreign) -> BertConfig:
    name = foreign["model_type"]
    for key, only in (("position_embedding_type", "absolute"), ("is_decoder", False), ("add_cross_attention", False)):
        if (foreign.get(key) or only) != only:
            raise ConfigError(f"{name} with {key} = {foreign[key]!r}: only {only!r} is known")
    act = foreign.get("hidden_act", "gelu")
    if act not in _ACTIVATIONS:
        raise ConfigError(f"{name} with hidden_act = {act!r}: only {', '.join(_ACTIVATIONS)} are known")
    offset = (1 if foreign.get("pad_token_id") is None else foreign["pad_token_id"]) + 1 if name == "roberta" else 0
    context = required(foreign, "max_position_embeddings", name) - offset
    original = foreign.get("original_max_position_embeddings")
    made = (foreign.get("architectures") or [""])[0]
    full, classifier = made.endswith("ForPreTraining"), made.endswith(CLASSIFIER)
    values = {
        "family": name,
        "vocab": required(foreign, "vocab_size", name),
        "width": required(foreign, "hidden_size", name),
        "layers": required(foreign, "num_hidden_layers", name),
        "heads": required(foreign, "num_attention_heads", name),
        "mlp_width": required(foreign, "intermediate_size", name),
        "context": context,
        "original": None if original is None else original - offset,
        "offset": offset,
        "kinds": foreign.get("type_vocab_size", 2),
        "activation": _ACTIVATIONS[act],
        "norm_eps": foreign.get("layer_norm_eps", 1e-12),
        "tied": bool(foreign.get("tie_word_embeddings", True)),
        "masked": full or made.endswith("ForMaskedLM"),
        "pooler": not made.endswith("ForMaskedLM"),
        "following": full,
        "labels": _labels(foreign.get("id2label")) if classifier else (),
        "bos": foreign.get("bos_token_id"),
        "eos": end_tokens(foreign.get("eos_token_id")),
    }
    return BertConfig.parse(values, "config.json")


def _labels(named: dict[str, str] | None) -> tuple[str, ...]:
    """The labels in the order of their numbers; two by default, as in the reference library."""
    named = named or {"0": "LABEL_0", "1": "LABEL_1"}
    return tuple(str(named[key]) for key in sorted(named, key=int))


def _settle(config: BertConfig, tensor: Callable[[str], Tensor | None]) -> BertConfig:
    """Detect the heads from the weights: published files contain heads that `architectures` omits, and lack others."""
    names = _HEADS[config.family]
    if config.labels:
        return config
    found = {
        "masked": tensor(names["masked.dense"] + ".weight") is not None,
        "pooler": tensor(f"{config.family}.pooler.dense.weight") is not None,
        "following": "following" in names and tensor(names["following"] + ".weight") is not None,
    }
    return BertConfig.parse(config.model_dump() | found, "checkpoint")


def _write(config: BertConfig) -> Foreign:
    kind = {"bert": "Bert", "roberta": "Roberta"}[config.family]
    head = "ForPreTraining" if config.following else "ForMaskedLM" if config.masked else "Model"
    head = CLASSIFIER if config.labels else head
    written: Foreign = {
        "architectures": [kind + head],
        "model_type": config.family,
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_width,
        "hidden_act": next(theirs for theirs, ours in _ACTIVATIONS.items() if ours == config.activation),
        "max_position_embeddings": config.context + config.offset,
        "type_vocab_size": config.kinds,
        "layer_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "bos_token_id": config.bos,
        "eos_token_id": written_ends(config.eos),
    }
    if config.offset:
        written["pad_token_id"] = config.offset - 1
    written |= original_length(config, config.offset)
    if config.labels:
        written["id2label"] = {str(number): label for number, label in enumerate(config.labels)}
        written["label2id"] = {label: number for number, label in enumerate(config.labels)}
    return written


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
_HEADS = {
    "bert": {
        "masked.dense": "cls.predictions.transform.dense",
        "masked.norm": "cls.predictions.transform.LayerNorm",
        "masked": "cls.predictions",
        "following": "cls.seq_relationship",
        "projection": "cls.predictions.decoder",
        "classifier": "classifier",
    },
    "roberta": {
        "masked.dense": "lm_head.dense",
        "masked.norm": "lm_head.layer_norm",
        "masked": "lm_head",
        "projection": "lm_head.decoder",
        "classifier": "classifier.out_proj",
    },
}


def _entries(config: BertConfig) -> list[Entry]:
    heads = _HEADS[config.family]
    headed = config.masked or config.following or config.labels
    base = f"{config.family}." if headed else ""  # in a file with only the encoder, names have no prefix
    tables = {"embedding": "word", "position_embedding": "position", "kind_embedding": "token_type"}
    entries = [
        Entry(f"{base}embeddings.{theirs}_embeddings.weight", (f"{ours}.weight",)) for ours, theirs in tables.items()
    ]
    modules = {"embedding_norm": f"{base}embeddings.LayerNorm"}
    for number in range(config.layers):
        modules |= {f"layers.{number}.{ours}": f"{base}encoder.layer.{number}.{part}" for ours, part in _LAYER.items()}
    if config.pooler:
        modules["pooler"] = f"{base}pooler.dense"
    if config.labels:
        modules["classifier"] = heads["classifier"]
        if config.family == "roberta":  # its classifiers have a separate dense layer in place of the pooler
            modules["pooler"] = "classifier.dense"
    if config.following:
        modules["following"] = heads["following"]
    if config.masked:
        modules |= {name: heads[name] for name in ("masked.dense", "masked.norm")}
        bias = f"{heads['masked']}.bias"
        if config.tied:
            entries.append(Entry(bias, ("masked.bias",)))
        else:  # the reference library then also unties the bias, and reads that of the projection
            entries.append(Entry(f"{heads['projection']}.weight", ("projection.weight",)))
            entries.append(Entry(f"{heads['projection']}.bias", ("masked.bias",), also=(bias,)))
    # Files of the first release name the weight and bias of a norm gamma and beta.
    old = {"weight": "gamma", "bias": "beta"}
    for ours, theirs in modules.items():
        for part in ("weight", "bias"):
            also = (f"{theirs}.{old[part]}",) if theirs.endswith("LayerNorm") else ()
            entries.append(Entry(f"{theirs}.{part}", (f"{ours}.{part}",), also=also))
    return entries


def _copies(config: BertConfig) -> dict[str, str | None]:
    """Tensors that older files repeat, and a bias that only tied heads use."""
    if not config.masked:
        return {}
    heads = _HEADS[config.family]
    if not config.tied:
        return {f"{heads['masked']}.bias": None}
    return {f"{heads['projection']}.weight": "embedding.weight", f"{heads['projection']}.bias": "masked.bias"}


SMALL: Foreign = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
}
OFFSET: Foreign = SMALL | {"max_position_embeddings": 66, "pad_token_id": 1}
LABELLED = {"id2label": {"0": "bad", "1": "good"}}
FORMS: dict[str, dict[str, Foreign]] = {
    "bert": {
        "": SMALL | {"architectures": ["BertForPreTraining"]},
        "masked": SMALL | {"architectures": ["BertForMaskedLM"], "hidden_act": "gelu_new"},
        "untied": SMALL | {"architectures": ["BertForMaskedLM"], "tie_word_embeddings": False},
        "classifier": SMALL | {"architectures": ["BertForSequenceClassification"], **LABELLED},
        "bare": SMALL | {"architectures": ["BertModel"], "type_vocab_size": 3},
    },
    "roberta": {
        "": OFFSET | {"architectures": ["RobertaForMaskedLM"], "type_vocab_size": 1},
        "classifier": OFFSET | {"architectures": ["RobertaForSequenceClassification"], **LABELLED},
        "bare": OFFSET | {"architectures": ["RobertaModel"], "hidden_act": "relu"},
    },
}
ABSENT: dict[str, Foreign] = {
    "bert": {"max_position_embeddings": 512},
    "roberta": {"max_position_embeddings": 512, "bos_token_id": 0, "eos_token_id": 2},
}
BERT, ROBERTA = (
    Family(
        name,
        Bert,
        _read,
        _write,
        _entries,
        forms,
        KEYS,
        absent=ABSENT[name],
        settle=_settle,
        copies=_copies,
        gguf=GGUF if name == GGUF.architecture else None,
    )
    for name, forms in FORMS.items()
)
