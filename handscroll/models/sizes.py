"""What a family's configuration says of itself, whatever its fields: what planner, `info` and lengthening ask."""

from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, model_validator

from handscroll.base.config import Config
from handscroll.base.spec import LayerSpec, ModelSpec
from handscroll.nn.positions.rotary import Rotary


class Sizes(Config):
    """A family's configuration. Its fields are its own; `spec` is what everybody else reads."""

    if TYPE_CHECKING:  # a field of every family
        family: str

    @property
    def spec(self) -> ModelSpec:
        """What a model of these sizes is, layer by layer."""
        raise NotImplementedError

    def cache_bytes_per_token(self, element_size: int) -> int:
        """Bytes that a token adds to a full cache as long as no window is full; a state does not grow."""
        spec = self.spec
        return 0 if spec.recurrent else spec.cache_bytes(1, element_size)

    def classifying(self, labels: tuple[str, ...]) -> Self:
        """The same layers as a classifier of documents; itself where it is one already, or a family makes none."""
        return self

    def describe_positions(self) -> str:
        return self.spec.describe_positions()


class Labels(Sizes):
    """With `labels` it is a classifier of documents."""

    labels: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _apart(self):
        if len(self.labels) == 1 or len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels {list(self.labels)}: a classifier needs at least two different ones")
        return self


class WholeHeads(Sizes):
    """Heads that share the width evenly, each with keys and values of its own."""

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
        """A layer with layer norms and biases everywhere and a plain GELU MLP; `more` are fields of `LayerSpec`."""
        names = ("width", "heads", "kv_heads", "head_size", "mlp_width")
        biases = {"attention_bias": True, "output_bias": True, "mlp_bias": True}
        form: dict[str, Any] = {"norm": "layer", "gated": False, "activation": "gelu-tanh"} | biases | more
        return LayerSpec(**{name: getattr(self, name) for name in names}, **form)


class RotaryHeads(Sizes):
    """Rotary positions, and heads of a size of their own that share keys and values in even groups."""

    vocab: int = Field(ge=1)
    width: int = Field(ge=1)
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    kv_heads: int = Field(ge=1)
    head_size: int = Field(ge=1)
    mlp_width: int
    tied: bool = False
    positions: Rotary

    @model_validator(mode="after")
    def _shared_evenly(self):
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads cannot share {self.kv_heads} kv heads evenly")
        return self

    @property
    def context(self) -> int:
        return self.positions.context

    @property
    def trained(self) -> int:
        return self.positions.trained

    def model_spec(self, rotated: int, windows: tuple[int | None, ...] = (), **layer: Any) -> ModelSpec:
        """A decoder of these sizes whose layers differ in their windows alone; `layer` are fields of `LayerSpec`."""
        names = ("width", "heads", "kv_heads", "head_size", "mlp_width")
        one = LayerSpec(**{name: getattr(self, name) for name in names}, rotated=rotated, **layer)
        found = {window: one.model_copy(update={"window": window}) for window in {*windows, None}}
        layers = tuple(found[window] for window in windows or (None,) * self.layers)
        about: dict[str, Any] = {"family": self.family, "vocab": self.vocab, "tied": self.tied}
        return ModelSpec(**about, layers=layers, positions=(self.positions,))
