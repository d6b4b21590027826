"""Rotary positions (Su et al. 2021): queries and keys are rotated by their place, so scores depend on the distance."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator
from torch import Tensor

from handscroll.base.errors import ConfigError
from handscroll.base.spec import LayerSpec, Positions
from handscroll.base.tables import resolve
from handscroll.nn.marks import Marks
from handscroll.nn.positions.candidate import Candidate
from handscroll.nn.positions.lengthen_rotary import METHODS, longrope_with, rotary_candidates
from handscroll.nn.rope import Rotation, rotation
from handscroll.nn.scaling.base import Scaling, Tokens
from handscroll.nn.scaling.table import OWN, SCALINGS, scaling_from


class Rotary(Positions):
    """The rotary positions of a checkpoint.

    `base` is rope_theta. `trained` is the number of tokens that the frequencies were trained for; `context` is the
    number of tokens that the checkpoint may be used with now.

    Raises:
        ConfigError: (through `parse`) lengths, factor and original of the scaling contradict each other.
    """

    words = "rotary positions"
    methods = METHODS
    way: Literal["rotary"] = "rotary"
    base: Annotated[float, Field(gt=1.0, allow_inf_nan=False, strict=True)]
    scaling: Annotated[SerializeAsAny[Scaling], BeforeValidator(scaling_from)]
    context: Tokens
    trained: Tokens

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        scaling = self.scaling
        if scaling.original not in (None, self.trained):
            raise ConfigError(
                f"trained is {self.trained} and the scaling's original {scaling.original}; make them equal"
            )
        if self.context < self.trained:
            raise ConfigError(f"context ({self.context}) is below trained ({self.trained}); no scaling shortens a text")
        if scaling.name == "dynamic-ntk" and self.context != stretched(self.trained, scaling.factor):
            # A foreign file holds the trained length only, so the context has to follow from it.
            raise ConfigError(contradiction(scaling.factor, self.trained, self.context))
        if scaling.name not in ("none", "llama3") and not agree(self.trained, scaling.factor, self.context):
            raise ConfigError(contradiction(scaling.factor, self.trained, self.context))
        return self

    def rotation(self, marks: Marks, rotated: int, length: int | None, like: Tensor) -> Rotation:
        """Tables for tokens with `marks`, for `rotated` numbers of each head, in a request of `length` tokens.

        Raises:
            ConfigError: the scaling depends on the length, and none is declared.
        """
        if self.scaling.depends_on_length and length is None:
            raise ConfigError(
                f"scaling '{self.scaling.name}' depends on the length of the request: "
                "declare it (length = prompt + new tokens) so that cached keys stay valid"
            )
        return rotation(marks, self.scaling, self.base, rotated, length, like)

    @property
    def only_ours(self) -> bool:
        return self.scaling.name in OWN

    @property
    def several_distances(self) -> bool:
        return bool(self.scaling.bands())

    def declared(self, length: int) -> int:
        return self.scaling.declared(length)

    def bucket(self, length: int) -> int:
        return self.scaling.bucket(length)

    def describe(self, layer: LayerSpec) -> str:
        fields = self.scaling.model_dump(exclude_none=True)
        name = fields.pop("name")
        for key in ("short_factor", "long_factor"):
            if key in fields:
                fields[key] = f"{len(fields[key])} numbers"
        settings = ", ".join(f"{key} {value}" for key, value in fields.items())
        scaling = "no scaling" if name == "none" else f"{name} ({settings})" if settings else name
        part = "" if layer.rotated == layer.head_size else f"{layer.rotated} of {layer.head_size} numbers, "
        return f"rotary, {part}base {self.base:g}, {scaling}"

    def rescaled(self, scaling: dict[str, Any], base: float | None, context: int, where: str) -> "Rotary":
        fields = dict(scaling)
        if "original" in getattr(resolve(SCALINGS, fields.get("name", ""), "scaling"), "model_fields", {}):
            fields.setdefault("original", self.trained)
        values = {"base": base or self.base, "scaling": scaling_from(fields, f"{where}.scaling")}
        return Rotary.parse(values | {"trained": self.trained, "context": max(context, self.trained)}, where)

    def candidates(
        self, method: str, to: int, first: "Rotary", layer: LayerSpec, factors: Any = None
    ) -> list[Candidate]:
        if factors is not None:
            return [longrope_with(factors, first, layer.rotated, to)]
        moved = first.base != self.base
        return rotary_candidates(first, layer.rotated, method, to, "ntk" if moved else first.scaling.name)

    def remembered(self) -> dict[str, Any]:
        return {"base": self.base}

    def restored(self, before: dict[str, Any] | None, trained: int) -> "Rotary":
        if before is None or self.scaling.name != "none":  # the scaling's own record is complete
            return self
        plain = {"scaling": {"name": "none"}, "context": self.context, "trained": trained}
        return Rotary.parse(plain | before, "handscroll.json: before")


def stretched(trained: int, factor: float) -> int:
    """trained * factor, rounded down to whole tokens; the small term undoes rounding in factor = context / trained."""
    return math.floor(trained * factor + 1e-6)


def agree(trained: int, factor: float, context: int) -> bool:
    """Whether the three agree to within one trained token."""
    return abs(context / factor - trained) < 1.0


def contradiction(factor: float, trained: int, context: int) -> str:
    return (
        f"the scaling factor {factor:g} contradicts the lengths: original length {trained} x {factor:g} = "
        f"{stretched(trained, factor)}, but the length stated is {context} (ratio {context / trained:g}); "
        "correct the factor, original_max_position_embeddings or max_position_embeddings"
    )
