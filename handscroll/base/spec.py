"""What a model is, layer by layer, as plain numbers: a family's configuration writes it, everybody else reads it.

Imports no torch, so that the planner can read it without weights.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from handscroll.base.config import Config
from handscroll.base.errors import ConfigError
from handscroll.base.tables import resolve

Number = TypeVar("Number", int, float)

# The ways of telling positions. A new one is a file in `nn/positions/` and a line here.
POSITIONS: dict[str, str] = {
    "rotary": "handscroll.nn.positions.rotary:Rotary",
    "table": "handscroll.nn.positions.learned:Table",
    "slopes": "handscroll.nn.positions.slopes:Slopes",
    "buckets": "handscroll.nn.positions.buckets:Buckets",
    "pairs": "handscroll.nn.positions.pairs:Pairs",
    "order": "handscroll.nn.positions.order:Order",
}


class LayerSpec(Config):
    """One layer. `heads`, `kv_heads` and `head_size` belong to attention; a recurrent layer has a state instead.

    `window`: an attention layer reads at most so many tokens back, itself included, and keeps no more (None: all).
    `positions` is the place of the layer's own way of telling positions in `ModelSpec.positions`; `rotated` is how many
    numbers of each head are rotated. `norms` are vectors of the width, of kind `norm` ("layer": with a bias).
    `ahead`: the window reaches as far ahead as back. `crossed`: it also reads a source. `scale` multiplies the scores
    (None: 1 / sqrt(head size)), which `cap` then bounds. `norm_bias`: a norm of kind "layer" has a bias. With `experts`
    the MLP is a mixture of so many, each `mlp_width` wide, of which `chosen` read a token.
    """

    kind: Literal["attention", "recurrent"] = "attention"
    width: int = Field(ge=1)
    heads: int = Field(default=1, ge=1)
    kv_heads: int = Field(default=1, ge=1)
    head_size: int = Field(default=1, ge=1)
    window: int | None = Field(default=None, ge=1)
    ahead: bool = False
    positions: int = Field(default=0, ge=0)
    rotated: int = Field(default=0, ge=0)
    norms: int = Field(default=2, ge=0)
    norm: Literal["rms", "layer"] = "rms"
    norm_bias: bool = True
    mlp_width: int = Field(ge=1)
    experts: int = Field(default=0, ge=0)
    chosen: int = Field(default=0, ge=0)
    gated: bool = True
    activation: Literal["silu", "gelu", "gelu-tanh", "relu"] = "silu"
    scale: float | None = None
    cap: float | None = None
    head_norms: bool = Field(default=False, description="norms of each query and key head")
    joint_norms: bool = Field(default=False, description="norms of all query heads, and of all key heads, together")
    crossed: bool = False
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False

    @property
    def recurrent(self) -> bool:
        return self.kind == "recurrent"

    @property
    def inner(self) -> int:
        """Width of all query heads together."""
        return 0 if self.recurrent else self.heads * self.head_size

    @property
    def shared(self) -> int:
        """Width of all key (or value) heads together."""
        return 0 if self.recurrent else self.kv_heads * self.head_size

    @property
    def products(self) -> int:
        """Matrices of the MLP."""
        return 3 if self.gated else 2

    @property
    def matrices(self) -> int:
        """Numbers in the projections; of an LSTM's four gates, from input and state."""
        if self.recurrent:
            return 8 * self.width**2
        attention = 2 * self.inner + 2 * self.shared
        mlp = self.products * self.mlp_width * max(1, self.experts) + self.experts  # with the router
        return self.width * ((2 if self.crossed else 1) * attention + mlp)

    @property
    def read(self) -> "LayerSpec":
        """The layer that a token meets: with one MLP, as wide as the experts that read it together."""
        alone = {"experts": 0, "chosen": 0, "mlp_width": self.chosen * self.mlp_width}
        return self.model_copy(update=alone) if self.experts else self

    @property
    def vectors(self) -> int:
        """Numbers in norms and biases."""
        if self.recurrent:
            return 8 * self.width
        attention = (self.inner + 2 * self.shared) * self.attention_bias + self.width * self.output_bias
        mlp = ((self.products - 1) * self.mlp_width + self.width) * self.mlp_bias
        return self.normed + attention + mlp

    @property
    def normed(self) -> int:
        """Numbers in norms."""
        if self.recurrent:
            return 0
        norms = (self.norms + self.crossed) * self.width * (2 if self.norm == "layer" and self.norm_bias else 1)
        return norms + self.head_norms * 2 * self.head_size + self.joint_norms * (self.inner + self.shared)

    @property
    def numbers(self) -> int:
        """All numbers of the layer."""
        return self.matrices + self.vectors

    def kept(self, tokens: int) -> int:
        """Tokens whose keys and values a layer holds once `tokens` have gone by."""
        if self.recurrent:
            return 0
        return tokens if self.window is None else min(tokens, self.window)

    def cache_bytes(self, tokens: int, itemsize: int) -> int:
        """Bytes of what the layer keeps of a row of `tokens`: keys and values, or the two vectors of a state."""
        if self.recurrent:
            return 2 * self.width * itemsize
        return 2 * self.kept(tokens) * self.shared * itemsize


