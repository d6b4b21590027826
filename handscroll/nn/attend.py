"""`attend`: the one attention signature, over spans under a mask. Its kernels are in `ATTENTION` and in `kernels/`.

No implementation builds a T x S mask for a whole sequence: only the parts that a mask leaves undecided are cut into
tiles (`nn/pieces.py`). Pieces are merged by log-sum-exp, which is exact (Milakov & Gimelshein 2018, "Online normalizer
calculation for softmax"; Dao et al. 2022). The gradient is computed piece by piece from the global log-sum-exp, so it
needs no more memory than the forward. A span may take its gradient itself (`Span.accumulate`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from handscroll.kernels import gradient, runs
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
from handscroll.nn.pieces import Piece, joined, narrow, pieces, query_tiles
from handscroll.nn.span import Span

# With at most this many query tokens, one pass over the folded groups beats torch's fused kernel on a CPU. (With
# grouped queries, torch 2.13 reads 1.1 GB of cache a second and two matrix products read 10-13; compiled kernel:
# docs/benchmarks.md.)
FOLD = 16
JOINED = 4  # outputs of pieces that are merged at a time


@runtime_checkable
class Exchange(Protocol):
    """Attention over keys that lie on several ranks (`train/parallel/exchange.py`).

    `marks` are the marks of the queries of all ranks together.
    """

    marks: Marks

    def gather(self, x: Tensor) -> Tensor:
        """Join the (B, H, t, X) of all ranks along the tokens."""
        ...

    def sum(self, x: Tensor) -> Tensor:
        """Sum (B, H, T, X) over all ranks; each rank gets its own tokens."""
        ...

    def join(self, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
        """From partial attention of all queries on every rank to the whole attention of this rank's queries."""
        ...


@dataclass(frozen=True, eq=False)
class Call:
    """The arguments of one attention call besides its queries. `spans` may also be `Pages` or `Slots`."""

    spans: Any
    mask: Mask
    marks: Marks
    scale: float
    bias: Bias | None = None
    cap: float | None = None
    exchange: Exchange | None = None

    @property
    def changed(self) -> bool:
        """Whether a bias or a cap changes the scores.

        The scores of every head are then in memory, so tiles are smaller.
        """
        return self.bias is not None or self.cap is not None


@dataclass(frozen=True, eq=False)
class Part:
    """A set of keys with its own queries (B, H, T, E): the spans, and a mask that says which of their keys are read."""

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
    """Softmax attention of queries with `marks` over all keys of `spans`; grouped query heads share a kv head.

    Args:
        spans: a list of spans. For one new token of every row it may also be the pages of a pool (`nn/pages.py`) or the
            buffers of a GPU's cache (`kernels/gpu/slots.py`).
        scale: multiplies q.k; the default is 1/sqrt(E). The squared attention factor of a scaling belongs here.
        kernel: the name of a kernel of `ATTENTION` to force (for tests and benchmarks); by default the registry
            chooses.
        exchange: needed when the tokens of a row lie on several ranks; q and spans are then this rank's.
        bias: added to the scaled scores (ALiBi, T5); a learned bias gets its gradient.
        cap: the scaled scores s become cap * tanh(s / cap), before bias and mask (Gemma Team 2024, arXiv:2408.00118).

    Returns:
        The output and the natural log-sum-exp of the scaled scores (not differentiable). A query that may see no key
        (padding) gives zeros and -inf. The `observer` of a span receives the attention mass on its keys.
    """
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    run = ATTENTION if kernel is None else ATTENTION.kernel(kernel).run
    return run(q, Call(spans, mask, marks, scale, bias, cap, exchange))


def attend_parts(
    parts: Sequence[Part], marks: Marks, scale: float, exchange: Exchange | None = None, cap: float | None = None
) -> Float[Tensor, "B H T E"]:
    """Attention of queries with `marks` over disjoint sets of keys; the queries have another rotation for each set.

    The softmax is over all sets together. Its gradient is computed set by set from the common log-sum-exp.
    """
    if not any(_tracked(part.queries, part.spans) for part in parts):
        return merge([attend(p.queries, p.spans, p.mask, marks, scale, exchange=exchange, cap=cap) for p in parts])[0]
    calls = tuple(Call(tuple(part.spans), part.mask, marks, scale, None, cap, exchange) for part in parts)
    tensors = [tensor for part in parts for tensor in (part.queries, *_own(part.spans))]
    return _Attention.apply(calls, *tensors)[0]


