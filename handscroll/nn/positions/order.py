"""No positions: a token's place follows from the order in which tokens are read (LSTM)."""

from typing import Literal

from handscroll.base.spec import LayerSpec, Positions

ENDLESS = 1 << 40  # tokens; stands for a context without a limit


class Order(Positions):
    """The order alone, which does not limit the context; `trained` is the length of the training rows."""

    words = "no positions"
    unlengthened = (
        "has no positions, so its context has no limit and cannot be lengthened; train it on longer rows (its "
        "state is carried exactly through rows of any length)"
    )
    way: Literal["order"] = "order"
    context: int = ENDLESS
    trained: int

    def describe(self, layer: LayerSpec) -> str:
        return "none: read in order"
