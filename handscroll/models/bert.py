"""BERT (Devlin et al. 2019), RoBERTa (Liu et al. 2019), XLM-RoBERTa and CamemBERT: post-norm encoders.

Positions are learned. The model has the heads of its checkpoint: the masked-LM head (transform, norm, tied projection,
bias), the pooler, and the next-sentence head. A bare encoder (for sentence vectors) has none. A head for labels or
answers (`HeadSpec`) stands alone. DistilBERT and ELECTRA are further forms (`distilbert.py`, `electra.py`).
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from handscroll.base.errors import CapacityError, ConfigError, DataError
from handscroll.base.spec import HeadSpec, LayerSpec, ModelSpec
from handscroll.models.encoder_files import (
    KEYS,
    encoder_modules,
    encoder_values,
    tables,
    weights_and_biases,
    written_encoder,
)
from handscroll.models.foreign import Entry, Family, Foreign
from handscroll.models.gguf.bert import GGUF
from handscroll.models.model import Decoder
from handscroll.models.new import SIZES, About
from handscroll.models.sizes import WholeHeads
from handscroll.nn.adapted import dtype_of
from handscroll.nn.attention import Attention, Heads
from handscroll.nn.block import Block, Norms
from handscroll.nn.linear import Linear, TokenTable
from handscroll.nn.marks import Marks
from handscroll.nn.mlp import gelu_tanh, mlp_of
from handscroll.nn.norm import LayerNorm
from handscroll.nn.positions.learned import Table, largest
from handscroll.nn.shapes import Embeddings, Logits, Tokens

ACTIVATIONS = {"gelu": F.gelu, "gelu-tanh": gelu_tanh, "relu": F.relu, "tanh": torch.tanh}


class BertConfig(WholeHeads):
    """Sizes of an encoder, and switches for its heads.

    `context` is the number of positions of a text; the learned table has `offset` unused rows before them (RoBERTa:
    padding id + 1). `kinds` is the number of token types (0: there are none). `table_width` is the width of the tables
    where it differs from that of the layers (ELECTRA). `following` is the next-sentence head, which reads the pooler. A
    `head` reads the state of the first token, or of each token, through the pooler if there is one.
    """

    head_kinds = ("text", "tokens", "answer")
    family: str = "bert"
    mlp_width: int
    context: int
    original: int | None = None  # positions before interpolation, if the table was lengthened here
    offset: int = 0
    kinds: int = Field(default=2, ge=0)
    table_width: int | None = Field(default=None, ge=1)
    activation: Literal["gelu", "gelu-tanh", "relu"] = "gelu"
    norm_eps: float = 1e-12
    tied: bool = True
    masked: bool = True
    pooler: bool = False
    pooler_activation: Literal["tanh", "gelu", "gelu-tanh", "relu"] = "tanh"
    following: bool = False
    bos: int | None = None
    eos: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _consistent(self):
        if self.following and not self.pooler:
            raise ValueError("the next-sentence head reads the pooler's output: pooler = true belongs to it")
        if self.head and (self.masked or self.following):
            raise ValueError("a model with a head for labels or answers has no other: masked and following are false")
        if self.head and self.head.kind == "text" and not self.pooler:
            raise ValueError("a classifier of texts reads the pooler's output: pooler = true belongs to it")
        return self

    @property
    def trained(self) -> int:
        return self.original or self.context

    @property
    def narrow(self) -> int:
        """The width of the tables."""
        return self.table_width or self.width

    @property
    def masked_activation(self) -> str:
        """The activation in the masked-LM head."""
        return self.activation

    def beside(self, head: HeadSpec) -> dict[str, Any]:
        pooler = {"pooler": head.kind == "text"}
        return super().beside(head) | pooler | {"masked": False, "following": False, "tied": True}

    @property
    def spec(self) -> ModelSpec:
        width, narrow = self.width, self.narrow
        heads = self.masked * (width * narrow + 3 * narrow + self.vocab) + self.pooler * (width + 1) * width
        heads += 2 * self.following * (width + 1) + (0 if self.head is None else self.head.numbers(width))
        widening = 0 if narrow == width else (narrow + 1) * width
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
            head=self.head,
            table_width=self.table_width,
            extra=heads + widening + (self.kinds + 2) * narrow,  # 2 for the norm of the embedding
        )


def block(config: BertConfig, layer: LayerSpec, number: int) -> Block:
    """A post-norm layer: norm(x + attention(x)), then norm(x + mlp(x))."""
    norms = Norms(lambda: LayerNorm(config.width, eps=config.norm_eps), before=False, sum=True)
    return Block(Attention(Heads.of(layer, config.norm_eps), number), mlp_of(layer), norms)


class MaskedHead(nn.Module):
    """The transform norm(act(W h)) before the (tied) projection, and the bias (V,) of the projection."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = Linear(config.width, config.narrow)
        self.norm = LayerNorm(config.narrow, eps=config.norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab))
        self.activation = ACTIVATIONS[config.masked_activation]

    def forward(self, hidden: Tensor) -> Tensor:
        return self.norm(self.activation(self.dense(hidden)))


