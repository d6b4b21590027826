"""`attend`: the one attention signature, its implementations and the function that chooses among them.

Implementations never build a T x S mask for a whole sequence: plain runs are cut into an unmasked past and
a causal diagonal, everything else into query tiles. Pieces are merged by log-sum-exp, which is exact
(Milakov & Gimelshein 2018, "Online normalizer calculation for softmax"; Dao et al. 2022).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from handscroll.nn.cache import Span
from handscroll.nn.marks import Marks
from handscroll.nn.mask import Mask

# Elements of one boolean mask tile (16 MiB); bounds memory for packed, padded and windowed rows.
TILE = 1 << 24
# Up to this many query tokens two matrix products over the folded groups beat torch's fused kernel on a CPU
# (1.1 against 10-13 GB/s of cache read with grouped queries, torch 2.13).
FOLD = 16


@dataclass(frozen=True)
class Choice:
    """Which implementation runs, and why."""

    kernel: str
    reason: str


def choose(q: Tensor, spans: Sequence[Span], mask: Mask, marks: Marks) -> Choice:
    """Decide the implementation from device, shapes, marks and mask.

    `fold`: few queries over a long cache; `causal`: plain runs under a causal band; `tiles`: all the rest.
    """
    tracked = torch.is_grad_enabled() and (q.requires_grad or any(s.keys.requires_grad for s in spans))
    if q.shape[2] <= FOLD and not tracked:
        return Choice("fold", f"{q.shape[2]} query tokens, no gradient: two products over folded groups")
    plain = marks.plain and all(span.marks.plain for span in spans)
    if plain and mask.band() == (0, None) and len(spans) == 1 and _ends_together(marks, spans[0].marks):
        if tracked and spans[0].marks.length != marks.length:
            return Choice("tiles", "gradient through a cached past: one differentiable piece per tile")
        return Choice("causal", "plain causal run: unmasked past + causal diagonal, no mask tensor")
    return Choice("tiles", "packed, padded, windowed or combined mask: query tiles with small masks")


def attend(
    q: Float[Tensor, "B H T E"],
    spans: Sequence[Span],
    mask: Mask,
    marks: Marks,
    scale: float | None = None,
    kernel: str | None = None,
) -> tuple[Float[Tensor, "B H T E"], Float[Tensor, "B H T"]]:
    """Softmax attention of queries with `marks` over all keys of `spans`; grouped kv heads are shared.

    Args:
        scale: multiplies q.k; 1/sqrt(E) unless given. A scaling's squared attention factor belongs here.
        kernel: force one of `KERNELS` (tests, benchmarks); chosen by `choose` otherwise.

    Returns:
        out and the natural log-sum-exp of the scaled scores (not differentiable). A query that may see no
        key (padding) gives zeros and -inf.
    """
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    run = KERNELS[kernel or choose(q, spans, mask, marks).kernel]
    return run(q, spans, mask, marks, scale)


def eager(q: Tensor, spans: Sequence[Span], mask: Mask, marks: Marks, scale: float) -> tuple[Tensor, Tensor]:
    """The oracle: dense scores in float64, all spans side by side. Memory is T x S; for tests only."""
    groups = q.shape[1] // spans[0].keys.shape[1]
    keys = torch.cat([s.keys for s in spans], dim=2).double().repeat_interleave(groups, dim=1)
    values = torch.cat([s.values for s in spans], dim=2).double().repeat_interleave(groups, dim=1)
    allowed = torch.cat(
        [mask.allowed(marks, s.marks, q.device).expand(q.shape[0], -1, -1) for s in spans], dim=2
    ).unsqueeze(1)
    scores = (q.double() @ keys.transpose(-1, -2) * scale).masked_fill(~allowed, -math.inf)
    lse = torch.logsumexp(scores, dim=-1)
    weights = torch.exp(scores - lse.unsqueeze(-1).clamp_min(-1e300))
    return (weights @ values).to(q.dtype), lse.detach().to(_accumulator(q))


def fold(q: Tensor, spans: Sequence[Span], mask: Mask, marks: Marks, scale: float) -> tuple[Tensor, Tensor]:
    """Few queries over long spans: the query heads of a kv head are folded into rows of two plain products."""
    batch, heads, count, size = q.shape
    kv = spans[0].keys.shape[1]
    folded = (q * scale).reshape(batch, kv, heads // kv * count, size)
    pieces = []
    for span in spans:
        scores = (folded @ span.keys.transpose(-1, -2)).to(_accumulator(q))
        if not _all_visible(mask, marks, span.marks):
            allowed = mask.allowed(marks, span.marks, q.device)[:, None].repeat(1, 1, heads // kv, 1)
            scores = scores.masked_fill(~allowed, -math.inf)
        lse = torch.logsumexp(scores, dim=-1)
        weights = torch.exp(scores - lse.unsqueeze(-1).clamp_min(-1e30)).to(q.dtype)
        out = (weights @ span.values).reshape(batch, heads, count, size)
        pieces.append((out, lse.reshape(batch, heads, count)))
    return merge(pieces)


def causal(q: Tensor, spans: Sequence[Span], mask: Mask, marks: Marks, scale: float) -> tuple[Tensor, Tensor]:
    """Plain causal runs: everything before the first query is past, unmasked; the rest is one causal square."""
    (span,) = spans
    past, count = span.marks.length - marks.length, q.shape[2]
    diagonal = _piece(q, span.keys[:, :, past:], span.values[:, :, past:], None, scale, causal=True)
    if not past:
        return diagonal
    batch, heads, _, size = q.shape
    kv = span.keys.shape[1]
    folded = q.reshape(batch, kv, heads // kv * count, size)
    out, lse = _piece(folded, span.keys[:, :, :past], span.values[:, :, :past], None, scale)
    return merge([(out.reshape(q.shape), lse.reshape(batch, heads, count)), diagonal])


def tiles(q: Tensor, spans: Sequence[Span], mask: Mask, marks: Marks, scale: float) -> tuple[Tensor, Tensor]:
    """Any mask: query tiles, each with a mask tensor of at most `TILE` elements, over the keys in reach."""
    rows = 1 if marks.plain and all(s.marks.plain for s in spans) else q.shape[0]
    tracked = torch.is_grad_enabled() and (q.requires_grad or any(s.keys.requires_grad for s in spans))
    if tracked and len(spans) > 1:  # the merge would need the gradient of the log-sum-exp
        spans = [_concatenated(spans, q)]
    longest = max(span.marks.length for span in spans)
    step = max(1, min(q.shape[2], TILE // max(1, rows * longest), _window_step(mask)))
    outs, lses = [], []
    for first in range(0, q.shape[2], step):
        last = min(first + step, q.shape[2])
        here = marks.part(first, last)
        pieces = []
        for span in spans:
            near, far = _reach(mask, here, span.marks)
            key_marks = span.marks.part(near, far)
            keys, values = span.keys[:, :, near:far], span.values[:, :, near:far]
            allowed = mask.allowed(here, key_marks, q.device).unsqueeze(1)
            pieces.append(_piece(q[:, :, first:last], keys, values, allowed, scale))
        out, lse = merge(pieces)
        outs.append(out)
        lses.append(lse)
    return torch.cat(outs, dim=2), torch.cat(lses, dim=2)


KERNELS = {"eager": eager, "fold": fold, "causal": causal, "tiles": tiles}


def merge(pieces: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Join attention over disjoint key sets, exactly, from each one's output and log-sum-exp."""
    if len(pieces) == 1:
        return pieces[0]
    lse = torch.logsumexp(torch.stack([piece[1] for piece in pieces]), dim=0)
    finite = lse.clamp_min(-1e30)  # no key anywhere: weights become zero instead of NaN
    out = sum(out.to(lse.dtype) * torch.exp(part - finite).unsqueeze(-1) for out, part in pieces)
    assert isinstance(out, Tensor)
    return out.to(pieces[0][0].dtype), lse


