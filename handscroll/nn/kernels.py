"""`attend`: the one attention signature, its implementations and the function that chooses among them.

No implementation builds a T x S mask for a whole sequence: what a mask leaves undecided is cut into tiles
(`nn/pieces.py`). Pieces are merged by log-sum-exp, which is exact (Milakov & Gimelshein 2018, "Online normalizer
calculation for softmax"; Dao et al. 2022). The gradient is formed piece by piece from the global log-sum-exp, so it
needs no more memory than the forward, and a span may take its gradient itself (`Span.accumulate`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from handscroll.nn import fused
from handscroll.nn.cache import Span
from handscroll.nn.fused import NOTHING, accumulator, merge
from handscroll.nn.marks import Marks
from handscroll.nn.mask import Causal, Mask
from handscroll.nn.native import calls
from handscroll.nn.observe import observe
from handscroll.nn.pieces import Piece, pieces, query_tiles

# Up to this many query tokens a pass over the folded groups beats torch's fused kernel on a CPU (with grouped queries
# torch 2.13 reads 1.1 GB of cache a second, two matrix products 10-13; the compiled kernel: docs/benchmarks.md).
FOLD = 16
JOINED = 4  # pieces of attention that are joined at a time


@runtime_checkable
class Exchange(Protocol):
    """Attention over keys that lie on several ranks (`train/parallel/exchange.py`).

    `marks` are those of all ranks' queries together.
    """

    marks: Marks

    def gather(self, x: Tensor) -> Tensor:
        """(B, H, t, X) of every rank side by side."""
        ...

    def sum(self, x: Tensor) -> Tensor:
        """Sum over ranks of (B, H, T, X); each rank gets its own tokens."""
        ...

    def join(self, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
        """Partial attention of all queries on every rank -> whole attention of this rank's."""
        ...


@dataclass(frozen=True)
class Choice:
    """Which implementation runs, and why."""

    kernel: str
    reason: str


def choose(q: Tensor, spans: Sequence[Span], mask: Mask, marks: Marks) -> Choice:
    """Decide the implementation from shapes, marks and gradients: `fold` or `tiles`."""
    if q.shape[2] <= FOLD and not _tracked(q, spans):
        return Choice("fold", f"{q.shape[2]} query tokens, no gradient: two products over folded groups")
    tiles = query_tiles(mask, marks, [span.marks for span in spans])
    if len(tiles) == 1:
        return Choice("tiles", "the mask is decided block by block: unmasked past + causal square, no mask tensor")
    return Choice("tiles", f"the mask is undecided in places: {len(tiles)} query tiles with small mask tensors")


def attend(
    q: Float[Tensor, "B H T E"],
    spans: Sequence[Span],
    mask: Mask,
    marks: Marks,
    scale: float | None = None,
    kernel: str | None = None,
    exchange: Exchange | None = None,
) -> tuple[Float[Tensor, "B H T E"], Float[Tensor, "B H T"]]:
    """Softmax attention of queries with `marks` over all keys of `spans`; grouped kv heads are shared.

    Args:
        scale: multiplies q.k; 1/sqrt(E) unless given. A scaling's squared attention factor belongs here.
        kernel: force one of `KERNELS` (tests, benchmarks); chosen by `choose` otherwise.
        exchange: where the tokens of a row lie on several ranks: q and spans are this rank's.

    Returns:
        out and the natural log-sum-exp of the scaled scores (not differentiable). A query that may see no
        key (padding) gives zeros and -inf. Spans with an `observer` are told the mass on their keys.
    """
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    if exchange is not None:
        assert all(span.observer is None for span in spans), "keys of several ranks are not observed"
        return tiles(q, spans, mask, marks, scale, exchange)
    if kernel is None:
        kernel = "fold" if q.shape[2] <= FOLD and not _tracked(q, spans) else "tiles"
    out, lse = KERNELS[kernel](q, spans, mask, marks, scale)
    if any(span.observer is not None for span in spans):
        observe(q, spans, mask, marks, scale, lse)
    return out, lse


