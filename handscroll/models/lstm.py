"""LSTM language model and classifier (Hochreiter & Schmidhuber 1997; Zaremba et al. 2014 for the places of dropout).

It is the baseline in every table of memory use: it keeps two vectors a layer of a text of any length. `model_type`
"lstm" exists only here, so other libraries refuse the folder. It has no position limit, and there is nothing to
lengthen.
"""

from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from handscroll.base.errors import ConfigError
from handscroll.base.spec import HeadSpec, LayerSpec, ModelSpec
from handscroll.cache.cache import Cache
from handscroll.cache.full import FullCache
from handscroll.cache.state import StateCache
from handscroll.models.foreign import Entry, Family, Foreign, end_tokens, required
from handscroll.models.model import Decoder
from handscroll.models.new import SIZES, About
from handscroll.models.sizes import Sizes
from handscroll.nn.attention import Context
from handscroll.nn.linear import Linear, TokenTable
from handscroll.nn.marks import Marks
from handscroll.nn.positions.order import ENDLESS, Order
from handscroll.nn.recurrence import LSTMLayer
from handscroll.nn.shapes import Embeddings, Tokens


class LSTMConfig(Sizes):
    """Sizes. `trained` is the length of the rows in training.

    With `labels` it classifies documents by the state after the last token or by the mean of all outputs (`pool`), and
    does not predict tokens.
    """

    family: str = "lstm"
    vocab: int = Field(ge=1)
    width: int = Field(ge=1)
    layers: int = Field(ge=1)
    trained: int = Field(ge=1)
    tied: bool = True
    labels: tuple[str, ...] = ()
    pool: Literal["last", "mean"] = "last"
    bos: int | None = None
    eos: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _consistent(self):
        if len(self.labels) == 1 or len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels {list(self.labels)}: a classifier needs at least two different labels")
        if self.labels and not self.tied:
            raise ValueError("a classifier has no head for tokens: leave tied = true")
        if self.pool != "last" and not self.labels:
            raise ValueError("pool belongs to a classifier: give labels")
        return self

    @property
    def context(self) -> int:
        return ENDLESS

    def classifying(self, labels: tuple[str, ...]) -> "LSTMConfig":
        """The same layers as a classifier of documents."""
        return self if self.labels else self.carrying(HeadSpec(labels=labels))

    def carrying(self, head: HeadSpec) -> "LSTMConfig":
        if (head.kind, head.problem) != ("text", "one"):
            raise ConfigError(f"family '{self.family}' tells one label of a text, and has no head for {head.words}")
        return LSTMConfig.parse(self.model_dump() | {"labels": head.labels, "tied": True}, "labels")

    @property
    def spec(self) -> ModelSpec:
        """The description of the model; the gates count as an MLP that is four times as wide as the layer."""
        layer = LayerSpec(kind="recurrent", width=self.width, mlp_width=4 * self.width, gated=False, norms=0)
        return ModelSpec(
            family=self.family,
            vocab=self.vocab,
            layers=(layer,) * self.layers,
            positions=(Order(trained=self.trained),),
            tied=self.tied,
            norm="",
            predicts=not self.labels,
            head=HeadSpec(labels=self.labels, pool=self.pool) if self.labels else None,
            extra=len(self.labels) * (self.width + 1),
        )


class Layer(nn.Module):
    """One LSTM layer of the stack, with dropout on its output."""

    def __init__(self, config: LSTMConfig, number: int):
        super().__init__()
        self.number = number
        self.lstm = LSTMLayer(config.width)

    def forward(self, x: Embeddings, context: Context) -> Embeddings:
        if context.exchange is not None:
            raise ConfigError(
                "family 'lstm' reads token after token, so ranks cannot share a row: set parallel.context = 1"
            )
        keeper = context.cache
        before = None if keeper is None else keeper.state(self.number)
        out, after = self.lstm(x, before, context.marks)
        if keeper is not None:
            out = keeper.keep(self.number, out, after)
        return context.dropped(out, 2 * self.number + 1)

    def remember(self, x: Embeddings, context: Context) -> None:
        """Only pass the state on."""
        self(x, context)


