"""Policy `h2o`: keeps the tokens that got most attention so far (heavy hitters) and the most recent ones.

The score of token s is the sum, over all queries t and heads h so far, of softmax(q_t k_s / sqrt(E)). Half the budget
goes to the highest scores, half to the last tokens. Source: Zhang et al. 2023, "H2O: heavy-hitter oracle",
arXiv:2306.14048, algorithm 1. Differences: each layer has one set of tokens instead of one per head; prompts are read
in chunks, and tokens are evicted after each chunk instead of each token.
Limits: early tokens had more queries to collect mass from, so the sum favours them; every forward needs a second pass
over the keys (`nn/observe.py`).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from handscroll.cache.evicting import PROTECTED, EvictingCache
from handscroll.nn.marks import Marks


@dataclass(eq=False)
class H2OCache(EvictingCache):
    """Heavy hitters and recent tokens, half and half."""

    policy: ClassVar[str] = "h2o"
    scored: ClassVar[bool] = True
    minimum: ClassVar[int] = 2

    def counted(self, marks: Marks, device: torch.device) -> Tensor:
        return (marks.tensors(device)[0] >= 0).float()

    def remembered(self, old: Tensor, new: Tensor) -> Tensor:
        return old + new

    def scores(self, index: Tensor, mass: Tensor) -> Tensor:
        assert self.budget is not None
        recent = index > index.amax(dim=1, keepdim=True) - self.budget // 2
        return torch.where(recent, PROTECTED + index.double(), mass.double())
