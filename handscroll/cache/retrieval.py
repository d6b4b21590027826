"""Policy `retrieval`: offloads like `offload`, but a new token reads only blocks whose keys may match its query.

Approximate. For every block and kv head, memory holds a summary: the mean, smallest and largest number of each key
channel. The mean gives the mean score of a block; smallest and largest bound the score of any key in it (Quest, Tang et
al. 2024, arXiv:2406.10774). Blocks are chosen by the number half way between the two (docs/log.md); the first block is
always read. Attention over the chosen blocks and the newest tokens is exact.
The loss is measured: recall is the share of the exact attention's mass on the tokens that were attended.

Prompts are read exactly: forwards of more than one token attend to all blocks.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from handscroll.base.workload import Footprint
from handscroll.cache.offload import Fetched, OffloadCache
from handscroll.nn.attend import attend
from handscroll.nn.marks import Marks
from handscroll.nn.mask import Mask
from handscroll.nn.pieces import decided
from handscroll.nn.span import Span


class Recall(NamedTuple):
    """The share of the exact attention's mass that was attended: the mean, and the mean of the worst layer."""

    mean: float
    worst: float
    tokens: int  # number of measured tokens


class _Seen(NamedTuple):
    """The blocks that a query sees under a mask: those it sees wholly, and those it sees in part."""

    whole: list[int]
    partly: list[int]
    marks: Marks | None  # of the chosen blocks


@dataclass(eq=False)
class RetrievalCache(OffloadCache):
    """An offloaded cache of which every new token reads `blocks` blocks of `block` tokens for each kv head.

    The recall is measured at every `measure`-th token, which reads all blocks once; 0: never.
    """

    policy: ClassVar[str] = "retrieval"
    exact: ClassVar[bool] = False
    selects: ClassVar[bool] = True
    options: ClassVar[tuple[str, ...]] = ("blocks", "block", "recent", "measure", "place", "folder")
    least_options: ClassVar[dict[str, int]] = OffloadCache.least_options | {"blocks": 1, "measure": 0}

    block: int = 32
    blocks: int = 64
    measure: int = 64
    _summaries: dict[int, Tensor] = field(
        init=False, default_factory=dict
    )  # (B, K, 3, blocks, E): mean, least, largest
    _seen: dict[Mask, _Seen] = field(init=False, default_factory=dict)
    _recall: dict[int, float] = field(init=False, default_factory=dict)  # sums by layer
    _measured: int = field(init=False, default=0)
    _tokens: int = field(init=False, default=0)  # of forwards of one token

    def _nbytes(self) -> int:
        return super()._nbytes() + sum(t.nbytes for t in self._summaries.values())

    def _footprint(self, kv_heads: int, head_size: int, itemsize: int) -> Footprint:
        made = super()._footprint(kv_heads, head_size, itemsize)
        return made.model_copy(update={"each": made.each + 1.5 * made.reading / self.block})  # three vectors a block

    @property
    def recall(self) -> Recall | None:
        """The recall measured so far; None before the first measurement."""
        if not self._measured:
            return None
        shares = [total / self._measured for total in self._recall.values()]
        return Recall(sum(shares) / len(shares), min(shares), self._measured)

    @property
    def reads(self) -> int:
        """The most tokens that a new token now reads for a kv head."""
        return min(self.length, self.blocks * self.block + self.length - self._stored)

    def report(self) -> str:
        held = f"of {self.length:,} tokens a new one read at most {self.reads:,} a head"
        if self.recall is None:
            return f"{held}; recall was not measured"
        mean, worst, tokens = self.recall
        return f"{held}; recall of the attention mass {mean:.1%}, worst layer {worst:.1%} ({tokens} tokens measured)"

    def select(self, layer: int, q: Tensor, spans: list[Span], mask: Mask, marks: Marks, scale: float) -> list[Span]:
        """The spans, out of those that `append` returned, that the queries (B, H, T, E) read."""
        if layer not in self.full or q.shape[2] > 1 or self._stored <= self.blocks * self.block:
            return spans
        seen = self._visible(mask, marks)
        if len(seen.whole) <= self.blocks:
            return spans
        assert self._pages is not None and seen.marks is not None
        fetch = partial(self._pages.pick, layer, self._choose(layer, q * scale, seen.whole))
        near = [self._run(layer, n * self.block, (n + 1) * self.block) for n in seen.partly]
        before = spans[: len(self.past[layer]) if self.past else 0]
        found = [*before, Fetched(self._pages, fetch, seen.marks), *near, spans[-1]]
        if self.measure and self._tokens % self.measure == 0:
            _, every = attend(q, spans, mask, marks, scale)
            _, some = attend(q, found, mask, marks, scale)
            self._recall[layer] = self._recall.get(layer, 0.0) + float(torch.exp(some - every).mean())
            self._measured += layer == self.full[-1]
        return found

    def _commit(self) -> None:
        assert self._pending is not None
        self._tokens += self._pending.length - self.marks.length == 1
        super()._commit()
        self._seen.clear()

    def append(self, layer: int, keys: Tensor, values: Tensor, marks: Marks) -> list[Span]:
        if layer == 0:
            self._seen.clear()
        return super().append(layer, keys, values, marks)

    def _put(self, layer: int, keys: Tensor, values: Tensor) -> None:
        super()._put(layer, keys, values)
        groups, held = keys.unflatten(2, (-1, self.block)), self._summaries.get(layer)
        new = torch.stack((groups.mean(dim=3), groups.amin(dim=3), groups.amax(dim=3)), dim=2)
        if held is not None:
            new = torch.cat((held[:, :, :, : self._stored // self.block], new), dim=3)
        self._summaries[layer] = new

    def _choose(self, layer: int, q: Tensor, whole: list[int]) -> Tensor:
        """Numbers (B, K, blocks) of the blocks that each kv head reads for scaled queries (B, H, 1, E), in order."""
        held = self._summaries[layer]
        summaries = held if len(whole) == held.shape[3] else held[:, :, :, whole]
        mean, lowest, largest = summaries.to(torch.float32).unbind(dim=2)
        folded = q.to(torch.float32).unflatten(1, (mean.shape[1], -1)).flatten(2, 3)  # query heads of a kv head
        bound = folded.clamp_min(0) @ largest.mT + folded.clamp_max(0) @ lowest.mT
        likely = ((folded @ mean.mT + bound) / 2).softmax(dim=-1).sum(dim=2)
        likely[:, :, 0] = torch.inf
        chosen = likely.topk(self.blocks, dim=-1).indices.sort(dim=-1).values
        return torch.tensor(whole, device=chosen.device)[chosen]

    def _visible(self, mask: Mask, marks: Marks) -> _Seen:
        """The blocks that the query sees; the same for all layers of a forward with the same mask."""
        if mask not in self._seen:
            key = self._part(0, self._stored)
            left = decided(mask, marks, key, tuple(range(0, self._stored + 1, self.block)))
            whole = [n for n, part in enumerate(left) if part is True]
            partly = [n for n, part in enumerate(left) if part not in (True, False)]
            picked = self._alike(key, whole[0] * self.block) if whole else None
            self._seen[mask] = _Seen(whole, partly, picked)
        return self._seen[mask]

    def _alike(self, key: Marks, token: int) -> Marks:
        """Marks of the chosen tokens: the query sees them all, so each may have the mark of one seen token."""
        index, segment, positions = key.part(token, token + 1).tensors(torch.device("cpu"))
        return Marks.of(*(x.expand(-1, self.blocks * self.block) for x in (index, segment, positions)))
