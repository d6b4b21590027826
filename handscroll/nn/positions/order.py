"""No positions: the order in which tokens are read tells their places (LSTM)."""

from typing import Literal

from handscroll.base.spec import LayerSpec, Positions

ENDLESS = 1 << 40  # tokens: no position ends the context


class Order(Positions):
    """Nothing ends the context; `trained` is the length of the rows that the model learned from."""

    words = "no positions"
    unlengthened = (
        "has no positions: nothing ends its context, and there is nothing to lengthen; train it on longer rows (its "
        "state is carried exactly through rows of any length)"
    )
    way: Literal["order"] = "order"
    context: int = ENDLESS
    trained: int

    def describe(self, layer: LayerSpec) -> str:
        return "none: read in order"