class Bert(Decoder):
    """An encoder: every token sees all tokens of its document, so it has no cache and generates nothing.

    It uses the same stack of layers as decoders, without a norm after the last layer. Positions past the learned table
    are refused, never clamped. Dropout acts on embeddings and on both branches of a layer, not on attention weights.
    """

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config, self.both_ways = config, True
        narrow = config.narrow
        self.embedding = TokenTable(config.vocab, narrow)
        self.position_embedding = nn.Embedding(config.offset + config.context, narrow)
        self.kind_embedding = nn.Embedding(config.kinds, narrow) if config.kinds else None
        self.embedding_norm = LayerNorm(narrow, eps=config.norm_eps)
        self.widening = None if narrow == config.width else Linear(narrow, config.width)
        self.layers = nn.ModuleList(block(config, layer, number) for number, layer in enumerate(config.spec.layers))
        self.norm = nn.Identity()
        self.projection = None if config.tied or not config.masked else Linear(narrow, config.vocab, bias=False)
        self.masked = MaskedHead(config) if config.masked else None
        self.pooler = Linear(config.width, config.width) if config.pooler else None
        self.following = Linear(config.width, 2) if config.following else None
        self.classifier = Linear(config.width, config.head.outputs) if config.head else None

    def embed(self, tokens: Tokens, marks: Marks) -> Embeddings:
        """The normalised sum of token, position and token-type vectors; marks without kinds mean type 0."""
        positions = marks.tensors(tokens.device)[2]
        last = largest(positions)
        if last >= self.config.context:
            raise CapacityError(
                f"position {last} is past the learned position table of {self.config.context}; shorten the text, cut "
                f"it into windows, or lengthen the checkpoint first (handscroll extend ... --to {last + 1})"
            )
        summed = self.embedding(tokens) + self.position_embedding(positions + self.config.offset)
        if self.kind_embedding is not None:
            summed = summed + self.kind_embedding(self._kinds(marks, positions))
        summed = self.embedding_norm(summed)
        return summed if self.widening is None else self.widening(summed)

    def _kinds(self, marks: Marks, positions: Tensor) -> Tensor:
        kinds = torch.zeros_like(positions) if marks.kinds is None else marks.kinds
        if (last := largest(kinds)) >= self.config.kinds:
            raise DataError(f"token type {last} is unknown: this checkpoint has types 0 to {self.config.kinds - 1}")
        return kinds

    def logits(self, hidden: Embeddings) -> Logits:
        """Masked-LM logits for the token at each position."""
        return self.project(self.prepared(hidden)) + self.head_bias

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
        """tanh(W h) of the hidden states (..., D) of first tokens; some families have another activation.

        Raises:
            ConfigError: the checkpoint has no pooler.
        """
        if self.pooler is None:
            raise ConfigError(f"this {self.config.family} checkpoint has no pooler; use the hidden states themselves")
        return ACTIVATIONS[self.config.pooler_activation](self.pooler(first.to(dtype_of(self.pooler))))

    def following_logits(self, first: Tensor) -> Tensor:
        """Next-sentence logits (..., 2) from the hidden states of first tokens.

        Class 0 means that the second text follows the first, class 1 that it does not.

        Raises:
            ConfigError: the checkpoint has no next-sentence head.
        """
        if self.following is None:
            raise ConfigError(f"this {self.config.family} checkpoint has no next-sentence head")
        return self.following(self.pooled(first))

    def judge(self, states: Tensor) -> Tensor:
        return super().judge(states if self.pooler is None else self.pooled(states))

    def _masked(self) -> MaskedHead:
        if self.masked is None:
            kind = f"its head: {self.config.head.words}" if self.config.head else "a bare encoder"
            raise ConfigError(
                f"this {self.config.family} checkpoint has no masked-LM head ({kind}), so it gives no logits "
                "and cannot learn masked tokens. Use embed, or a checkpoint with the head "
                "(to lengthen it, name a method)"
            )
        return self.masked


