"""Policy `window`: keeps only the most recent tokens; it is the baseline for the other policies.

Source: sliding-window attention (Beltagy et al. 2020, arXiv:2004.05150, section 3.1), here for a model that was trained
without it. A token stays while fewer than `budget` tokens came after it, in all layers alike.
Limits: most models fail once their first tokens are evicted (Xiao et al. 2023, arXiv:2309.17453): see `sinks`.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from handscroll.cache.evicting import EvictingCache


@dataclass(eq=False)
class WindowCache(EvictingCache):
    """The last `budget` tokens. Read token by token it is attention under `Causal() & Window(budget + 1)`."""

    policy: ClassVar[str] = "window"
    by_layer: ClassVar[bool] = False

    def scores(self, index: Tensor, mass: Tensor) -> Tensor:
        return index.double()
