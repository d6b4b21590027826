"""The contract of every scaling of the rotary frequencies, and the unscaled frequencies from which they start."""

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from handscroll.base.errors import ConfigError
from handscroll.base.named import Named
from handscroll.nn.mask import Mask

# Strict: a factor of "4" or true in a config.json is a mistake, and the reference library fails on it too.
Factor = Annotated[float, Field(ge=1.0, allow_inf_nan=False, strict=True)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False, strict=True)]
Tokens = Annotated[int, Field(ge=1, le=1 << 40, strict=True)]


class Band(NamedTuple):
    """A distance band: the mask of its keys, and the positions (integers) at which its queries and keys are rotated.

    Each key is in exactly one distance band of a scaling.
    """

    mask: Mask
    query: Callable[[Tensor], Tensor]
    key: Callable[[Tensor], Tensor]


class Scaling(Named):
    """A way to stretch the rotary frequencies of a trained model over a longer text; frozen and pure.

    `factor` says how many times longer the text may become. `original` is the context that the frequencies were trained
    for (None if the formula does not need it). `head_size` counts the rotated numbers of a head.
    Limits: scales all layers alike; no frequencies per layer type.
    """

    depends_on_length: ClassVar[bool] = False

    if TYPE_CHECKING:  # fields or constants of the subclasses; they would shadow a real attribute here
        factor: float
        original: int | None

    @abstractmethod
    def inverse_frequencies(self, head_size: int, base: float, length: int | None) -> Float[Tensor, "half"]:
        """Radians per token of each rotated pair, float64 (head_size / 2,), for a request of `length` tokens.

        `length` is declared once per request and fixed for it; None means "within the trained context".

        Raises:
            ConfigError: head size, base and this scaling do not fit together.
        """

    def attention_factor(self, length: int | None) -> float:
        """The factor of cosine and sine, in the convention of `transformers`; q.k gets its square."""
        return 1.0

    def bucket(self, length: int | None) -> int:
        """The length bucket of `length`: equal numbers mean equal frequencies and attention factor."""
        return 0

    def declared(self, length: int) -> int:
        """The length that a request of `length` tokens declares.

        If every length has its own tables, this is a longer one that many requests share.
        """
        return length

    def stored(self, positions: Tensor) -> Tensor:
        """The positions (integers) at which keys are rotated when they are kept."""
        return positions

    def bands(self) -> tuple[Band, ...]:
        """The distance bands of the scaling; empty if all keys are read at their real distance."""
        return ()


def plain_frequencies(head_size: int, base: float) -> Float[Tensor, "half"]:
    """f_i = base^(-2i / d), i = 0 .. d/2 - 1, in float64 (Su et al. 2021, "RoFormer", arXiv:2104.09864, 3.2.2).

    Raises:
        ConfigError: the head size is odd or not positive, or the base is not a finite number above 1.
    """
    if head_size < 2 or head_size % 2:
        raise ConfigError(f"head size {head_size} cannot be rotated in pairs; rotary positions need an even head size")
    if not 1.0 < base < float("inf"):
        raise ConfigError(f"rotary base (rope_theta) is {base}; it must be a finite number above 1, such as 10000")
    return torch.tensor(base, dtype=torch.float64) ** (-torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
