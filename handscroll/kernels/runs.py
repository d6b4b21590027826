"""Attention of some queries over one run of keys, forward and backward: our compiled kernel, torch's, or products.

All give and take the log-sum-exp, so that runs of keys are joined exactly (`merge`) and the backward of one run
needs only the queries' global output and log-sum-exp (Dao et al. 2022, "FlashAttention", appendix B).
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from handscroll.kernels.gpu import fused as gpu
from handscroll.kernels.native import calls

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
SCORES = 256 << 20  # bytes of the scores of a tile of plain products
NOTHING = 1e30  # log-sum-exp that makes every weight zero, for queries that see no key


def accumulator(q: Tensor) -> torch.dtype:
    """float32, or float64 for float64."""
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def forward(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    added: Tensor | None,
    scale: float,
    square: bool = False,
    cap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Output (B, H, T, E) and log-sum-exp (B, H, T); queries without any key give zeros and -inf.

    `added` (B or 1, H or 1, T, S) goes onto the scaled scores, -inf where a key is not seen; `square` is the causal
    diagonal. Query heads share kv heads evenly. `cap`: scaled scores s are cap * tanh(s / cap) before that.
    """
    if added is None:
        return _run(q, keys, values, None, scale, square, cap)
    empty = (added == -math.inf).all(dim=-1)  # (B or 1, H or 1, T)
    if not bool(empty.any()):
        return _run(q, keys, values, added, scale, False, cap)
    out, lse = _run(q, keys, values, added.masked_fill(empty.unsqueeze(-1), 0.0), scale, False, cap)
    return out.masked_fill(empty.unsqueeze(-1), 0.0), lse.masked_fill(empty, -math.inf)


def backward(  # noqa: PLR0913 - one run of keys, all there is to know of it
    slope: Tensor,
    inputs: tuple[Tensor, Tensor, Tensor],
    out: Tensor,
    lse: Tensor,
    added: Tensor | None,
    scale: float,
    square: bool,
    take: Callable[[int, Tensor], None] | None = None,
    cap: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the queries, keys and values of one run, from the slope of the *global* output.

    `out` and `lse` are those of the queries over all runs together; `lse` must be finite (`NOTHING` where no key
    is seen). The gradients of the queries add up over runs. `take(first, slope)`, where given, gets the slope of the
    scores (B, H, t, S) of the queries from `first` on, in the accumulator's dtype.
    """
    q, keys, values = inputs
    if q.device.type == "cpu" and take is None and cap is None:  # the fused kernel keeps the scores to itself
        if added is not None:
            added = added.expand(q.shape[0], q.shape[1], -1, -1)
        return _backward(slope, q, keys, values, out, lse, 0.0, square, attn_mask=added, scale=scale)
    if added is None and take is None and cap is None and gpu.can_attend(q, keys, values):
        return gpu.backward(slope, inputs, out, lse, scale, square)
    return _products_backward(slope, inputs, out, lse, _with_square(added, q, square), (scale, cap), take)


def rows(
    folded: Tensor,
    keys: Tensor,
    values: Tensor,
    allowed: Tensor | None,
    added: Tensor | None = None,
    cap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Few scaled query rows (B, K, R, E) of each kv head: two plain products over the keys where they lie.

    `allowed` masks, `added` goes onto the scores, capped where there is a `cap`; both (B or 1, K or 1, R, S).
    """
    scores = capped((folded @ keys.transpose(-1, -2)).to(accumulator(folded)), cap)
    if added is not None:
        scores = scores + added
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -math.inf)
    lse = torch.logsumexp(scores, dim=-1)
    weights = torch.exp(scores - lse.unsqueeze(-1).clamp_min(-NOTHING)).to(folded.dtype)
    return weights @ values, lse


def capped(scores: Tensor, cap: float | None) -> Tensor:
    """Scores between -cap and cap; as they are where there is no cap."""
    return scores if cap is None else cap * torch.tanh(scores / cap)


