"""The scaling of Llama 3.1, which treats low and high frequencies differently."""

import math
from typing import ClassVar, Self

from pydantic import model_validator
from torch import Tensor

from handscroll.base.errors import ConfigError
from handscroll.nn.scaling.base import Factor, Positive, Scaling, Tokens, plain_frequencies


class Llama3(Scaling):
    """f_i' = f_i * (m_i + (1 - m_i) / s), m_i = clamp((r_i - low) / (high - low), 0, 1), r_i = L0 f_i / (2 pi).

    r_i counts the turns of a dimension within the trained context. With more than `high_freq_factor` turns it is kept,
    with fewer than `low_freq_factor` it is divided by s, and between the two it is blended.
    Source: `apply_scaling` in the released code of Llama 3.1 (github.com/meta-llama/llama-models, 2024); Dubey et
    al. 2024, arXiv:2407.21783, only names the method.
    Limits: s divides the frequencies and is not the ratio of contexts (Llama 3.1: s = 8 for 8192 -> 131072).
    """

    name: ClassVar[str] = "llama3"
    factor: Factor
    original: Tokens
    low_freq_factor: Positive
    high_freq_factor: Positive

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.high_freq_factor <= self.low_freq_factor:
            raise ConfigError(
                f"high_freq_factor ({self.high_freq_factor}) must be above low_freq_factor ({self.low_freq_factor})"
            )
        return self

    def inverse_frequencies(self, head_size: int, base: float, length: int | None) -> Tensor:
        """Float64 (head_size / 2,); see `plain_frequencies` for the errors."""
        plain = plain_frequencies(head_size, base)
        turns = self.original * plain / (2.0 * math.pi)
        kept = ((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)).clamp(0.0, 1.0)
        return plain * (kept + (1.0 - kept) / self.factor)
