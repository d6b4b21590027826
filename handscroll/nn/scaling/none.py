"""Rotary frequencies as trained."""

from typing import ClassVar

from torch import Tensor

from handscroll.nn.scaling.base import Scaling, plain_frequencies


class NoScaling(Scaling):
    """The frequencies of the checkpoint, unchanged; also used after a change of base (see `ntk.py`)."""

    name: ClassVar[str] = "none"
    factor: ClassVar[float] = 1.0
    original: ClassVar[int | None] = None

    def inverse_frequencies(self, head_size: int, base: float, length: int | None) -> Tensor:
        """Float64 (head_size / 2,); see `plain_frequencies` for the errors."""
        return plain_frequencies(head_size, base)