ROBERTAS = {"roberta": "Roberta", "xlm-roberta": "XLMRoberta", "camembert": "Camembert"}


def new(sizes: dict[str, Any], about: About) -> BertConfig:
    """A configuration from the sizes of a recipe; with labels it is a classifier."""
    heads = {"masked": False, "pooler": True, "head": {"labels": about.labels}} if about.labels else {}
    return BertConfig.parse(heads | sizes, SIZES)


def _read(foreign: Foreign) -> BertConfig:
    name = foreign["model_type"]
    offset = 0
    if name in ROBERTAS:
        offset = (1 if foreign.get("pad_token_id") is None else foreign["pad_token_id"]) + 1
    return BertConfig.parse(encoder_values(foreign, name, offset), "config.json")


def _settle(config: BertConfig, tensor: Callable[[str], Tensor | None]) -> BertConfig:
    """Detect the heads from the weights: published files contain heads that `architectures` omits, and lack others."""
    names = _heads(config)
    if config.head:
        return config
    found = {
        "masked": tensor(names["masked.dense"] + ".weight") is not None,
        "pooler": tensor("pooler.dense.weight") is not None,
        "following": "following" in names and tensor(names["following"] + ".weight") is not None,
    }
    return BertConfig.parse(config.model_dump() | found, "checkpoint")


def _write(config: BertConfig) -> Foreign:
    return written_encoder(config, {"bert": "Bert", **ROBERTAS}[config.family])


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


def _heads(config: BertConfig) -> dict[str, str]:
    return _HEADS["roberta" if config.family in ROBERTAS else config.family]


def _entries(config: BertConfig) -> list[Entry]:
    heads = _heads(config)
    headed = config.masked or config.following or config.head
    base = f"{'roberta' if config.family in ROBERTAS else 'bert'}." if headed else ""  # bare files have no prefix
    entries = tables(base, "embedding", "position_embedding", "kind_embedding")
    modules = encoder_modules(config, base)
    if config.pooler:
        modules["pooler"] = f"{base}pooler.dense"
    if config.head:
        modules["classifier"] = {"answer": "qa_outputs", "tokens": "classifier"}.get(
            config.head.kind, heads["classifier"]
        )
        if config.family in ROBERTAS and config.pooler:  # their classifiers have a dense layer in place of the pooler
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
    return entries + weights_and_biases(modules)


def _copies(config: BertConfig) -> Mapping[str, str | None]:
    """Tensors that older files repeat, a bias that only tied heads use, and a pooler beside a head that reads none."""
    heads = _heads(config)
    if not config.masked:
        pooler: dict[str, str | None] = {
            f"{base}.pooler.dense.{part}": None for base in ("bert", "roberta") for part in ("weight", "bias")
        }
        return pooler if config.head and (config.family in ROBERTAS or not config.pooler) else {}
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
TAGS = {"id2label": {"0": "O", "1": "NAME", "2": "PLACE"}}
FORMS: dict[str, dict[str, Foreign]] = {
    "bert": {
        "": SMALL | {"architectures": ["BertForPreTraining"]},
        "masked": SMALL | {"architectures": ["BertForMaskedLM"], "hidden_act": "gelu_new"},
        "untied": SMALL | {"architectures": ["BertForMaskedLM"], "tie_word_embeddings": False},
        "classifier": SMALL | {"architectures": ["BertForSequenceClassification"], **LABELLED},
        "tagger": SMALL | {"architectures": ["BertForTokenClassification"], **TAGS},
        "bare": SMALL | {"architectures": ["BertModel"], "type_vocab_size": 3},
    },
    "roberta": {
        "": OFFSET | {"architectures": ["RobertaForMaskedLM"], "type_vocab_size": 1},
        "classifier": OFFSET | {"architectures": ["RobertaForSequenceClassification"], **LABELLED},
        "bare": OFFSET | {"architectures": ["RobertaModel"], "hidden_act": "relu"},
    },
    "xlm-roberta": {"": OFFSET | {"architectures": ["XLMRobertaForMaskedLM"], "type_vocab_size": 1}},
    "camembert": {"": OFFSET | {"architectures": ["CamembertForMaskedLM"], "type_vocab_size": 1}},
}
ABSENT: dict[str, Foreign] = {
    "bert": {"max_position_embeddings": 512},
    **{name: {"max_position_embeddings": 512, "bos_token_id": 0, "eos_token_id": 2} for name in ROBERTAS},
}
BERT, ROBERTA, XLM_ROBERTA, CAMEMBERT = (
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
