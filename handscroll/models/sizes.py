"""What a family's configuration says of itself, whatever its fields: what planner, `info` and lengthening ask."""

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from handscroll.base.config import Config
from handscroll.models.positions import Positions

Told = Literal["rotary", "learned", "slopes", "buckets", "pairs", "order"]


class Sizes(Config):
    """A family's configuration. Its fields are its own.

    `told`: how positions are told, by which `extend/methods.py` knows what lengthens it; where nothing does,
    `unlengthened` says why, and what to do instead.
    """

    told: ClassVar[Told]
    unlengthened: ClassVar[str] = ""

    def describe_positions(self) -> str:
        """One line on the position method and its dials."""
        raise NotImplementedError

    def shape(self) -> dict[str, Any]:
        """The fields of `base/workload.py: Shape` by which the planner counts a model of these sizes."""
        names = ("layers", "width", "heads", "kv_heads", "head_size", "mlp_width", "vocab", "tied")
        return {name: getattr(self, name) for name in names}


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

    def cache_bytes_per_token(self, element_size: int) -> int:
        return 2 * self.layers * self.width * element_size


class Rotary(Sizes):
    """Rotary positions, and heads of a size of their own that share keys and values in even groups."""

    told = "rotary"
    vocab: int = Field(ge=1)
    width: int = Field(ge=1)
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    kv_heads: int = Field(ge=1)
    head_size: int = Field(ge=1)
    positions: Positions

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

    def cache_bytes_per_token(self, element_size: int) -> int:
        return 2 * self.layers * self.kv_heads * self.head_size * element_size

    def shape(self) -> dict[str, Any]:
        return super().shape() | {"family": "llama"}

    def describe_positions(self) -> str:
        fields = self.positions.scaling.model_dump(exclude_none=True)
        name = fields.pop("name")
        for key in ("short_factor", "long_factor"):
            if key in fields:
                fields[key] = f"{len(fields[key])} numbers"
        dials = ", ".join(f"{key} {value}" for key, value in fields.items())
        scaling = "no scaling" if name == "none" else f"{name} ({dials})" if dials else name
        rotated: int = getattr(self, "rotated_size", self.head_size)
        part = "" if rotated == self.head_size else f"{rotated} of {self.head_size} numbers, "
        return f"rotary, {part}base {self.positions.base:g}, {scaling}"
