"""Attention over keys that are spread over several ranks: queries are sent, keys and values stay in place.

Each rank holds a part of every chunk. The queries of a chunk are gathered on all ranks of the context group. Each rank
attends with them to its own keys. The partial results are joined by their log-sum-exp on the rank that owns the query.
This is the pass-Q of Yang et al. 2024, "Context Parallelism for Scalable Million-Token Inference". The amount of data
sent is proportional to the chunk, for a past of any length. Keys, values and their gradients are divided among the
ranks.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from handscroll.nn.marks import Marks


@dataclass(frozen=True, eq=False)
class Exchange:
    """The exchange of one chunk. `marks` covers all its tokens; rank p holds `sizes[p]` of them, in order."""

    marks: Marks
    sizes: tuple[int, ...]
    place: int
    group: Any

    def gather(self, x: Tensor) -> Tensor:
        """Concatenate the (B, H, t, X) of all ranks to (B, H, T, X)."""
        longest = max(self.sizes)
        padded = torch.cat([x, x.new_zeros(*x.shape[:2], longest - x.shape[2], x.shape[3])], dim=2).contiguous()
        parts = [torch.empty_like(padded) for _ in self.sizes]
        dist.all_gather(parts, padded, group=self.group)
        return torch.cat([part[:, :, :size] for part, size in zip(parts, self.sizes, strict=True)], dim=2)

    def sum(self, x: Tensor) -> Tensor:
        """Sum (B, H, T, X) over all ranks. Each rank gets the sum for its own tokens: (B, H, t, X)."""
        by_token = x.movedim(2, 0).contiguous()
        shape = by_token.shape[1:]
        mine = self.sizes[self.place]
        received = by_token.new_empty((mine * len(self.sizes), *shape))
        dist.all_to_all_single(received, by_token, [mine] * len(self.sizes), list(self.sizes), group=self.group)
        return received.view(len(self.sizes), mine, *shape).sum(dim=0).movedim(0, 2)

    def join(self, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
        """Join the partial results of all ranks to the attention of this rank's tokens over all keys."""
        parts = [torch.empty_like(lse) for _ in self.sizes]
        dist.all_gather(parts, lse.contiguous(), group=self.group)
        total = torch.logsumexp(torch.stack(parts), dim=0)
        share = torch.exp(lse - total.clamp_min(-1e30)).unsqueeze(-1)
        first = sum(self.sizes[: self.place])
        return self.sum(out.to(lse.dtype) * share).to(out.dtype), total[:, :, first : first + self.sizes[self.place]]
