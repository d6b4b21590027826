"""YaRN: interpolate low frequencies, keep high ones, and sharpen the attention a little."""

import math
from typing import ClassVar, Self

import torch
from jaxtyping import Float
from pydantic import StrictBool, model_validator
from torch import Tensor

from handscroll.base.errors import ConfigError
from handscroll.nn.scaling.base import Factor, Positive, Scaling, Tokens, plain_frequencies


class YaRN(Scaling):
    """f_i' = f_i * (1 - g_i) + (f_i / s) * g_i, with a ramp g from 0 (kept) to 1 (interpolated).

    The dimension that turns r times within the trained context is i(r) = d ln(L0 / (2 pi r)) / (2 ln base); g is
    0 up to i(beta_fast), 1 from i(beta_slow) on, and linear in i between them. `truncate` widens the ramp to whole
    dimensions, as released checkpoints expect.
    Attention factor: 0.1 ln s + 1 (equation 22: q.k times its square), or
    (0.1 mscale ln s + 1) / (0.1 mscale_all_dim ln s + 1) if a checkpoint gives both (DeepSeek-V2).
    `attention_override` takes precedence over both.
    Source: Peng et al. 2023, arXiv:2309.00071, sections 3.2 to 3.4. The paper's ramp is linear in r. The authors'
    released code and every released checkpoint use a ramp that is linear in i, and so does this class.
    Limits: the same frequencies for every length, so short texts change slightly.

    Raises:
        ConfigError: (when used) base and original leave no room for a ramp.
    """

    name: ClassVar[str] = "yarn"
    factor: Factor
    original: Tokens
    beta_fast: Positive = 32.0
    beta_slow: Positive = 1.0
    truncate: StrictBool = True
    mscale: Positive | None = None
    mscale_all_dim: Positive | None = None
    attention_override: Positive | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.beta_fast < self.beta_slow:
            raise ConfigError(
                f"beta_fast ({self.beta_fast}) is below beta_slow ({self.beta_slow}); "
                "beta_fast counts the turns of the dimensions to keep and must be the larger one"
            )
        if (self.mscale is None) != (self.mscale_all_dim is None):
            # The reference library ignores a single one; here a setting without effect is refused.
            raise ConfigError("mscale and mscale_all_dim only act together; give both or neither")
        return self

    def inverse_frequencies(self, head_size: int, base: float, length: int | None) -> Tensor:
        """Float64 (head_size / 2,); raises the errors of `plain_frequencies` and of the ramp."""
        plain = plain_frequencies(head_size, base)
        ramp = self._ramp(head_size, base)
        return plain * (1.0 - ramp) + plain / self.factor * ramp

    def attention_factor(self, length: int | None) -> float:
        """See the formula of the class; does not depend on the length."""
        if self.attention_override is not None:
            return self.attention_override
        if self.mscale is None or self.mscale_all_dim is None:
            return self._magnitude(1.0)
        return self._magnitude(self.mscale) / self._magnitude(self.mscale_all_dim)

    def _magnitude(self, weight: float) -> float:
        return 0.1 * weight * math.log(self.factor) + 1.0

    def _ramp(self, head_size: int, base: float) -> Float[Tensor, "half"]:
        """0 where the dimension is kept, 1 where it is interpolated.

        The bounds are clipped to 0 .. d - 1 although only d/2 dimensions exist: released checkpoints were trained with
        that clip. If the clip made the bounds cross, the slope would be negative (all dimensions kept, or the ramp
        reversed); this is refused.
        """
        first = self._dimension(self.beta_fast, head_size, base)
        last = self._dimension(self.beta_slow, head_size, base)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, head_size - 1)
        if last < first:
            raise ConfigError(
                f"YaRN has no ramp for base {base}, original {self.original} and head size {head_size}: it would "
                f"run from dimension {first:g} down to {last:g}; check rope_theta and original_max_position_embeddings"
            )
        width = last - first if last > first else 0.001  # a step; the value is that of the released code
        return ((torch.arange(head_size // 2, dtype=torch.float64) - first) / width).clamp(0.0, 1.0)

    def _dimension(self, turns: float, head_size: int, base: float) -> float:
        return head_size * math.log(self.original / (2.0 * math.pi * turns)) / (2.0 * math.log(base))