def eager(q: Tensor, spans: Sequence[Span], mask: Mask, marks: Marks, scale: float) -> tuple[Tensor, Tensor]:
    """The oracle: dense scores in float64, all spans side by side. Memory is T x S; for tests only."""
    groups = q.shape[1] // spans[0].keys.shape[1]
    read = [s.read(0, s.marks.length, torch.float64) for s in spans]
    keys, values = (
        torch.cat(parts, dim=2).double().repeat_interleave(groups, dim=1) for parts in zip(*read, strict=True)
    )
    allowed = torch.cat(
        [mask.allowed(marks, s.marks, q.device).expand(q.shape[0], -1, -1) for s in spans], dim=2
    ).unsqueeze(1)
    scores = (q.double() @ keys.transpose(-1, -2) * scale).masked_fill(~allowed, -math.inf)
    lse = torch.logsumexp(scores, dim=-1)
    weights = torch.exp(scores - lse.unsqueeze(-1).clamp_min(-1e300))
    return (weights @ values).to(q.dtype), lse.detach().to(accumulator(q))


def fold(q: Tensor, spans: Sequence[Span], mask: Mask, marks: Marks, scale: float) -> tuple[Tensor, Tensor]:
    """Few queries over long spans: the query heads of a kv head are the rows of one pass over its keys."""
    batch, heads, count, size = q.shape
    kv = spans[0].keys.shape[1]
    folded = q.reshape(batch, kv, heads // kv * count, size)
    found = []
    for span in spans:
        for piece in pieces(mask, marks, span.marks):
            if piece.mask is None and not piece.square and calls.can_decode(folded, span):
                out, lse = calls.decode(folded.to(torch.float32) * scale, span, piece.first, piece.last)
            else:
                keys, values = span.read(piece.first, piece.last, q.dtype)
                left = Causal() if piece.square else piece.mask
                allowed = None
                if left is not None:
                    seen = left.allowed(marks, span.marks.part(piece.first, piece.last), q.device)
                    allowed = seen[:, None].repeat(1, 1, heads // kv, 1)
                out, lse = fused.rows(folded * scale, keys, values, allowed)
            found.append((out.reshape(batch, heads, count, size), lse.reshape(batch, heads, count)))
        span.release()
    out, lse = merge(found) if found else _unseen(q)
    return out.to(q.dtype), lse


def tiles(
    q: Tensor,
    spans: Sequence[Span],
    mask: Mask,
    marks: Marks,
    scale: float,
    exchange: Exchange | None = None,
) -> tuple[Tensor, Tensor]:
    """Any mask, any spans, with gradient: query tiles over the pieces of each span that they can see."""
    call = _Call(tuple(spans), mask, marks, scale, exchange)
    if not _tracked(q, spans):
        return _whole_forward(q, call)
    tensors = [tensor for span in spans if span.accumulate is None for tensor in (span.keys, span.values)]
    return _Attention.apply(q, call, *tensors)


KERNELS = {"eager": eager, "fold": fold, "tiles": tiles}


@dataclass(frozen=True, eq=False)
class _Call:
    """What of one `attend` is no tensor that autograd tracks."""

    spans: tuple[Span, ...]
    mask: Mask
    marks: Marks
    scale: float
    exchange: Exchange | None


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, call: _Call, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = _whole_forward(q, call)
        ctx.save_for_backward(q, out, lse, *tensors)
        # The spans that autograd tracks come back from the saved tensors; holding them here too would be a cycle.
        ctx.call = replace(call, spans=tuple(_bare(span) for span in call.spans))
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        q, out, lse, *tensors = ctx.saved_tensors
        left = iter(tensors)
        spans = [
            span if span.accumulate is not None else replace(span, keys=next(left), values=next(left))
            for span in ctx.call.spans
        ]
        grad_q, grads = _whole_backward(slopes[0], q, spans, ctx.call, (out, lse))
        return (grad_q, None, *grads)


def _bare(span: Span) -> Span:
    nothing = torch.empty(0)
    return span if span.accumulate is not None else replace(span, keys=nothing, values=nothing)


def _whole_forward(q: Tensor, call: _Call) -> tuple[Tensor, Tensor]:
    """Attention of this rank's queries, whoever holds the keys."""
    exchange = call.exchange
    if exchange is None:
        return _forward(q, call.spans, call.mask, call.marks, call.scale)
    return exchange.join(*_forward(exchange.gather(q), call.spans, call.mask, exchange.marks, call.scale))


def _whole_backward(
    slope: Tensor, q: Tensor, spans: Sequence[Span], call: _Call, result: tuple[Tensor, Tensor]
) -> tuple[Tensor, list[Tensor]]:
    exchange = call.exchange
    if exchange is None:
        return _backward(slope, q, spans, call, result)
    out, lse = result
    every = exchange.gather(torch.cat([slope, q, out], dim=-1)).split(q.shape[-1], dim=-1)
    slopes, queries, outs = (part.contiguous() for part in every)
    lses = exchange.gather(lse.unsqueeze(-1)).squeeze(-1)
    grad_q, grads = _backward(slopes, queries, spans, replace(call, marks=exchange.marks), (outs, lses))
    return exchange.sum(grad_q), grads


def _forward(q: Tensor, spans: Sequence[Span], mask: Mask, marks: Marks, scale: float) -> tuple[Tensor, Tensor]:
    outs, lses = [], []
    for first, last in query_tiles(mask, marks, [span.marks for span in spans]):
        here, part = marks.part(first, last), q[:, :, first:last]
        found = []
        for span in spans:
            for piece in pieces(mask, here, span.marks):
                keys, values = span.read(piece.first, piece.last, q.dtype)
                allowed = _allowed(piece, here, span.marks, q.device)
                found.append(fused.forward(part, keys, values, allowed, scale, piece.square))
                if len(found) == JOINED:  # a past of many blocks must not hold an output for each
                    found = [merge(found)]
            span.release()
        out, lse = merge(found) if found else _unseen(part)
        outs.append(out)
        lses.append(lse)
    return (outs[0], lses[0]) if len(outs) == 1 else (torch.cat(outs, dim=2), torch.cat(lses, dim=2))


def _backward(
    slope: Tensor, q: Tensor, spans: Sequence[Span], call: _Call, result: tuple[Tensor, Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """The gradient of the queries, and of the keys and values of every span that does not take its own."""
    out, lse = result
    lse = lse.masked_fill(lse == -math.inf, NOTHING)
    wide = accumulator(q)
    grad_q = torch.zeros(q.shape, dtype=wide, device=q.device)
    own = {
        number: tuple(torch.zeros(span.keys.shape, dtype=wide, device=q.device) for _ in range(2))
        for number, span in enumerate(spans)
        if span.accumulate is None
    }
    for first, last in query_tiles(call.mask, call.marks, [span.marks for span in spans]):
        here, rows = call.marks.part(first, last), slice(first, last)
        for number, span in enumerate(spans):
            for piece in pieces(call.mask, here, span.marks):
                keys, values = span.read(piece.first, piece.last, q.dtype)
                allowed = _allowed(piece, here, span.marks, q.device)
                change, change_keys, change_values = fused.backward(
                    slope[:, :, rows],
                    (q[:, :, rows], keys, values),
                    out[:, :, rows],
                    lse[:, :, rows],
                    allowed,
                    call.scale,
                    piece.square,
                )
                grad_q[:, :, rows] += change
                if span.accumulate is not None:
                    span.accumulate(piece.first, change_keys, change_values)
                else:
                    for total, part in zip(own[number], (change_keys, change_values), strict=True):
                        total[:, :, piece.first : piece.last] += part
            span.release()
    return grad_q.to(q.dtype), [total.to(q.dtype) for pair in own.values() for total in pair]


def _allowed(piece: Piece, query: Marks, key: Marks, device: torch.device) -> Tensor | None:
    if piece.mask is None:
        return None
    return piece.mask.allowed(query, key.part(piece.first, piece.last), device)


def _unseen(q: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(q), torch.full(q.shape[:3], -math.inf, dtype=accumulator(q), device=q.device)


def _tracked(q: Tensor, spans: Sequence[Span]) -> bool:
    own = [span for span in spans if span.accumulate is None]
    needed = q.requires_grad or any(span.keys.requires_grad or span.values.requires_grad for span in own)
    return torch.is_grad_enabled() and needed
