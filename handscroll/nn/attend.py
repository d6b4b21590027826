"""`attend`: the one attention signature, its implementations and the function that chooses among them.

No implementation builds a T x S mask for a whole sequence: what a mask leaves undecided is cut into tiles
(`nn/pieces.py`). Pieces are merged by log-sum-exp, which is exact (Milakov & Gimelshein 2018, "Online normalizer
calculation for softmax"; Dao et al. 2022). The gradient is formed piece by piece from the global log-sum-exp, so it
needs no more memory than the forward, and a span may take its gradient itself (`Span.accumulate`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from handscroll.kernels import runs as fused
from handscroll.kernels.gpu import fused as gpu
from handscroll.kernels.gpu.slots import Slots
from handscroll.kernels.native import calls
from handscroll.kernels.runs import NOTHING, accumulator, merge
from handscroll.nn.bias import Bias
from handscroll.nn.marks import Marks
from handscroll.nn.mask import Causal, Mask
from handscroll.nn.observe import observe
from handscroll.nn.pages import Pages
from handscroll.nn.pieces import Piece, narrow, pieces, query_tiles
from handscroll.nn.span import Span

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


@dataclass(frozen=True, eq=False)
class Part:
    """Keys that are read with queries of their own: `queries` (B, H, T, E), the spans, and which keys of them."""

    queries: Tensor
    spans: Sequence[Span]
    mask: Mask


def choose(q: Tensor, spans: Sequence[Span], mask: Mask, marks: Marks, bias: Bias | None = None) -> Choice:
    """Decide the implementation from shapes, marks and gradients: `fold` or `tiles`."""
    if q.shape[2] <= FOLD and not _tracked(q, spans, bias):
        return Choice("fold", f"{q.shape[2]} query tokens, no gradient: two products over folded groups")
    if bias is not None:
        return Choice("tiles", "a bias is added to the scores: query tiles with a small tensor for every head")
    tiles = query_tiles(mask, marks, [span.marks for span in spans])
    if len(tiles) == 1:
        return Choice("tiles", "the mask is decided block by block: unmasked past + causal square, no mask tensor")
    return Choice("tiles", f"the mask is undecided in places: {len(tiles)} query tiles with small mask tensors")


def attend(  # noqa: PLR0913 - one signature for every kind of attention
    q: Float[Tensor, "B H T E"],
    spans: Sequence[Span] | Pages | Slots,
    mask: Mask,
    marks: Marks,
    scale: float | None = None,
    kernel: str | None = None,
    exchange: Exchange | None = None,
    bias: Bias | None = None,
    cap: float | None = None,
) -> tuple[Float[Tensor, "B H T E"], Float[Tensor, "B H T"]]:
    """Softmax attention of queries with `marks` over all keys of `spans`; grouped kv heads are shared.

    Args:
        spans: or the pages of a pool (`nn/pages.py`) or the buffers of a GPU's cache (`kernels/gpu/slots.py`), for one
            new token of every row.
        scale: multiplies q.k; 1/sqrt(E) unless given. A scaling's squared attention factor belongs here.
        kernel: force one of `KERNELS` (tests, benchmarks); chosen by `choose` otherwise.
        exchange: where the tokens of a row lie on several ranks: q and spans are this rank's.
        bias: added to the scaled scores (ALiBi, T5's); a learned one gets its gradient.
        cap: the scaled scores s become cap * tanh(s / cap), before bias and mask (Gemma Team 2024, arXiv:2408.00118).

    Returns:
        out and the natural log-sum-exp of the scaled scores (not differentiable). A query that may see no
        key (padding) gives zeros and -inf. Spans with an `observer` are told the mass on their keys.
    """
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    if isinstance(spans, Pages):
        return paged(q, spans, mask, scale, cap)
    if isinstance(spans, Slots):
        assert cap is None, "this kernel caps no scores"
        return spans.attend(q, scale)
    if exchange is not None:
        assert all(span.observer is None for span in spans), "keys of several ranks are not observed"
        return tiles(q, spans, mask, marks, scale, bias, cap, exchange)
    if kernel is None:
        kernel = "fold" if q.shape[2] <= FOLD and not _tracked(q, spans, bias) else "tiles"
    out, lse = KERNELS[kernel](q, spans, mask, marks, scale, bias, cap)
    if any(span.observer is not None for span in spans):
        observe(q, spans, mask, marks, scale, lse, bias, cap)
    return out, lse


def attend_parts(
    parts: Sequence[Part], marks: Marks, scale: float, exchange: Exchange | None = None, cap: float | None = None
) -> Float[Tensor, "B H T E"]:
    """Attention of queries with `marks` over disjoint sets of keys, each of which they meet with another rotation.

    The result is the softmax over all sets together; its gradient is formed set by set from the common log-sum-exp.
    """
    if not any(_tracked(part.queries, part.spans) for part in parts):
        return merge([attend(p.queries, p.spans, p.mask, marks, scale, exchange=exchange, cap=cap) for p in parts])[0]
    calls = tuple(_Call(tuple(part.spans), part.mask, marks, scale, None, cap, exchange) for part in parts)
    tensors = [tensor for part in parts for tensor in (part.queries, *_own(part.spans))]
    return _Attention.apply(calls, *tensors)[0]


def eager(
    q: Tensor,
    spans: Sequence[Span],
    mask: Mask,
    marks: Marks,
    scale: float,
    bias: Bias | None = None,
    cap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The oracle: dense scores in float64, all spans side by side. Memory is T x S; for tests only."""
    groups = q.shape[1] // spans[0].keys.shape[1]
    read = [s.read(0, s.marks.length, torch.float64) for s in spans]
    keys, values = (
        torch.cat(parts, dim=2).double().repeat_interleave(groups, dim=1) for parts in zip(*read, strict=True)
    )
    allowed = torch.cat(
        [mask.allowed(marks, s.marks, q.device).expand(q.shape[0], -1, -1) for s in spans], dim=2
    ).unsqueeze(1)
    scores = q.double() @ keys.transpose(-1, -2) * scale
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    if bias is not None:
        parts = [bias.values(marks, s.marks, q.device).expand(q.shape[0], -1, -1, -1) for s in spans]
        scores = scores + torch.cat(parts, dim=3)
    scores = scores.masked_fill(~allowed, -math.inf)
    lse = torch.logsumexp(scores, dim=-1)
    weights = torch.exp(scores - lse.unsqueeze(-1).clamp_min(-1e300))
    return (weights @ values).to(q.dtype), lse.detach().to(accumulator(q))


def fold(
    q: Tensor,
    spans: Sequence[Span],
    mask: Mask,
    marks: Marks,
    scale: float,
    bias: Bias | None = None,
    cap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Few queries over long spans: the query heads of a kv head are the rows of one pass over its keys."""
    batch, heads, count, size = q.shape
    kv = spans[-1].keys.shape[1]  # the newest are in memory, older ones may be elsewhere
    folded = q.reshape(batch, kv, heads // kv * count, size)
    found = []
    for span in spans:
        for piece in pieces(mask, marks, span.marks):
            plain = piece.mask is None and not piece.square and bias is None and cap is None
            if plain and calls.can_decode(folded, span, piece.first):
                out, lse = calls.decode(folded, span, piece.first, piece.last, scale)
            else:
                keys, values = span.read(piece.first, piece.last, q.dtype)
                if plain and gpu.can_attend(q, keys, values):
                    out, lse = gpu.forward(q, keys, values, scale, square=False)
                else:
                    # The few keys of the queries' own tokens: as exact as the compiled kernel over the past is, so
                    # that tokens verified together have the logits of tokens read one by one.
                    wide = accumulator(q) if piece.square else q.dtype
                    out, lse = _rows(folded.to(wide) * scale, keys, values, piece, (marks, span.marks), (bias, cap))
            found.append((out.reshape(batch, heads, count, size), lse.reshape(batch, heads, count)))
        span.release()
    out, lse = merge(found) if found else _unseen(q)
    return out.to(q.dtype), lse


def _rows(
    folded: Tensor,
    keys: Tensor,
    values: Tensor,
    piece: Piece,
    marks: tuple[Marks, Marks],
    changes: tuple[Bias | None, float | None],
) -> tuple[Tensor, Tensor]:
    """Scaled query rows (B, K, R, E) over a piece by plain products, under what its mask leaves open; `changes` of the
    scores are a bias and a cap."""
    kv, query, part = keys.shape[1], marks[0], marks[1].part(piece.first, piece.last)
    bias, cap = changes
    left = Causal() if piece.square else piece.mask
    allowed, added = None, None
    if left is not None:
        seen = left.allowed(query, part, folded.device)
        allowed = seen[:, None].repeat(1, 1, folded.shape[2] // query.length, 1)
    if bias is not None:
        added = bias.values(query, part, folded.device).unflatten(1, (kv, -1)).flatten(2, 3)
    return fused.rows(folded, keys.to(folded.dtype), values.to(folded.dtype), allowed, added, cap)


def paged(
    q: Float[Tensor, "B H 1 E"], pages: Pages, mask: Mask, scale: float, cap: float | None = None
) -> tuple[Float[Tensor, "B H 1 E"], Float[Tensor, "B H 1"]]:
    """One new token of every row over its own pages: all rows in one compiled call, or each alone through `fold`."""
    batch, heads, count, size = q.shape
    assert count == 1 and batch == len(pages.table.rows), (q.shape, len(pages.table.rows))
    runs = None if any(pages.past) or cap is not None else pages.table.runs(mask)
    if runs is not None and calls.can_page(q, pages.keys, pages.values):
        folded = q.reshape(batch, pages.keys.shape[0], -1, size)
        out, lse = calls.paged(folded, pages.keys, pages.values, pages.table.page, pages.table.pages, runs, scale)
        return out.reshape(q.shape).to(q.dtype), lse.reshape(batch, heads, 1)
    if batch > 1:
        alone = [paged(q[row : row + 1], pages.part([row]), mask, scale, cap) for row in range(batch)]
        return torch.cat([out for out, _ in alone]), torch.cat([lse for _, lse in alone])
    row = pages.table.rows[0]
    return fold(q, pages.spans(0), mask, Marks.run(row.start + row.length - 1, 1), scale, cap=cap)


def tiles(  # noqa: PLR0913 - all there is to know of one attention
    q: Tensor,
    spans: Sequence[Span],
    mask: Mask,
    marks: Marks,
    scale: float,
    bias: Bias | None = None,
    cap: float | None = None,
    exchange: Exchange | None = None,
) -> tuple[Tensor, Tensor]:
    """Any mask, any spans, with gradient: query tiles over the pieces of each span that they can see."""
    call = _Call(tuple(spans), mask, marks, scale, bias, cap, exchange)
    if not _tracked(q, spans, bias):
        return _whole_forward(q, call)
    return _Attention.apply((call,), q, *_own(spans), *_learned(bias))


KERNELS = {"eager": eager, "fold": fold, "tiles": tiles}


@dataclass(frozen=True, eq=False)
class _Call:
    """What of one `attend` is no tensor that autograd tracks."""

    spans: tuple[Span, ...]
    mask: Mask
    marks: Marks
    scale: float
    bias: Bias | None
    cap: float | None
    exchange: Exchange | None

    @property
    def changed(self) -> bool:
        """Whether scores are more than scaled: a tensor of every head's scores is made, so tiles are smaller."""
        return self.bias is not None or self.cap is not None


class _Attention(torch.autograd.Function):
    """Tensors: for each call its queries, keys and values of the spans that autograd tracks, and a learned bias."""

    @staticmethod
    def forward(ctx: Any, calls: tuple[_Call, ...], *tensors: Tensor) -> tuple[Tensor, Tensor]:
        left, found = iter(tensors), []
        for call in calls:
            found.append(_whole_forward(next(left), call))
            for _ in (*_own(call.spans), *_learned(call.bias)):
                next(left)
        out, lse = merge(found)
        ctx.save_for_backward(out, lse, *tensors)
        # The spans that autograd tracks come back from the saved tensors; holding them here too would be a cycle.
        ctx.calls = [replace(call, spans=tuple(_bare(span) for span in call.spans)) for call in calls]
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        out, lse, *tensors = ctx.saved_tensors
        left = iter(tensors)
        grads: list[Tensor] = []
        for call in ctx.calls:
            q = next(left)
            spans = [
                span if span.accumulate is not None else replace(span, keys=next(left), values=next(left))
                for span in call.spans
            ]
            _ = [next(left) for _ in _learned(call.bias)]
            grad_q, more = _whole_backward(slopes[0], q, spans, call, (out, lse))
            grads += [grad_q, *more]
        return (None, *grads)


def _own(spans: Sequence[Span]) -> list[Tensor]:
    """Keys and values of the spans that are part of autograd's graph."""
    return [tensor for span in spans if span.accumulate is None for tensor in (span.keys, span.values)]


def _learned(bias: Bias | None) -> list[Tensor]:
    """The parameter of a bias that is trained."""
    return [bias.learned] if bias is not None and bias.learned is not None and bias.learned.requires_grad else []


def _bare(span: Span) -> Span:
    nothing = torch.empty(0)
    return span if span.accumulate is not None else replace(span, keys=nothing, values=nothing)


def _whole_forward(q: Tensor, call: _Call) -> tuple[Tensor, Tensor]:
    """Attention of this rank's queries, whoever holds the keys."""
    exchange = call.exchange
    if exchange is None:
        return _forward(q, call)
    return exchange.join(*_forward(exchange.gather(q), replace(call, marks=exchange.marks)))


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


def _forward(q: Tensor, call: _Call) -> tuple[Tensor, Tensor]:
    outs, lses = [], []
    for first, last in _tiles(call):
        here, part = call.marks.part(first, last), q[:, :, first:last]
        found = []
        for span in call.spans:
            for piece in _pieces(call, here, span.marks, q.shape[1]):
                keys, values = span.read(piece.first, piece.last, q.dtype)
                added = _added(piece, call.bias, here, span.marks, q)
                found.append(fused.forward(part, keys, values, added, call.scale, piece.square, call.cap))
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
    """The gradient of the queries, of the keys and values of every span that does not take its own, of the bias."""
    out, lse = result
    lse = lse.masked_fill(lse == -math.inf, NOTHING)
    wide = accumulator(q)
    grad_q = torch.zeros(q.shape, dtype=wide, device=q.device)
    own = {
        number: tuple(torch.zeros(span.keys.shape, dtype=wide, device=q.device) for _ in range(2))
        for number, span in enumerate(spans)
        if span.accumulate is None
    }
    table = [torch.zeros(learned.shape, dtype=wide, device=q.device) for learned in _learned(call.bias)]
    for first, last in _tiles(call):
        here, rows = call.marks.part(first, last), slice(first, last)
        for number, span in enumerate(spans):
            for piece in _pieces(call, here, span.marks, q.shape[1]):
                keys, values = span.read(piece.first, piece.last, q.dtype)
                added = _added(piece, call.bias, here, span.marks, q)
                take = _taker(call.bias, here, span.marks.part(piece.first, piece.last), table)
                change, change_keys, change_values = fused.backward(
                    slope[:, :, rows],
                    (q[:, :, rows], keys, values),
                    out[:, :, rows],
                    lse[:, :, rows],
                    added,
                    call.scale,
                    piece.square,
                    take,
                    call.cap,
                )
                grad_q[:, :, rows] += change
                if span.accumulate is not None:
                    span.accumulate(piece.first, change_keys, change_values)
                else:
                    for total, part in zip(own[number], (change_keys, change_values), strict=True):
                        total[:, :, piece.first : piece.last] += part
            span.release()
    every = [total.to(q.dtype) for pair in own.values() for total in pair]
    return grad_q.to(q.dtype), every + [total.to(call.bias.learned.dtype) for total in table]  # type: ignore[union-attr]


def _taker(bias: Bias | None, query: Marks, key: Marks, table: list[Tensor]) -> Callable[[int, Tensor], None] | None:
    """What adds the slope of the scores of a piece (queries from `first` on) to the gradient of a learned bias."""
    if not table:
        return None
    assert bias is not None

    def take(first: int, slope: Tensor) -> None:
        table[0].add_(bias.gradient(slope, query.part(first, first + slope.shape[2]), key))

    return take


def _tiles(call: _Call) -> list[tuple[int, int]]:
    return query_tiles(call.mask, call.marks, [span.marks for span in call.spans], call.changed)


def _pieces(call: _Call, here: Marks, key: Marks, heads: int) -> list[Piece]:
    found = pieces(call.mask, here, key)
    return narrow(found, heads) if call.changed else found


def _added(piece: Piece, bias: Bias | None, query: Marks, key: Marks, q: Tensor) -> Tensor | None:
    """What is added to the scores of a piece: -inf where the mask forbids, and the bias. None: nothing."""
    part = key.part(piece.first, piece.last)
    allowed = None if piece.mask is None else piece.mask.allowed(query, part, q.device)
    if bias is None:
        return None if allowed is None else fused.additive(allowed, q.dtype)
    values = bias.values(query, part, q.device).to(accumulator(q))
    return values if allowed is None else values.masked_fill(~allowed.unsqueeze(1), -math.inf)


def _unseen(q: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(q), torch.full(q.shape[:3], -math.inf, dtype=accumulator(q), device=q.device)


def _tracked(q: Tensor, spans: Sequence[Span], bias: Bias | None = None) -> bool:
    if not torch.is_grad_enabled():  # spans on disk need not be looked at
        return False
    own = [span for span in spans if span.accumulate is None]
    kept = q.requires_grad or any(span.keys.requires_grad or span.values.requires_grad for span in own)
    return kept or bool(_learned(bias))
