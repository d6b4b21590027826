"""`attend`: the one attention signature, over spans under a mask; its kernels are `ATTENTION` and those of `kernels/`.

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

from handscroll.kernels import runs
from handscroll.kernels.gpu.slots import Slots
from handscroll.kernels.merge import NOTHING, merge
from handscroll.kernels.native import calls as native
from handscroll.kernels.registry import Kernel, Operation, always
from handscroll.kernels.runs import accumulator
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


@dataclass(frozen=True, eq=False)
class Call:
    """One attention besides its queries: what is read, and how. `spans` are also pages or slots, as `attend` says."""

    spans: Any
    mask: Mask
    marks: Marks
    scale: float
    bias: Bias | None = None
    cap: float | None = None
    exchange: Exchange | None = None

    @property
    def changed(self) -> bool:
        """Whether scores are more than scaled: a tensor of every head's scores is made, so tiles are smaller."""
        return self.bias is not None or self.cap is not None


@dataclass(frozen=True, eq=False)
class Part:
    """Keys that are read with queries of their own: `queries` (B, H, T, E), the spans, and which keys of them."""

    queries: Tensor
    spans: Sequence[Span]
    mask: Mask


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
        kernel: force one of `ATTENTION` (tests, benchmarks); the registry chooses otherwise.
        exchange: where the tokens of a row lie on several ranks: q and spans are this rank's.
        bias: added to the scaled scores (ALiBi, T5's); a learned one gets its gradient.
        cap: the scaled scores s become cap * tanh(s / cap), before bias and mask (Gemma Team 2024, arXiv:2408.00118).

    Returns:
        out and the natural log-sum-exp of the scaled scores (not differentiable). A query that may see no
        key (padding) gives zeros and -inf. Spans with an `observer` are told the mass on their keys.
    """
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    run = ATTENTION if kernel is None else ATTENTION.kernel(kernel).run
    return run(q, Call(spans, mask, marks, scale, bias, cap, exchange))


def attend_parts(
    parts: Sequence[Part], marks: Marks, scale: float, exchange: Exchange | None = None, cap: float | None = None
) -> Float[Tensor, "B H T E"]:
    """Attention of queries with `marks` over disjoint sets of keys, each of which they meet with another rotation.

    The result is the softmax over all sets together; its gradient is formed set by set from the common log-sum-exp.
    """
    if not any(_tracked(part.queries, part.spans) for part in parts):
        return merge([attend(p.queries, p.spans, p.mask, marks, scale, exchange=exchange, cap=cap) for p in parts])[0]
    calls = tuple(Call(tuple(part.spans), part.mask, marks, scale, None, cap, exchange) for part in parts)
    tensors = [tensor for part in parts for tensor in (part.queries, *_own(part.spans))]
    return _Attention.apply(calls, *tensors)[0]


def eager(q: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    """The oracle: dense scores in float64, all spans side by side. Memory is T x S; for tests only."""
    assert call.exchange is None, "the oracle has all keys"
    spans, mask, marks, cap = call.spans, call.mask, call.marks, call.cap
    groups = q.shape[1] // spans[0].keys.shape[1]
    read = [s.read(0, s.marks.length, torch.float64) for s in spans]
    keys, values = (
        torch.cat(parts, dim=2).double().repeat_interleave(groups, dim=1) for parts in zip(*read, strict=True)
    )
    allowed = torch.cat(
        [mask.allowed(marks, s.marks, q.device).expand(q.shape[0], -1, -1) for s in spans], dim=2
    ).unsqueeze(1)
    scores = q.double() @ keys.transpose(-1, -2) * call.scale
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    if call.bias is not None:
        parts = [call.bias.values(marks, s.marks, q.device).expand(q.shape[0], -1, -1, -1) for s in spans]
        scores = scores + torch.cat(parts, dim=3)
    scores = scores.masked_fill(~allowed, -math.inf)
    lse = torch.logsumexp(scores, dim=-1)
    weights = torch.exp(scores - lse.unsqueeze(-1).clamp_min(-1e300))
    return (weights @ values).to(q.dtype), lse.detach().to(accumulator(q))


def fold(q: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    """Few queries over long spans: the query heads of a kv head are the rows of one pass over its keys."""
    found = []
    for span in call.spans:
        for piece in pieces(call.mask, call.marks, span.marks):
            if piece.mask is None and not piece.square and call.bias is None:
                found.append(runs.FEW(q, span, piece.first, piece.last, call.scale, call.cap))
            else:
                found.append(_rows(q, span, piece, call))
        span.release()
    out, lse = merge(found) if found else _unseen(q)
    return out.to(q.dtype), lse


def _rows(q: Tensor, span: Span, piece: Piece, call: Call) -> tuple[Tensor, Tensor]:
    """Few queries over a piece by plain products, under what its mask leaves open and a bias."""
    batch, heads, count, size = q.shape
    keys, values = span.read(piece.first, piece.last, q.dtype)
    kv, part = keys.shape[1], span.marks.part(piece.first, piece.last)
    # The few keys of the queries' own tokens: as exact as the compiled kernel over the past is, so that tokens
    # verified together have the logits of tokens read one by one.
    wide = accumulator(q) if piece.square else q.dtype
    folded = q.reshape(batch, kv, heads // kv * count, size).to(wide) * call.scale
    left = Causal() if piece.square else piece.mask
    allowed, added = None, None
    if left is not None:
        allowed = left.allowed(call.marks, part, q.device)[:, None].repeat(1, 1, heads // kv, 1)
    if call.bias is not None:
        added = call.bias.values(call.marks, part, q.device).unflatten(1, (kv, -1)).flatten(2, 3)
    out, lse = runs.rows(folded, keys.to(wide), values.to(wide), allowed, added, call.cap)
    return out.reshape(q.shape), lse.reshape(q.shape[:3])


def paged(q: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    """One new token of every row (B, H, 1, E) over its own pages."""
    assert q.shape[2] == 1 and q.shape[0] == len(call.spans.table.rows), (q.shape, len(call.spans.table.rows))
    return PAGED(q, call)


def _refuses_together(q: Tensor, call: Call) -> str:
    pages: Pages = call.spans
    if call.cap is not None:
        return runs.CAPPED
    if any(pages.past):
        return "a row goes on after a saved reading"
    if pages.table.runs(call.mask) is None:
        return "what a row sees of its pages is no run"
    return native.refuses_pages(q, pages.keys, pages.values)


def _together(q: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    pages: Pages = call.spans
    seen, (batch, heads, _, size) = pages.table.runs(call.mask), q.shape
    assert seen is not None
    folded = q.reshape(batch, pages.keys.shape[0], -1, size)
    out, lse = native.paged(folded, pages.keys, pages.values, pages.table.page, pages.table.pages, seen, call.scale)
    return out.reshape(q.shape).to(q.dtype), lse.reshape(batch, heads, 1)


def _one_by_one(q: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    pages: Pages = call.spans
    rows = pages.table.rows
    if len(rows) > 1:  # a row alone may be taken by the faster kernel
        alone = [PAGED(q[n : n + 1], replace(call, spans=pages.part([n]))) for n in range(len(rows))]
        return torch.cat([out for out, _ in alone]), torch.cat([lse for _, lse in alone])
    marks = Marks.run(rows[0].start + rows[0].length - 1, 1)
    return fold(q, replace(call, spans=pages.spans(0), marks=marks))


def tiles(q: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    """Any mask, any spans, with gradient: query tiles over the pieces of each span that they can see."""
    if not _tracked(q, call.spans, call.bias):
        return _whole_forward(q, call)
    return _Attention.apply((call,), q, *_own(call.spans), *_learned(call.bias))


def _refuses_paged(q: Tensor, call: Call) -> str:
    return "" if isinstance(call.spans, Pages) else "the keys lie in no pages"


def _refuses_slots(q: Tensor, call: Call) -> str:
    return "" if isinstance(call.spans, Slots) else "no CUDA graph is recorded"


def _slots(q: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    assert call.cap is None, "this kernel caps no scores"
    return call.spans.attend(q, call.scale)


def _refuses_fold(q: Tensor, call: Call) -> str:
    if q.shape[2] > FOLD:
        return f"more than {FOLD} queries"
    if call.exchange is not None:
        return "the keys lie on several ranks"
    return "a gradient is wanted" if _tracked(q, call.spans, call.bias) else ""


def _observed(run: Callable[[Tensor, Call], tuple[Tensor, Tensor]]) -> Callable[[Tensor, Call], tuple[Tensor, Tensor]]:
    """A kernel over spans that tells the observers of spans the mass on their keys."""

    def told(q: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        out, lse = run(q, call)
        if any(span.observer is not None for span in call.spans):
            assert call.exchange is None, "keys of several ranks are not observed"
            observe(q, call.spans, call.mask, call.marks, call.scale, lse, call.bias, call.cap)
        return out, lse

    return told


PAGED = Operation(
    "paged attention",
    Kernel("compiled", "all rows in one call, each over its own pages", _refuses_together, _together),
    Kernel("row by row", "each row over a copy of its pages", always, _one_by_one),
)
ATTENTION = Operation(
    "attention",
    Kernel("paged", "one new token of every row over pages of a pool", _refuses_paged, paged),
    Kernel("slots", "one new token of every row inside a CUDA graph", _refuses_slots, _slots),
    Kernel("fold", "few queries: the query heads of a kv head share one pass", _refuses_fold, _observed(fold)),
    Kernel("tiles", "any mask, any number of queries and ranks, with gradient", always, _observed(tiles)),
    Kernel("eager", "the float64 oracle of the tests; never chosen", always, _observed(eager)),
)


class _Attention(torch.autograd.Function):
    """Tensors: for each call its queries, keys and values of the spans that autograd tracks, and a learned bias."""

    @staticmethod
    def forward(ctx: Any, calls: tuple[Call, ...], *tensors: Tensor) -> tuple[Tensor, Tensor]:
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


def _whole_forward(q: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    """Attention of this rank's queries, whoever holds the keys."""
    exchange = call.exchange
    if exchange is None:
        return _forward(q, call)
    return exchange.join(*_forward(exchange.gather(q), replace(call, marks=exchange.marks)))


def _whole_backward(
    slope: Tensor, q: Tensor, spans: Sequence[Span], call: Call, result: tuple[Tensor, Tensor]
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


def _forward(q: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    outs, lses = [], []
    for first, last in _tiles(call):
        here, part = call.marks.part(first, last), q[:, :, first:last]
        found = []
        for span in call.spans:
            for piece in _pieces(call, here, span.marks, q.shape[1]):
                keys, values = span.read(piece.first, piece.last, q.dtype)
                added = _added(piece, call.bias, here, span.marks, q)
                found.append(runs.forward(part, keys, values, added, call.scale, piece.square, call.cap))
                if len(found) == JOINED:  # a past of many blocks must not hold an output for each
                    found = [merge(found)]
            span.release()
        out, lse = merge(found) if found else _unseen(part)
        outs.append(out)
        lses.append(lse)
    return (outs[0], lses[0]) if len(outs) == 1 else (torch.cat(outs, dim=2), torch.cat(lses, dim=2))


def _backward(
    slope: Tensor, q: Tensor, spans: Sequence[Span], call: Call, result: tuple[Tensor, Tensor]
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
                change, change_keys, change_values = runs.backward(
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


def _tiles(call: Call) -> list[tuple[int, int]]:
    return query_tiles(call.mask, call.marks, [span.marks for span in call.spans], call.changed)


def _pieces(call: Call, here: Marks, key: Marks, heads: int) -> list[Piece]:
    found = pieces(call.mask, here, key)
    return narrow(found, heads) if call.changed else found


def _added(piece: Piece, bias: Bias | None, query: Marks, key: Marks, q: Tensor) -> Tensor | None:
    """What is added to the scores of a piece: -inf where the mask forbids, and the bias. None: nothing."""
    part = key.part(piece.first, piece.last)
    allowed = None if piece.mask is None else piece.mask.allowed(query, part, q.device)
    if bias is None:
        return None if allowed is None else runs.additive(allowed, q.dtype)
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