def _piece(
    q: Tensor, keys: Tensor, values: Tensor, allowed: Tensor | None, scale: float, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """One fused attention call; `allowed` (B or 1, 1, T, S). Rows without any key give zeros and -inf."""
    if allowed is None:
        return _fused(q, keys, values, None, scale, causal)
    empty = ~allowed.any(dim=-1)  # (B or 1, 1, T)
    additive = torch.zeros(allowed.shape, dtype=q.dtype, device=q.device)
    additive.masked_fill_(~(allowed | empty.unsqueeze(-1)), -math.inf)
    out, lse = _fused(q, keys, values, additive, scale, causal)
    if not bool(empty.any()):
        return out, lse
    return out.masked_fill(empty.unsqueeze(-1), 0.0), lse.masked_fill(empty, -math.inf)


def _fused(
    q: Tensor, keys: Tensor, values: Tensor, additive: Tensor | None, scale: float, causal: bool
) -> tuple[Tensor, Tensor]:
    if q.device.type == "cpu":
        # The fused CPU kernel wants whole (B, heads) masks and returns the log-sum-exp, which F.sdpa hides.
        if additive is not None:
            additive = additive.expand(q.shape[0], q.shape[1], -1, -1)
        op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return op(q, keys, values, 0.0, causal, attn_mask=additive, scale=scale)
    # Other devices: plain products with float32 softmax; the tile bound keeps the scores small.
    groups = q.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(groups, dim=1), values.repeat_interleave(groups, dim=1)
    scores = (q @ keys.transpose(-1, -2)).to(_accumulator(q)) * scale
    if causal:
        square = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device)
        scores = scores.masked_fill(square.triu(1), -math.inf)
    if additive is not None:
        scores = scores + additive
    lse = torch.logsumexp(scores, dim=-1)
    return torch.exp(scores - lse.unsqueeze(-1)).to(q.dtype) @ values, lse.detach()


def _accumulator(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def _ends_together(query: Marks, key: Marks) -> bool:
    assert query.start is not None and key.start is not None
    return query.start + query.length == key.start + key.length and query.length <= key.length


def _all_visible(mask: Mask, query: Marks, key: Marks) -> bool:
    """Plain runs under a band that lets every query see every key (one decoded token, mostly)."""
    band = mask.band()
    if band is None or query.start is None or key.start is None:
        return False
    low, high = band
    nearest = query.start - (key.start + key.length - 1)
    farthest = query.start + query.length - 1 - key.start
    return (low is None or nearest >= low) and (high is None or farthest <= high)


def _window_step(mask: Mask) -> int:
    """Query tiles no longer than the window, so that a tile's reach stays below twice the window."""
    band = mask.band()
    return TILE if band is None or band[1] is None else max(64, band[1] + 1)


def _reach(mask: Mask, query: Marks, key: Marks) -> tuple[int, int]:
    """Slots of the keys that a tile of plain queries can see at all; the whole span otherwise."""
    band = mask.band()
    if band is None or query.start is None or key.start is None:
        return 0, key.length
    low, high = band
    near = 0 if high is None else query.start - high - key.start
    far = key.length if low is None else query.start + query.length - low - key.start
    near, far = max(0, min(near, key.length)), max(0, min(far, key.length))
    return (near, far) if near < far else (0, min(1, key.length))


def _concatenated(spans: Sequence[Span], q: Tensor) -> Span:
    keys = torch.cat([s.keys for s in spans], dim=2)
    values = torch.cat([s.values for s in spans], dim=2)
    return Span(keys, values, Marks.join([s.marks for s in spans], q.shape[0], q.device))
