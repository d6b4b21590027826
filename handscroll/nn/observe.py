"""Attention mass: how much weight each key got, computed tile by tile from the log-sum-exp without a T x S tensor.

The weights of a tile of queries over a block of keys are exp(scores - log-sum-exp), exactly the weights that attention
used (Dao et al. 2022, "FlashAttention", appendix B). They are computed only for spans with a `Span.observer` and for
queries that count, and need a second product of queries and keys. They have no gradient.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from handscroll.base.portions import QUERIES
from handscroll.kernels.runs import accumulator, capped
from handscroll.nn.bias import Bias
from handscroll.nn.marks import Marks
from handscroll.nn.mask import Causal, Mask
from handscroll.nn.pieces import pieces
from handscroll.nn.span import Observer, Span

KEYS = 2048  # keys of a tile: 512 x 2,048 float32 scores are 4 MiB a query head


@torch.no_grad()
def observe(  # noqa: PLR0913 - the arguments of one attention
    q: Float[Tensor, "B H T E"],
    spans: Sequence[Span],
    mask: Mask,
    marks: Marks,
    scale: float,
    lse: Float[Tensor, "B H T"],
    bias: Bias | None = None,
    cap: float | None = None,
) -> None:
    """Give every observer of `spans` the mass on its keys; `lse` is that of the queries over all spans together."""
    for span in spans:
        if span.observer is None:
            continue
        counting = span.observer.queries.any(dim=0).nonzero().flatten().tolist()
        if not counting:
            continue
        for first in range(counting[0], counting[-1] + 1, QUERIES):
            last = min(first + QUERIES, counting[-1] + 1)
            here, rows = marks.part(first, last), slice(first, last)
            _tile(q[:, :, rows], (span, span.observer, rows), mask, here, (scale, lse[:, :, rows], bias, cap))


def _tile(
    q: Tensor,
    watched: tuple[Span, Observer, slice],
    mask: Mask,
    marks: Marks,
    softmax: tuple[float, Tensor, Bias | None, float | None],
) -> None:
    (span, observer, rows), (scale, lse, bias, cap) = watched, softmax
    batch, heads, count, size = q.shape
    kv = span.keys.shape[1]
    folded = q.reshape(batch, kv, heads // kv * count, size)
    counts = observer.queries[:, rows].to(lse.dtype).expand(batch, -1)
    for piece in pieces(mask, marks, span.marks):
        left = Causal() if piece.square else piece.mask
        for first in range(piece.first, piece.last, KEYS):
            last = min(first + KEYS, piece.last)
            keys, _ = span.read(first, last, q.dtype)
            scores = capped((folded @ keys.to(q.dtype).transpose(-1, -2)).to(accumulator(q)) * scale, cap)
            scores, part = scores.view(batch, kv, -1, count, last - first), span.marks.part(first, last)
            if bias is not None:
                scores = scores + bias.values(marks, part, q.device).unflatten(1, (kv, -1))
            weights = torch.exp(scores - lse.view(batch, kv, -1, count, 1))
            if left is not None:
                allowed = left.allowed(marks, part, q.device)
                weights = weights.masked_fill(~allowed[:, None, None], 0.0)  # needed too if a query sees no key
            observer.take(first, torch.einsum("bkgts,bt->bks", weights, counts))
