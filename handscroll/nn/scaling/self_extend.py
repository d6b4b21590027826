"""Self-Extend: near keys at their exact distance, all keys further back in groups that share a position."""

from typing import ClassVar, Self

from pydantic import model_validator
from torch import Tensor

from handscroll.base.errors import ConfigError
from handscroll.nn.mask import Beyond, Window
from handscroll.nn.scaling.base import Band, Factor, Scaling, Tokens, plain_frequencies


class SelfExtend(Scaling):
    """Keys nearer than `window` are read at the distance i - j, all others at i // G + W - W // G - j // G.

    So a model trained to L0 tokens meets only trained distances in texts of up to (L0 - W) G + W tokens. No weight and
    no frequency changes, and a text of at most W tokens is read as before. Source: Jin et al. 2024, "LLM Maybe LongLM:
    Self-Extend LLM Context Window Without Tuning", arXiv:2401.01325, 3.2. Limits: the tokens of one group differ by
    their content alone. Keys are kept once, rotated to their group. Near keys are rotated further to their own place
    while they are read; this cost grows with the window and not with the text.
    """

    name: ClassVar[str] = "self-extend"
    factor: Factor
    original: Tokens
    window: Tokens
    group: Tokens

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.window >= self.original:
            raise ConfigError(
                f"window {self.window} leaves no trained distance for groups: give less than {self.original}"
            )
        if self.reach + 1e-6 < self.factor * self.original:
            raise ConfigError(
                f"groups of {self.group} beyond a window of {self.window} reach {self.reach} tokens of the "
                f"{self.factor * self.original:g} that the factor promises; use a larger group or a smaller window"
            )
        return self

    @property
    def reach(self) -> int:
        """The number of tokens up to which no distance is longer than a trained one."""
        return (self.original - self.window) * self.group + self.window

    def inverse_frequencies(self, head_size: int, base: float, length: int | None) -> Tensor:
        """Float64 (head_size / 2,), as trained; see `plain_frequencies` for the errors."""
        return plain_frequencies(head_size, base)

    def stored(self, positions: Tensor) -> Tensor:
        return positions // self.group

    def bands(self) -> tuple[Band, ...]:
        shift = self.window - self.window // self.group
        return (
            Band(Window(self.window), lambda positions: positions, lambda positions: positions),
            Band(Beyond(self.window), lambda positions: positions // self.group + shift, self.stored),
        )