class HeadSpec(Config):
    """A head that says something of a text instead of predicting its tokens.

    `kind` "text": one number a label for a whole text, read from the state of its first or last token or from the mean
    of all (`pool`). "tokens": one number a label for every token. "answer": two numbers for every token, for an answer
    that begins and that ends there. "none": a bare model. `problem`: "one" of the labels is right, "several" are, or
    the outputs are plain numbers ("number": a regression, a reward). `pad`: tokens at the end of a text that are passed
    over to find the last one. `bias`: its last layer has one.
    """

    kind: Literal["text", "tokens", "answer", "none"] = "text"
    labels: tuple[str, ...] = ()
    problem: Literal["one", "several", "number"] = "one"
    pool: Literal["first", "last", "mean"] = "first"
    pad: int | None = None
    bias: bool = True

    @model_validator(mode="after")
    def _apart(self):
        if self.kind in ("text", "tokens") and not self.labels:
            raise ValueError(f"a head of kind '{self.kind}' needs labels, or at least one output")
        if self.kind == "text" and self.problem == "one" and len(self.labels) < 2:
            raise ValueError(f"labels {list(self.labels)}: a classifier needs at least two different labels")
        return self

    @property
    def outputs(self) -> int:
        """Numbers that the head gives for a text, or for a token."""
        return {"answer": 2, "none": 0}.get(self.kind, len(self.labels))

    @property
    def name(self) -> str:
        """What it gives."""
        names = {"text": "labels or numbers of texts", "tokens": "labels of tokens", "answer": "answers to questions"}
        return names.get(self.kind, "vectors of texts")

    def numbers(self, width: int) -> int:
        """Numbers in its last layer."""
        return self.outputs * (width + self.bias)

    @property
    def words(self) -> str:
        """What it is, for people."""
        several = ", several at once" if self.problem == "several" else ""
        if self.kind == "text" and self.problem == "number":
            count = "one number" if len(self.labels) == 1 else f"{len(self.labels)} numbers"
            return f"{count} a text (regression or reward)"
        return {
            "text": f"sequence classification, {len(self.labels)} labels{several}",
            "tokens": f"token classification, {len(self.labels)} labels{several}",
            "answer": "question answering (where an answer begins and ends)",
            "none": "none (a bare model, for vectors of texts)",
        }[self.kind]


class Positions(Config):
    """How a model tells where a token stands. One class a way, in `nn/positions/`; this says what is asked of each.

    `way` is its name in `POSITIONS`. `context` are the tokens that the model may be used to now, `trained` those that
    it learned from before it was lengthened. What a subclass leaves as it is here means: no length matters, nothing
    ends, nothing is lengthened.
    """

    words: ClassVar[str]  # how a sentence names the way
    bias: ClassVar[Literal["", "fixed", "learned"]] = ""  # what is added to the scores
    methods: ClassVar[dict[str, Any]] = {}  # of lengthening, by name
    unlengthened: ClassVar[str] = ""  # where there is none: why, and what to do instead

    if TYPE_CHECKING:  # fields of the subclasses; real ones here would be shadowed by them
        way: str
        context: int
        trained: int

    @property
    def limit(self) -> int | None:
        """The first position that the model refuses; None where it can be read on."""
        return None

    @property
    def rows(self) -> int:
        """Vectors of the width that are learned for positions."""
        return 0

    @property
    def pads(self) -> bool:
        """Whether the number of the padding token tells where the positions begin (RoBERTa)."""
        return False

    @property
    def only_ours(self) -> bool:
        """Whether other libraries cannot compute them; such checkpoints are written so that they are refused there."""
        return False

    @property
    def several_distances(self) -> bool:
        """Whether parts of the keys are read at distances of their own (Self-Extend, dual chunks)."""
        return False

    def declared(self, length: int) -> int:
        """What a request of `length` tokens declares, so that requests that can share keys do."""
        return length

    def bucket(self, length: int) -> int:
        """Requests whose buckets are equal give a token the same keys."""
        return 0

    def reaching(self, length: int) -> Self:
        """Positions of the same kind for `length` tokens at least, as lengthening makes them; for the planner."""
        return self

    def making(self, to: int, width: int) -> int:
        """Bytes that lengthening to `to` tokens takes beside the model."""
        return 0

    def describe(self, layer: LayerSpec) -> str:
        """One line on the way and its settings."""
        return self.words

    def rescaled(self, scaling: dict[str, Any], base: float | None, context: int, where: str) -> Self:
        """The same way with another scaling for `context` tokens at least, of the same trained length.

        Raises:
            ConfigError: there is nothing to scale.
        """
        instead = self.unlengthened or "is lengthened between two runs, by handscroll extend"
        raise ConfigError(f"{where}: the model has {self.words}, and only rotary ones can be rescaled; it {instead}")

    def candidates(self, method: str, to: int, first: Any, layer: LayerSpec, factors: Any = None) -> list[Any]:
        """The candidates (`nn/positions/candidate.py`) for `to` tokens of one method, or of "auto" or "all".

        `first` are the positions that the model was trained with, `layer` is one that tells positions so.
        """
        raise NotImplementedError

    def origin(self) -> Self:
        """As if the model had been trained with these positions: it was tuned since it was lengthened."""
        return self

    def remembered(self) -> dict[str, Any] | None:
        """What of the trained positions no `config.json` says once they are lengthened; None: nothing."""
        return None

    def restored(self, before: dict[str, Any] | None, trained: int) -> Self:
        """The positions that the model was trained with, from what was `remembered` (None: no record has it)."""
        return self