class LSTM(Decoder):
    """LSTM layers over token embeddings, with a tied or own head or as a classifier of documents."""

    def __init__(self, config: LSTMConfig):
        super().__init__()
        self.config = config
        self.embedding = TokenTable(config.vocab, config.width)
        self.layers = nn.ModuleList(Layer(config, number) for number in range(config.layers))
        self.norm = nn.Identity()
        self.projection = None if config.tied else Linear(config.width, config.vocab, bias=False)
        self.classifier = Linear(config.width, len(config.labels)) if config.labels else None

    def embed(self, tokens: Tokens, marks: Marks) -> Embeddings:
        return self.embedding(tokens)

    def new_cache(self, capacity: int = 0, kind: Callable[..., Cache] = FullCache, **options: Any) -> Cache:
        # The limit of tokens to take back applies to keys; a state refuses to take any token back.
        assert kind is FullCache and not options.keys() - {"rewind"}, "a state is kept, whatever the policy"
        return StateCache(self.config.layers)

    def project(self, hidden: Tensor) -> Tensor:
        self._predicts_tokens()
        return super().project(hidden)

    @property
    def head(self) -> Tensor:
        self._predicts_tokens()
        return super().head

    def _predicts_tokens(self) -> None:
        if self.classifier is not None:
            raise ConfigError(
                f"this LSTM classifies documents ({', '.join(self.config.labels)}) and predicts no tokens; train one "
                "without labels to predict tokens"
            )


KEYS = frozenset(
    """
    vocab_size hidden_size num_hidden_layers trained_length tie_word_embeddings labels pool bos_token_id eos_token_id
""".split()
)


def new(sizes: dict[str, Any], about: About) -> LSTMConfig:
    """A configuration from the sizes of a recipe; `trained` is the longest row, and with labels it is a classifier."""
    return LSTMConfig.parse({"trained": about.longest, "labels": about.labels} | sizes, SIZES)


def _read(foreign: Foreign) -> LSTMConfig:
    values = {
        "vocab": required(foreign, "vocab_size", "lstm"),
        "width": required(foreign, "hidden_size", "lstm"),
        "layers": required(foreign, "num_hidden_layers", "lstm"),
        "trained": required(foreign, "trained_length", "lstm"),
        "tied": required(foreign, "tie_word_embeddings", "lstm"),
        "labels": foreign.get("labels", ()),
        "pool": foreign.get("pool", "last"),
        "bos": foreign.get("bos_token_id"),
        "eos": end_tokens(foreign.get("eos_token_id")),
    }
    return LSTMConfig.parse(values, "config.json")


def _write(config: LSTMConfig) -> Foreign:
    foreign: Foreign = {
        "architectures": ["LSTM"],
        "model_type": "lstm",
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "trained_length": config.trained,
        "tie_word_embeddings": config.tied,
        "bos_token_id": config.bos,
        "eos_token_id": list(config.eos),
    }
    return foreign | ({"labels": list(config.labels), "pool": config.pool} if config.labels else {})


def _entries(config: LSTMConfig) -> list[Entry]:
    names = ["embedding.weight"] if config.tied else ["embedding.weight", "projection.weight"]
    names += ["classifier.weight", "classifier.bias"] if config.labels else []
    parts = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    names += [f"layers.{number}.lstm.{part}" for number in range(config.layers) for part in parts]
    return [Entry(name, (name,)) for name in names]


SMALL: Foreign = {
    "vocab_size": 97,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "trained_length": 64,
    "tie_word_embeddings": True,
    "eos_token_id": [2],
}
LABELLED: Foreign = SMALL | {"labels": ["bad", "good"]}
FORMS = {
    "": SMALL,
    "untied": SMALL | {"tie_word_embeddings": False},
    "classifier": LABELLED | {"pool": "last"},
    "mean-classifier": LABELLED | {"pool": "mean"},
}
FAMILY = Family("lstm", LSTM, _read, _write, _entries, FORMS, KEYS, own=True)
