"""Policy `sinks`: keeps the first four tokens and the most recent ones (StreamingLLM).

Softmax weights have to sum to one; trained models put the weight that they do not need on the first tokens, and fail
without them. Source: Xiao et al. 2023, "Efficient streaming language models with attention sinks", arXiv:2309.17453;
four sinks as in section 4.1.
Difference from the paper: keys keep their original positions, while the paper counts positions within the cache (for
streams past the trained length). Limits: all tokens between sinks and window are forgotten, important or not.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from handscroll.cache.evicting import PROTECTED, EvictingCache

SINKS = 4


@dataclass(eq=False)
class SinksCache(EvictingCache):
    """Sinks and window. Read token by token it is `Causal() & (Window(budget - 3) | Sinks(4))`."""

    policy: ClassVar[str] = "sinks"
    by_layer: ClassVar[bool] = False
    minimum: ClassVar[int] = SINKS + 1

    def scores(self, index: Tensor, mass: Tensor) -> Tensor:
        return index.double() + PROTECTED * (index < SINKS)
