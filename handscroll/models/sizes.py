"""The facts that every configuration gives about its model, for planner, `info` and lengthening."""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from handscroll.base.config import Config
from handscroll.base.errors import ConfigError
from handscroll.base.spec import HeadSpec, LayerSpec, ModelSpec, Positions
from handscroll.models.keys import LONGEST, MOST_LAYERS, short
from handscroll.nn.positions.rotary import Rotary

DECODER_HEADS = ("text", "tokens", "answer", "none")
FULL, SLIDING = "full_attention", "sliding_attention"  # the types of layers in `config.json`


_COUNTS = frozenset("vocab width layers encoder_layers heads kv_heads head_size mlp_width context trained".split())


class Sizes(Config):
    """The configuration of a family. Its fields belong to the family; all other code reads `spec`.

    `head` is a head that says something else than tokens; there is then none for tokens.
    """

    head_kinds: ClassVar[tuple[str, ...]] = ()  # the heads that a family can have
    head_pool: ClassVar[Literal["first", "last"]] = "first"  # the state that a new classifier reads
    head: HeadSpec | None = None

    if TYPE_CHECKING:  # every family has these fields
        family: str
        tied: bool

    @model_validator(mode="after")
    def _known_head(self):
        if self.head is not None and self.head.kind not in self.head_kinds:
            raise ValueError(f"the family has no head of kind '{self.head.kind}', only {list(self.head_kinds)}")
        return self

    @model_validator(mode="before")
    @classmethod
    def _within_reason(cls, values: Any) -> Any:
        """Refuse sizes that no model has, or far above what any machine holds, before anything is made of them."""
        for name, value in values.items() if isinstance(values, dict) else ():
            if name in _COUNTS and (isinstance(value, bool) or (isinstance(value, int) and value < 1)):
                raise ValueError(f"{name} is {value}; it must be a whole number from 1 on")
            largest = MOST_LAYERS if name in ("layers", "encoder_layers") else LONGEST
            if isinstance(value, int) and value > largest:
                raise ValueError(f"{name} is {short(value)}; at most {largest:,} is possible")
        return values

    @property
    def spec(self) -> ModelSpec:
        """The description of the model, layer by layer."""
        raise NotImplementedError

    def changed(self, changes: dict[str, Any], where: str) -> Self:
        """This configuration with other values of some fields.

        Raises:
            ConfigError: the family does not allow them.
        """
        return self.parse(dict(self) | changes, where)

    def carrying(self, head: HeadSpec) -> Self:
        """The same layers with this head in place of their own; which state it reads is the family's.

        Raises:
            ConfigError: the family has no head of this kind.
        """
        return self.parse(self.model_dump() | self.beside(head), "head")

    def beside(self, head: HeadSpec) -> dict[str, Any]:
        """The fields that a new head decides. A decoder's head for texts has no bias, as in the reference library."""
        more: dict[str, Any] = {"pool": self.head_pool}
        if self.head_pool == "last":
            more["bias"] = head.kind != "text"
        return {"head": head.model_copy(update=more).model_dump()}

    def classifying(self, labels: tuple[str, ...]) -> Self:
        """The same layers as a classifier of documents.

        Returns the configuration itself if it is a classifier already, or if the family has none.
        """
        if self.spec.labels or "text" not in self.head_kinds:
            return self
        return self.carrying(HeadSpec(labels=labels))

    @property
    def headed(self) -> dict[str, Any]:
        """The fields of `ModelSpec` that the head of a decoder decides."""
        return {"head": self.head, "predicts": self.head is None, "tied": self.tied or self.head is not None}

    def describe_positions(self) -> str:
        return self.spec.describe_positions()


class WholeHeads(Sizes):
    """Heads that share the width evenly, each with its own keys and values."""

    vocab: int = Field(ge=1)
    width: int = Field(ge=1)
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)

    @model_validator(mode="after")
    def _even(self):
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of {self.heads} heads")
        return self

    @property
    def head_size(self) -> int:
        return self.width // self.heads

    @property
    def kv_heads(self) -> int:
        return self.heads

    def layer_spec(self, **more: Any) -> LayerSpec:
        """A layer with layer norms, biases everywhere and a plain GELU MLP; `more` are fields of `LayerSpec`."""
        names = ("width", "heads", "kv_heads", "head_size", "mlp_width")
        biases = {"attention_bias": True, "output_bias": True, "mlp_bias": True}
        form: dict[str, Any] = {"norm": "layer", "gated": False, "activation": "gelu-tanh"} | biases | more
        return LayerSpec(**{name: getattr(self, name) for name in names}, **form)

    def model_spec(self, positions: Positions, layer: LayerSpec, extra: int = 0, **more: Any) -> ModelSpec:
        """A decoder whose layers are all like `layer`; `extra` are numbers of the embedding."""
        about: dict[str, Any] = {"family": self.family, "vocab": self.vocab, "norm": layer.norm} | self.headed | more
        extra += 0 if self.head is None else self.head.numbers(self.width)
        return ModelSpec(**about, layers=(layer,) * self.layers, positions=(positions,), extra=extra)


