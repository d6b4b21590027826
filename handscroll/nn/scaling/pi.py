"""Linear position interpolation."""

from typing import ClassVar

from torch import Tensor

from handscroll.nn.scaling.base import Factor, Scaling, plain_frequencies


class PositionInterpolation(Scaling):
    """Every frequency divided by the factor: f_i' = f_i / s, the same as dividing the positions by s.

    Source: Chen et al. 2023, "Extending Context Window of Large Language Models via Positional Interpolation",
    arXiv:2306.15595, equation 4. It is called `linear` in foreign configurations.
    Limits: neighbouring tokens move closer in the high frequencies too, so the model should be tuned at the new length.
    """

    name: ClassVar[str] = "pi"
    factor: Factor
    original: ClassVar[int | None] = None

    def inverse_frequencies(self, head_size: int, base: float, length: int | None) -> Tensor:
        """Float64 (head_size / 2,); see `plain_frequencies` for the errors."""
        return plain_frequencies(head_size, base) / self.factor
