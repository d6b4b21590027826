"""What the decoder of an encoder-decoder reads of its source."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from handscroll.nn.marks import Marks
from handscroll.nn.span import Span


@dataclass(frozen=True, eq=False)
class Memory:
    """The encoder's final states (B, S, D) with the marks of the source; padding is never read.

    `known`, where given, says the keys and values of a decoder layer, which were made before (decoding makes them once;
    a long training step chunk by chunk, and needs no `states` then). One row serves any number of rows of a decoder.
    """

    states: Float[Tensor, "B S D"] | None
    marks: Marks
    known: Callable[[int], list[Span]] | None = None
