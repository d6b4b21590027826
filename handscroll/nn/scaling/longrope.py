"""LongRoPE: one searched factor per dimension, with one list for short requests and one for long ones."""

import math
from typing import ClassVar, Self

import torch
from pydantic import model_validator
from torch import Tensor

from handscroll.base.errors import ConfigError
from handscroll.nn.scaling.base import Factor, Positive, Scaling, Tokens, plain_frequencies


class LongRoPE(Scaling):
    """f_i' = f_i / long_i for a declared length L > L0, f_i / short_i otherwise.

    Attention factor for both lists: sqrt(1 + ln s / ln L0), or `attention_override`.
    Source: Ding et al. 2024, arXiv:2402.13753, section 3; the attention factor is the one of the released Phi-3
    checkpoints. It is called `longrope` or `su` in foreign configurations.
    Limits: the factors are given, not searched for here. The length is the declared one, fixed for the request;
    `transformers` uses the highest position so far, and switches in the middle of a text that grows past L0.

    Raises:
        ConfigError: (when used) a list does not have one factor for each pair of the head.
    """

    name: ClassVar[str] = "longrope"
    depends_on_length: ClassVar[bool] = True
    factor: Factor
    original: Tokens
    short_factor: tuple[Positive, ...]
    long_factor: tuple[Positive, ...]
    attention_override: Positive | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.short_factor) != len(self.long_factor):
            raise ConfigError(
                f"short_factor has {len(self.short_factor)} numbers and long_factor {len(self.long_factor)}; "
                "both need one for each pair of the head (head size / 2)"
            )
        if self.original < 2:
            raise ConfigError("original must be at least 2 tokens: the attention factor divides by its logarithm")
        return self

    def inverse_frequencies(self, head_size: int, base: float, length: int | None) -> Tensor:
        """Float64 (head_size / 2,); raises the errors of `plain_frequencies`, and one for lists of another size."""
        plain = plain_frequencies(head_size, base)
        factors = self.long_factor if self.bucket(length) else self.short_factor
        if len(factors) != len(plain):
            raise ConfigError(
                f"short_factor and long_factor have {len(factors)} numbers each; "
                f"a head size of {head_size} needs {len(plain)}"
            )
        return plain / torch.tensor(factors, dtype=torch.float64)

    def attention_factor(self, length: int | None) -> float:
        """See the formula of the class; the same for short and long requests."""
        if self.attention_override is not None:
            return self.attention_override
        return math.sqrt(1.0 + math.log(self.factor) / math.log(self.original))

    def bucket(self, length: int | None) -> int:
        """1 for the long list, 0 for the short one."""
        return int(length is not None and length > self.original)