class Rotating(Sizes):
    """Rotary positions. Where a family has `windows`, it is empty or has one entry for each layer (None: full)."""

    positions: Rotary

    if TYPE_CHECKING:
        layers: int
        head_size: int

    @model_validator(mode="after")
    def _rotates(self):
        if self.rotary_size % 2:
            raise ValueError(f"rotary positions need an even number of rotated values, got {self.rotary_size}")
        if any(window is not None and window < 1 for window in self.every_window):
            raise ValueError(f"windows have at least one token, got {self.every_window}")
        if len(self.every_window) != self.layers:
            raise ValueError(f"{len(self.every_window)} windows for {self.layers} layers")
        return self

    @property
    def rotary_size(self) -> int:
        """The number of values of each head that are rotated."""
        return self.head_size

    @property
    def every_window(self) -> tuple[int | None, ...]:
        """The window of each layer."""
        return getattr(self, "windows", ()) or (None,) * self.layers

    @property
    def layer_types(self) -> list[str]:
        """The type of each layer in `config.json`."""
        return [FULL if window is None else SLIDING for window in self.every_window]

    @property
    def every_positions(self) -> tuple[Rotary, ...]:
        """The positions of the full layers, and those of the windowed layers if they differ."""
        return (self.positions,)

    @property
    def context(self) -> int:
        return self.positions.context

    @property
    def trained(self) -> int:
        return self.positions.trained


def windows_by_type(types: Sequence[str], window: int | None, layers: int) -> tuple[int | None, ...]:
    """The window of each layer by its type; empty if none has one.

    Raises:
        ConfigError: there is no type for each layer, or a type is unknown.
    """
    if set(types) - {FULL, SLIDING} or len(types) != layers:
        raise ConfigError(f"layer_types {sorted(set(types))} x {len(types)} does not describe {layers} layers")
    found = tuple(window if kind == SLIDING else None for kind in types)
    return found if any(found) else ()


@lru_cache(maxsize=64)
def unlengthened(base: float, context: int, trained: int) -> Rotary:
    """Positions of windowed layers, which are never scaled, beside others of these lengths."""
    values = {"base": base, "scaling": {"name": "none"}, "context": context, "trained": trained}
    return Rotary.parse(values, "positions of windowed layers")


class RotaryHeads(Rotating):
    """Rotary positions, and heads of a free size that share keys and values in even groups.

    `both_ways`: every token sees the whole text, as in an encoder.
    """

    head_kinds = DECODER_HEADS
    head_pool = "last"

    vocab: int = Field(ge=1)
    width: int = Field(ge=1)
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    kv_heads: int = Field(ge=1)
    head_size: int = Field(ge=1)
    mlp_width: int
    tied: bool = False
    both_ways: bool = False

    @model_validator(mode="after")
    def _shared_evenly(self):
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads cannot share {self.kv_heads} kv heads evenly")
        return self

    @property
    def layer_form(self) -> dict[str, Any]:
        """The fields of `LayerSpec` that all layers share, besides their sizes."""
        raise NotImplementedError

    @property
    def spec(self) -> ModelSpec:
        """A decoder of these sizes whose layers differ only in their windows, and in the positions of windowed ones."""
        names = ("width", "heads", "kv_heads", "head_size", "mlp_width")
        one = LayerSpec(**{name: getattr(self, name) for name in names}, rotated=self.rotary_size, **self.layer_form)
        local = {"positions": len(self.every_positions) - 1}
        found = {window: one.model_copy(update={"window": window, **local}) for window in set(self.every_window)}
        layers = tuple(one if window is None else found[window] for window in self.every_window)
        about: dict[str, Any] = {"family": self.family, "vocab": self.vocab, "norm": one.norm} | self.headed
        extra = 0 if self.head is None else self.head.numbers(self.width)
        reads = "both" if self.both_ways else "forward"
        return ModelSpec(**about, layers=layers, positions=self.every_positions, reads=reads, extra=extra)
