"""The source that the decoder of an encoder-decoder reads."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from handscroll.nn.marks import Marks
from handscroll.nn.span import Span


@dataclass(frozen=True, eq=False)
class Memory:
    """The encoder's final states (B, S, D) with the marks of the source; padding is never read.

    `known`, if given, returns the keys and values of a decoder layer that were computed before. Decoding computes them
    once; a long training step computes them chunk by chunk and then needs no `states`. One row of a source serves any
    number of decoder rows.
    """

    states: Float[Tensor, "B S D"] | None
    marks: Marks
    known: Callable[[int], list[Span]] | None = None