def _positions_from(values: Any) -> Any:
    if not isinstance(values, dict):
        return values
    return resolve(POSITIONS, values.get("way", ""), "way of telling positions").model_validate(values)


AnyPositions = Annotated[SerializeAsAny[Positions], BeforeValidator(_positions_from)]

# Why a model is refused what it is asked for: one reason a line, asked by `ModelSpec.require`.
_INSTEAD = {
    "blanks": "fill its blanks (lm.fill)",
    "both": "use embed or logits, or measure its masked-LM loss (handscroll evaluate perplexity), or take a causal "
    "model (llama, gpt2, ...)",
}


class ModelSpec(Config):
    """A model. `layers` read the text; `encoder` are those that read a source before it, where there are some.

    `positions`: the ways of telling positions, each layer naming its own; lengthening acts on the first, and the others
    follow it. `norm` is that behind the last layer ("": none).
    `reads`: "forward", each token what came before it; "both", all of a text at once, so nothing is kept of it;
    "blanks", a text in both directions and what fills its blanks forward; "source", a text under another one.
    `predicts`: it has a head for tokens (`transformed`: with a layer of its own before it). `head`: another one.
    `table_width`: the width of the tables of tokens and positions (None: that of the layers). `extra` are numbers that
    belong to no layer, table, head or position.
    """

    family: str = ""
    vocab: int = Field(ge=1)
    layers: tuple[LayerSpec, ...] = Field(min_length=1)
    encoder: tuple[LayerSpec, ...] = ()
    positions: tuple[AnyPositions, ...] = Field(min_length=1)
    tied: bool = False
    norm: Literal["", "rms", "layer"] = "rms"
    reads: Literal["forward", "both", "blanks", "source"] = "forward"
    predicts: bool = True
    transformed: bool = False
    head: HeadSpec | None = None
    table_width: int | None = Field(default=None, ge=1)
    extra: int = Field(default=0, ge=0)

    @property
    def labels(self) -> tuple[str, ...]:
        """What a classifier of whole texts tells apart, one label a text; else nothing."""
        head = self.head
        return head.labels if head is not None and (head.kind, head.problem) == ("text", "one") else ()

    @property
    def pool(self) -> str:
        """Which state a head of whole texts reads: that of the first or last token, or the mean."""
        return "first" if self.head is None else self.head.pool

    @property
    def width(self) -> int:
        return self.layers[0].width

    @property
    def both_ways(self) -> bool:
        """Whether plain text is read in both directions: its tokens cannot be scored or continued one by one."""
        return self.reads in ("both", "blanks")

    @property
    def recurrent(self) -> bool:
        """Whether it keeps a state of constant size instead of keys."""
        return self.layers[0].recurrent

    @property
    def cached(self) -> bool:
        """Whether a text can be read in pieces, over what was kept of those before."""
        return self.reads != "both"

    @property
    def limit(self) -> int | None:
        """The first position that is refused."""
        return min((one.limit for one in self.positions if one.limit is not None), default=None)

    @property
    def pads(self) -> bool:
        return any(one.pads for one in self.positions)

    @property
    def rotates(self) -> bool:
        return any(layer.rotated for layer in self.layers)

    @property
    def bias(self) -> str:
        """What is added to the scores: "learned", "fixed" or nothing."""
        return max((one.bias for one in self.positions), key=("", "fixed", "learned").index)

    @property
    def several_distances(self) -> bool:
        return any(one.several_distances for one in self.positions)

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The window of each layer."""
        return tuple(layer.window for layer in self.layers)

    def declared(self, length: int) -> int:
        """What a request of `length` tokens declares: the longest that any of the positions asks for."""
        return max(one.declared(length) for one in self.positions)

    def bucket(self, length: int) -> int:
        """Requests of equal buckets can share keys."""
        return max(one.bucket(length) for one in self.positions)

    def describe_positions(self) -> str:
        """A line for people: each way, with the number of its layers where there are several."""
        counts = Counter(layer.positions for layer in self.layers)
        layers = {layer.positions: layer for layer in self.layers}
        parts = {at: self.positions[at].describe(layers[at]) for at in sorted(counts)}
        return "; ".join(part if len(parts) == 1 else f"{counts[at]} layers: {part}" for at, part in parts.items())

    def reaching(self, length: int) -> Self:
        """The same model with positions for `length` tokens."""
        return self.model_copy(update={"positions": tuple(one.reaching(length) for one in self.positions)})

    @property
    def table(self) -> int:
        """Numbers of the embedding, which are those of the head."""
        return self.vocab * (self.table_width or self.width)

    @property
    def embedded(self) -> int:
        """Numbers in the embedding and in learned positions."""
        return self.table + sum(one.rows for one in self.positions) * (self.table_width or self.width)

    @property
    def normed(self) -> int:
        """Numbers in the norms of all layers, and behind the last one."""
        last = self.width * {"": 0, "rms": 1, "layer": 2}[self.norm] * (2 if self.encoder else 1)
        return total(self.layers, "normed") + total(self.encoder, "normed") + last

    @property
    def matrices(self) -> int:
        """Numbers in the projections of all layers."""
        return total(self.layers, "matrices") + total(self.encoder, "matrices")

    @property
    def parameters(self) -> int:
        """All numbers of the model."""
        layers = (*self.layers, *self.encoder)
        others = total(layers, "numbers") - total(layers, "normed")
        return others + self.normed + self.embedded + (0 if self.tied else self.table) + self.extra

    @property
    def active(self) -> int:
        """Numbers that one token meets: all but those of experts that do not read it."""
        return self.parameters - over(self.layers, lambda layer: layer.matrices - layer.read.matrices - _router(layer))

    def cache_bytes(self, tokens: int, itemsize: int) -> int:
        """Bytes of keys and values (or of the state) of a row of `tokens` in an exact cache."""
        return 0 if not self.cached else sum(layer.cache_bytes(tokens, itemsize) for layer in self.layers)

    def require(
        self,
        what: str,
        *,
        forward: bool = False,
        keys: bool = False,
        one_text: bool = False,
        head: bool = False,
        blocks: bool = False,
    ) -> None:
        """Refuse what a model of this kind cannot do; `what` is asked for ("a saved reading").

        forward: a text is scored or continued token by token. keys: keys and values are kept, which can be cut, saved
        or rounded. one_text: one text goes on, with no source beside it. head: there is a head for tokens. blocks: keys
        are read block by block, by kernels that know one rotation and no bias.

        Raises:
            ConfigError: says which of these is not so, and what to do instead.
        """
        family = f"family '{self.family}'"
        if one_text and self.reads == "source":
            raise ConfigError(
                f"{family} is an encoder-decoder, which writes one text under another; {what} is for one text that "
                "goes on. Use generate, whose prompt is the source"
            )
        if forward and self.both_ways:
            raise ConfigError(
                f"{family} reads a text in both directions: no token is predicted by those before it, so none has a "
                f"likelihood and no text is continued; {_INSTEAD[self.reads]}"
            )
        if keys and self.recurrent:
            raise ConfigError(f"{family} keeps a state of constant size and no keys, which {what} needs; leave it out")
        if head and not self.predicts:
            other = "" if self.head is None else f"; its head: {self.head.words}"
            needed = "masked-LM head" if self.both_ways else "head for tokens"
            raise ConfigError(f"{family} as it is here predicts no tokens: it has no {needed}, as {what} needs{other}")
        if blocks and (self.bias or self.several_distances):
            raise ConfigError(
                f"{family} tells positions by {self.describe_positions()}, under which keys cannot be read in blocks; "
                f"{what} needs that: use lm.generate, one request at a time"
            )


def _router(layer: LayerSpec) -> int:
    return layer.width * layer.experts


def total(layers: Sequence[LayerSpec], name: str) -> int:
    """The sum of a property over layers."""
    return over(layers, lambda layer: getattr(layer, name))


def over(layers: Sequence[LayerSpec], count: Callable[[LayerSpec], Number]) -> Number:
    """The sum of what `count` says of each layer; most are equal, and are asked for once."""
    return sum(number * count(layer) for layer, number in kinds(tuple(layers)))  # type: ignore[return-value]


@lru_cache(maxsize=256)
def kinds(layers: tuple[LayerSpec, ...]) -> tuple[tuple[LayerSpec, int], ...]:
    """The different layers and how many there are of each, in order of first appearance."""
    return tuple(Counter(layers).items())
