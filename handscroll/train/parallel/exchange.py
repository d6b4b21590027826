"""Attention over keys that lie on several ranks: the queries travel, keys and values stay.

Each rank holds a part of every chunk. The queries of a chunk are gathered on all ranks of the context group, each rank
attends with them to the keys it holds, and the partial results are joined by their log-sum-exp on the rank that owns
the query (Yang et al. 2024, "Context Parallelism for Scalable Million-Token Inference", call it pass-Q). What travels
is proportional to the chunk, however long the past; keys, values and their gradients are divided by the ranks.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from handscroll.nn.marks import Marks


@dataclass(frozen=True, eq=False)
class Exchange:
    """The exchange of one chunk. `marks` are those of all its tokens; rank p holds `sizes[p]` of them, in order."""

    marks: Marks
    sizes: tuple[int, ...]
    place: int
    group: Any

    def gather(self, x: Tensor) -> Tensor:
        """(B, H, t, X) of every rank, side by side: (B, H, T, X)."""
        longest = max(self.sizes)
        padded = torch.cat([x, x.new_zeros(*x.shape[:2], longest - x.shape[2], x.shape[3])], dim=2).contiguous()
        parts = [torch.empty_like(padded) for _ in self.sizes]
        dist.all_gather(parts, padded, group=self.group)
        return torch.cat([part[:, :, :size] for part, size in zip(parts, self.sizes, strict=True)], dim=2)

    def sum(self, x: Tensor) -> Tensor:
        """Sum over ranks of (B, H, T, X), of which each rank gets its own tokens: (B, H, t, X)."""
        by_token = x.movedim(2, 0).contiguous()
        shape = by_token.shape[1:]
        mine = self.sizes[self.place]
        received = by_token.new_empty((mine * len(self.sizes), *shape))
        dist.all_to_all_single(received, by_token, [mine] * len(self.sizes), list(self.sizes), group=self.group)
        return received.view(len(self.sizes), mine, *shape).sum(dim=0).movedim(0, 2)

    def join(self, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
        """This rank's tokens of the attention over all ranks' keys, from every rank's partial one."""
        parts = [torch.empty_like(lse) for _ in self.sizes]
        dist.all_gather(parts, lse.contiguous(), group=self.group)
        total = torch.logsumexp(torch.stack(parts), dim=0)
        share = torch.exp(lse - total.clamp_min(-1e30)).unsqueeze(-1)
        first = sum(self.sizes[: self.place])
        return self.sum(out.to(lse.dtype) * share).to(out.dtype), total[:, :, first : first + self.sizes[self.place]]
