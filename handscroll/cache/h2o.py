"""Policy `h2o`: the tokens that got most attention so far (heavy hitters), and the most recent ones.

Score of token s: the sum over all queries t and heads h so far of softmax(q_t k_s / sqrt(E)); half the budget goes to
the highest scores, half to the last tokens. Source: Zhang et al. 2023, "H2O: heavy-hitter oracle", arXiv:2306.14048,
algorithm 1. Differences: one set of tokens a layer instead of one a head; prompts are read in chunks, and eviction
comes after each, not after each token.
Limits: early tokens had more queries to collect from, so the sum favours them; a second pass over the keys of every
forward (`nn/observe.py`).
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