def eager(q: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    """The reference for tests: dense float64 scores over all spans joined together. It needs T x S memory."""
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
    """Attention of a few queries over long spans: one pass over the keys serves all query heads of a kv head."""
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
    """Attention of a few queries over a piece by plain products, with the undecided part of its mask and the bias."""
    batch, heads, count, size = q.shape
    keys, values = span.read(piece.first, piece.last, q.dtype)
    kv, part = keys.shape[1], span.marks.part(piece.first, piece.last)
    # The few keys of the queries' own tokens are computed as exactly as the compiled kernel computes the past, so that
    # tokens that are verified together get the same logits as tokens read one by one.
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
    """Attention of one new token of every row (B, H, 1, E) over the row's own pages."""
    assert q.shape[2] == 1 and q.shape[0] == len(call.spans.table.rows), (q.shape, len(call.spans.table.rows))
    return PAGED(q, call)


def _refuses_together(q: Tensor, call: Call) -> str:
    pages: Pages = call.spans
    if call.cap is not None:
        return runs.CAPPED
    if pages.table.runs(call.mask) is None:
        return "the tokens that a row sees in its pages are not one run"
    shared = pages.shared(call.mask)
    if shared is None:
        return "the tokens that a row sees of its saved reading are not runs"
    refused = next(filter(None, (one.keys.refuses(q) for one in shared)), "")
    return refused or native.refuses_pages(q, pages.keys, pages.values)


def _together(q: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    """The rows that continue one saved reading read it in one pass, as many queries over the same keys."""
    pages: Pages = call.spans
    seen, (batch, heads, _, size) = pages.table.runs(call.mask), q.shape
    assert seen is not None
    folded, many = q.reshape(batch, pages.keys.shape[0], -1, size), not pages.table.alike
    where = pages.table.page, pages.table.pages, seen
    out, lse = native.paged(folded, pages.keys, pages.values, *where, call.scale, many)
    for one in pages.shared(call.mask) or ():
        mine = q[one.rows].transpose(0, 2)
        more, more_lse = native.decode_runs(mine, one.keys.table, call.scale, many)
        native.join(out.view(batch, heads, size), lse.view(batch, heads), more[0], more_lse[0], one.rows)
    return out.reshape(q.shape).to(q.dtype), lse.reshape(batch, heads, 1)


def _one_by_one(q: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    pages: Pages = call.spans
    rows = pages.table.rows
    if len(rows) > 1:  # the faster kernel may take a single row
        alone = [PAGED(q[n : n + 1], replace(call, spans=pages.part([n]))) for n in range(len(rows))]
        return torch.cat([out for out, _ in alone]), torch.cat([lse for _, lse in alone])
    return fold(q, replace(call, spans=pages.spans(0), marks=pages.table.newest[0]))


def tiles(q: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    """Attention with any mask and any spans, with gradient: each query tile reads the pieces that it sees."""
    if not _tracked(q, call.spans, call.bias):
        return _whole_forward(q, call)
    return _Attention.apply((call,), q, *_own(call.spans), *_learned(call.bias))


def _refuses_paged(q: Tensor, call: Call) -> str:
    return "" if isinstance(call.spans, Pages) else "the keys are not in pages"


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
    return native.GRADIENT if gradient.possible() else ""


def _observed(run: Callable[[Tensor, Call], tuple[Tensor, Tensor]]) -> Callable[[Tensor, Call], tuple[Tensor, Tensor]]:
    """Wrap a kernel over spans so that the spans' observers receive the attention mass on their keys."""

    def observed(q: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        out, lse = run(q, call)
        if any(span.observer is not None for span in call.spans):
            assert call.exchange is None, "keys of several ranks are not observed"
            observe(q, call.spans, call.mask, call.marks, call.scale, lse, call.bias, call.cap)
        return out, lse

    return observed


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
    """Its tensors are, for each call: the queries, the keys and values of tracked spans, and a learned bias."""

    @staticmethod
    def forward(ctx: Any, calls: tuple[Call, ...], *tensors: Tensor) -> tuple[Tensor, Tensor]:
        left, found = iter(tensors), []
        for call in calls:
            found.append(_whole_forward(next(left), call))
            for _ in (*_own(call.spans), *_learned(call.bias)):
                next(left)
        out, lse = merge(found)
        ctx.save_for_backward(out, lse, *tensors)
        # The tracked spans are rebuilt from the saved tensors; holding them here too would be a reference cycle.
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
    """The bias's parameter if it is trained, as a list."""
    return [bias.learned] if bias is not None and bias.learned is not None and bias.learned.requires_grad else []


def _bare(span: Span) -> Span:
    nothing = torch.empty(0)
    return span if span.accumulate is not None else replace(span, keys=nothing, values=nothing)


def _whole_forward(q: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    """Attention of this rank's queries, with keys on this rank or on several."""
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
            for piece in joined(_pieces(call, here, span.marks, q.shape[1])):
                keys, values = span.read(piece.first, piece.last, q.dtype)
                added = _added(piece, call.bias, here, span.marks, q)
                found.append(runs.forward(part, keys, values, added, call.scale, piece.square, call.cap))
                if len(found) == JOINED:  # with a past of many blocks, one output for each would fill the memory
                    found = [merge(found)]
            span.release()
        out, lse = merge(found) if found else _unseen(part)
        outs.append(out)
        lses.append(lse)
    return (outs[0], lses[0]) if len(outs) == 1 else (torch.cat(outs, dim=2), torch.cat(lses, dim=2))


def _backward(
    slope: Tensor, q: Tensor, spans: Sequence[Span], call: Call, result: tuple[Tensor, Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """The gradients of the queries, of the keys and values of all spans without `accumulate`, and of the bias."""
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
    """A function that adds the gradient of a piece's scores (queries from `first` on) to that of a learned bias."""
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
    """The sum of bias and mask (-inf where the mask forbids) for the scores of a piece; None if there is neither."""
    part = key.part(piece.first, piece.last)
    allowed = None if piece.mask is None else piece.mask.allowed(query, part, q.device)
    if bias is None:
        return None if allowed is None else runs.additive(allowed, q.dtype)
    values = bias.values(query, part, q.device).to(accumulator(q))
    return values if allowed is None else values.masked_fill(~allowed.unsqueeze(1), -math.inf)


def _unseen(q: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(q), torch.full(q.shape[:3], -math.inf, dtype=accumulator(q), device=q.device)


def _tracked(q: Tensor, spans: Sequence[Span], bias: Bias | None = None) -> bool:
    if not torch.is_grad_enabled():  # avoids looking at spans on disk
        return False
    own = [span for span in spans if span.accumulate is None]
    kept = q.requires_grad or any(span.keys.requires_grad or span.values.requires_grad for span in own)
    return kept or bool(_learned(bias))
