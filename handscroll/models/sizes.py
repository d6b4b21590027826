"""The facts that every configuration gives about its model, for planner, `info` and lengthening."""

from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, model_validator

from handscroll.base.config import Config
from handscroll.base.spec import LayerSpec, ModelSpec
from handscroll.nn.positions.rotary import Rotary


class Sizes(Config):
    """The configuration of a family. Its fields belong to the family; all other code reads `spec`."""

    if TYPE_CHECKING:  # every family has this field
        family: str

    @property
    def spec(self) -> ModelSpec:
        """The description of the model, layer by layer."""
        raise NotImplementedError

    def cache_bytes_per_token(self, element_size: int) -> int:
        """The bytes that a token adds to a full cache while no window is full; 0 for a state of constant size."""
        spec = self.spec
        return 0 if spec.recurrent else spec.cache_bytes(1, element_size)

    def classifying(self, labels: tuple[str, ...]) -> Self:
        """The same layers as a classifier of documents.

        Returns the configuration itself if it is a classifier already, or if the family has none.
        """
        return self

    def describe_positions(self) -> str:
        return self.spec.describe_positions()


class Labels(Sizes):
    """A configuration that describes a classifier of documents if it has `labels`."""

    labels: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _apart(self):
        if len(self.labels) == 1 or len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels {list(self.labels)}: a classifier needs at least two different labels")
        return self


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


class RotaryHeads(Sizes):
    """Rotary positions, and heads of a free size that share keys and values in even groups."""

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
        """A decoder of these sizes whose layers differ only in their windows; `layer` are fields of `LayerSpec`."""
        names = ("width", "heads", "kv_heads", "head_size", "mlp_width")
        one = LayerSpec(**{name: getattr(self, name) for name in names}, rotated=rotated, **layer)
        found = {window: one.model_copy(update={"window": window}) for window in {*windows, None}}
        layers = tuple(found[window] for window in windows or (None,) * self.layers)
        about: dict[str, Any] = {"family": self.family, "vocab": self.vocab, "tied": self.tied}
        return ModelSpec(**about, layers=layers, positions=(self.positions,))
