"""Pairs of learned positions (GLM 2022): a place in the text, and a place in the blank that is filled there."""

from typing import Literal

from handscroll.base.spec import LayerSpec, Positions


class Pairs(Positions):
    """Tables of `context` places of a text with its blanks, and of `inside` places in one blank (`nn/blanks.py`)."""

    words = "pairs of learned positions"
    unlengthened = (
        "has two learned tables of positions and does not predict plain text, so a longer table cannot be measured; "
        "train a new model with a larger context"
    )
    way: Literal["pairs"] = "pairs"
    context: int
    trained: int
    inside: int

    @property
    def limit(self) -> int:
        return self.context

    @property
    def rows(self) -> int:
        return self.context + self.inside

    def describe(self, layer: LayerSpec) -> str:
        return f"learned tables of {self.context:,} places and {self.inside:,} inside a blank"