def merge(pieces: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Join attention over disjoint key sets, exactly, from each one's output and log-sum-exp."""
    if len(pieces) == 1:
        return pieces[0]
    if len(pieces) == 2:  # the usual case of decoding, in a third of the operations
        (first, first_lse), (second, second_lse) = pieces
        lse = torch.logaddexp(first_lse, second_lse)
        share = torch.exp(second_lse - lse.clamp_min(-NOTHING)).unsqueeze(-1)
        return torch.lerp(first.to(lse.dtype), second.to(lse.dtype), share).to(first.dtype), lse
    lse = torch.logsumexp(torch.stack([piece[1] for piece in pieces]), dim=0)
    finite = lse.clamp_min(-NOTHING)  # no key anywhere: weights become zero instead of NaN
    out = sum(out.to(lse.dtype) * torch.exp(part - finite).unsqueeze(-1) for out, part in pieces)
    assert isinstance(out, Tensor)
    return out.to(pieces[0][0].dtype), lse


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a key (B or 1, T, S) is seen and -inf elsewhere, for all heads."""
    zeros = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return zeros.masked_fill_(~allowed, -math.inf).unsqueeze(1)


def _run(
    q: Tensor, keys: Tensor, values: Tensor, added: Tensor | None, scale: float, square: bool, cap: float | None
) -> tuple[Tensor, Tensor]:
    if cap is not None:
        return _products(q, keys, values, _with_square(added, q, square), (scale, cap))
    if added is None and calls.can_prefill(q, keys, values):
        return calls.prefill(q, keys, values, scale, square)
    if q.device.type == "cpu":
        # The fused CPU kernel wants whole (B, heads) masks and returns the log-sum-exp, which F.sdpa hides.
        if added is not None:
            added = added.expand(q.shape[0], q.shape[1], -1, -1)
        return _forward(q, keys, values, 0.0, square, attn_mask=added, scale=scale)
    if added is None and gpu.can_attend(q, keys, values):
        return gpu.forward(q, keys, values, scale, square)
    return _products(q, keys, values, _with_square(added, q, square), (scale, None))


def _with_square(added: Tensor | None, q: Tensor, square: bool) -> Tensor | None:
    if not square:
        return added
    ones = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device)
    return additive(ones.tril()[None], q.dtype)


def _products(
    q: Tensor, keys: Tensor, values: Tensor, added: Tensor | None, scaling: tuple[float, float | None]
) -> tuple[Tensor, Tensor]:
    """Any device: plain products with float32 softmax, a tile of queries at a time so that the scores stay small.

    `scaling` of the scores: what they are multiplied by, and the cap.
    """
    outs, lses = [], []
    for rows in _tiles(q, keys):
        part = None if added is None else added[:, :, rows]
        scores = _scores(q[:, :, rows], keys, part, scaling)
        lse = torch.logsumexp(scores, dim=-1)
        weights = torch.exp(scores - lse.unsqueeze(-1)).to(q.dtype)
        outs.append((_folded(weights, keys) @ values).reshape(q[:, :, rows].shape))
        lses.append(lse)
    return torch.cat(outs, dim=2), torch.cat(lses, dim=2)


def _products_backward(
    slope: Tensor,
    inputs: tuple[Tensor, Tensor, Tensor],
    out: Tensor,
    lse: Tensor,
    added: Tensor | None,
    scaling: tuple[float, float | None],
    take: Callable[[int, Tensor], None] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    q, keys, values = inputs
    wide, (scale, cap) = accumulator(q), scaling
    grad_q = torch.empty_like(q)
    grad_keys, grad_values = torch.zeros_like(keys, dtype=wide), torch.zeros_like(values, dtype=wide)
    for rows in _tiles(q, keys):
        part = None if added is None else added[:, :, rows]
        here, up = q[:, :, rows], slope[:, :, rows]
        bare = _scores(here, keys, None, scaling)
        weights = torch.exp((bare if part is None else bare + part) - lse[:, :, rows].unsqueeze(-1))
        inner = (up.to(wide) * out[:, :, rows].to(wide)).sum(dim=-1, keepdim=True)
        up_folded, here_folded = _folded(up, keys), _folded(here, keys)
        change = (up_folded @ values.transpose(-1, -2)).to(wide).reshape(weights.shape)
        change = weights * (change - inner)
        if take is not None:
            take(rows.start, change)
        if cap is not None:
            change = change * (1.0 - (bare / cap).square())  # the slope of cap * tanh(s / cap)
        change = (change * scale).to(q.dtype)
        grad_q[:, :, rows] = (_folded(change, keys) @ keys).reshape(here.shape)
        grad_keys += (_folded(change, keys).transpose(-1, -2) @ here_folded).to(wide)
        grad_values += (_folded(weights.to(q.dtype), keys).transpose(-1, -2) @ up_folded).to(wide)
    return grad_q, grad_keys, grad_values


def _tiles(q: Tensor, keys: Tensor) -> list[slice]:
    """Tiles of at most 512 queries whose scores over these keys take no more than `SCORES` bytes."""
    batch, heads, count, _ = q.shape
    size = max(16, min(512, SCORES // (batch * heads * keys.shape[2] * accumulator(q).itemsize)))
    return [slice(first, min(first + size, count)) for first in range(0, count, size)]


def _folded(x: Tensor, keys: Tensor) -> Tensor:
    """(B, H, T, X) -> (B, K, H / K x T, X): the query heads of one kv head as rows of one product."""
    batch, heads, count, size = x.shape
    kv = keys.shape[1]
    return x.reshape(batch, kv, heads // kv * count, size)


def _scores(q: Tensor, keys: Tensor, added: Tensor | None, scaling: tuple[float, float | None]) -> Tensor:
    scale, cap = scaling
    scores = capped((_folded(q, keys) @ keys.transpose(-1, -2)).to(accumulator(q)) * scale, cap)
    scores = scores.reshape(*q.shape[:3], keys.shape[2])
    return scores if added is None else scores + added
