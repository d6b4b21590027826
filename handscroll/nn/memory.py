"""What the decoder of an encoder-decoder reads of its source."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from handscroll.nn.cache import Span
from handscroll.nn.marks import Marks


@dataclass(frozen=True, eq=False)
class Memory:
    """The encoder's final states (B, S, D) with the marks of the source; padding is never read.

    `spans`, where made, are the keys and values of every decoder layer, so that decoding makes them once. One row
    serves any number of rows of a decoder.
    """

    states: Float[Tensor, "B S D"]
    marks: Marks
    spans: tuple[Span, ...] = ()
