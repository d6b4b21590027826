"""Learning-rate schedules: a factor in [0, 1] for each step, by which every base rate is multiplied."""

import math
from typing import Literal

from pydantic import Field

from handscroll.base.config import Config


class Schedule(Config):
    """Warm-up, then cosine decay, warmup-stable-decay, or constant.

    cosine (Loshchilov & Hutter 2016): from 1 towards `final` over the whole run. wsd (Hu et al. 2024, "MiniCPM"):
    1 until the last `decay` share of the steps, then linearly towards `final`. An update gets the factor of its
    beginning, so the last one is a step above `final`, which would be reached after it.
    """

    name: Literal["cosine", "wsd", "constant"] = "cosine"
    warmup: int = Field(default=0, ge=0, description="steps of linear warm-up from 0")
    decay: float = Field(default=0.2, gt=0, le=1, description="wsd: share of the steps that decay")
    final: float = Field(default=0.0, ge=0, le=1, description="factor that would follow the last step")

    def factor(self, step: int, steps: int) -> float:
        """The factor for the update number `step` (from 0) of `steps`."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.name == "constant":
            return 1.0
        if self.name == "cosine":
            done = (step - self.warmup) / max(1, steps - self.warmup)
            return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        start = steps - max(1, round(self.decay * steps))
        if step < start:
            return 1.0
        return self.final + (1 - self.final) * (steps - step) / (steps - start)
