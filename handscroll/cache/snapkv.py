"""Policy `snapkv`: after the prompt, keeps the tokens to which its last queries attended, with their neighbours.

The score of token s is the attention weight from the last W = 32 queries of the prompt, summed over queries and heads
and then averaged over the 7 tokens around s, so that the neighbours of attended tokens stay too. The W tokens
themselves stay. Source: Li et al. 2024, "SnapKV: LLM knows what you are looking for before generation",
arXiv:2404.14469, section 4. Differences: each layer has one set of tokens instead of one per head. In the paper the
cache grows with the answer; here the budget is kept: each new token evicts the prompt token with the lowest score
(averaged over the neighbours still held), and the window and the answer are evicted last.
Limits: **the whole prompt is held until its end**, so decoding stays within the budget but reading does not. A question
after the prompt finds only the tokens to which the prompt's end attended.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d

from handscroll.base.workload import Footprint
from handscroll.cache.evicting import PROTECTED, EvictingCache
from handscroll.nn.marks import Marks
from handscroll.nn.span import Span

WINDOW = 32
NEIGHBOURS = 7


@dataclass(eq=False)
class SnapKVCache(EvictingCache):
    """The prompt compressed by its end. `expect` says where it ends; without it the first forward is the prompt."""

    policy: ClassVar[str] = "snapkv"
    scored: ClassVar[bool] = True
    minimum: ClassVar[int] = WINDOW + 1

    _until: int = field(init=False, default=0)  # tokens read up to the end of the prompt
    _ends: Tensor | None = field(init=False, default=None)  # (B or 1, 1): index of the last prompt token of each row

    def _footprint(self, kv_heads: int, head_size: int, itemsize: int) -> Footprint:
        return super()._footprint(kv_heads, head_size, itemsize).model_copy(update={"whole": True})

    def expect(self, marks: Marks) -> None:
        index = marks.tensors(torch.device("cpu"))[0]
        self._until, self._ends = self.length + marks.length, index.amax(dim=1, keepdim=True)
        self._mass = {}  # a further prompt is compressed by its own end
        self.capacity = self._until

    def append(self, layer: int, keys: Tensor, values: Tensor, marks: Marks) -> list[Span]:
        if self._ends is None:
            self.expect(marks)
        return super().append(layer, keys, values, marks)

    def limit(self, gone_by: int) -> int | None:
        return None if gone_by < self._until else self.budget

    def counted(self, marks: Marks, device: torch.device) -> Tensor:
        assert self._ends is not None
        index, ends = marks.tensors(device)[0], self._ends.to(device)
        return ((index > ends - WINDOW) & (index <= ends) & (index >= 0)).float()

    def remembered(self, old: Tensor, new: Tensor) -> Tensor:
        return old + new

    def scores(self, index: Tensor, mass: Tensor) -> Tensor:
        assert self._ends is not None
        order = index.argsort(dim=1)  # neighbours in the text, not in the buffer
        pooled = avg_pool1d(mass.gather(1, order)[:, None], NEIGHBOURS, 1, NEIGHBOURS // 2)[:, 0]
        last = index > self._ends.to(index.device) - WINDOW
        scores = torch.zeros_like(mass).scatter(1, order, pooled).double()
        return torch.where(last, PROTECTED + index.double(), scores)

    def _copy(self, other: Self, rows: Tensor | None) -> None:
        super()._copy(other, rows)
        other._until, other._ends = self._until, self._ends
        if rows is not None and self._ends is not None and len(self._ends) > 1:
            other._ends = self._ends[rows]
