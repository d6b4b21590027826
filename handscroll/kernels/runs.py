"""Attention of queries over one run of keys: `OVER`, its gradient `GRADIENT`, and `FEW` queries over a span.

All take and return the log-sum-exp, so that runs of keys are joined exactly (`kernels/merge.py`). The backward of one
run needs only the queries' global output and log-sum-exp (Dao et al. 2022, "FlashAttention", appendix B).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from handscroll.kernels.gpu import fused as gpu
from handscroll.kernels.merge import NOTHING, merge
from handscroll.kernels.native import calls
from handscroll.kernels.native.calls import KeysValues
from handscroll.kernels.registry import Kernel, Operation, always

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
SCORES = 256 << 20  # most bytes for the scores of a tile of plain products
ADDED = "something is added to the scores: a mask that is undecided here, or a bias"
CAPPED = "it caps no scores"
BEFORE = "there are keys before the causal diagonal"
KEPT = "it keeps the slope of the scores to itself"
Inputs = tuple[Tensor, Tensor, Tensor]  # queries, keys, values, or their gradients
Result = tuple[Tensor, Tensor]  # output and log-sum-exp
Take = Callable[[int, Tensor], None]


@dataclass(frozen=True, eq=False)
class Scores:
    """How products of queries and keys become scores: times `scale`, capped, plus `added` or the causal diagonal.

    The diagonal (`square`) ends at the last query and the last key; there are at least as many keys as queries.
    """

    scale: float
    cap: float | None = None
    added: Tensor | None = None  # (B or 1, H or 1, T, S), -inf where a key is not seen
    square: bool = False


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

    `added` (B or 1, H or 1, T, S) is added to the scaled scores, -inf where a key is not seen; with `square`, query t
    sees keys 0 .. S - T + t (S >= T). Query heads share kv heads evenly. Keys and values may be float16 under float32
    queries. With `cap`, scaled scores s first become cap * tanh(s / cap).
    """
    if added is None:
        return OVER(q, keys, values, Scores(scale, cap, None, square))
    empty = (added == -math.inf).all(dim=-1)  # (B or 1, H or 1, T)
    if not bool(empty.any()):
        return OVER(q, keys, values, Scores(scale, cap, added))
    out, lse = OVER(q, keys, values, Scores(scale, cap, added.masked_fill(empty.unsqueeze(-1), 0.0)))
    return out.masked_fill(empty.unsqueeze(-1), 0.0), lse.masked_fill(empty, -math.inf)


def backward(  # noqa: PLR0913 - everything about one run of keys
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
    """Gradients of the queries, keys and values of one run, from the gradient of the *global* output.

    `out` and `lse` are those of the queries over all runs together; `lse` must be finite (`NOTHING` where no key is
    seen). The gradients of the queries add up over runs. `take(first, slope)`, if given, receives the gradient of the
    scores (B, H, t, S) of the queries from `first` on, in the accumulator's dtype.
    """
    q, keys, values = inputs
    inputs = q, keys.to(q.dtype), values.to(q.dtype)
    return GRADIENT(slope, inputs, (out, lse), Scores(scale, cap, added, square), take)


def rows(
    folded: Tensor,
    keys: Tensor,
    values: Tensor,
    allowed: Tensor | None,
    added: Tensor | None = None,
    cap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of few scaled query rows (B, K, R, E) of each kv head: two plain products over the keys in place.

    `allowed` masks the scores, and `added` is added to them after the `cap`, if any; both (B or 1, K or 1, R, S).
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
    """Scores between -cap and cap; unchanged without a cap."""
    return scores if cap is None else cap * torch.tanh(scores / cap)


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a key (B or 1, T, S) is seen and -inf elsewhere, for all heads."""
    zeros = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return zeros.masked_fill_(~allowed, -math.inf).unsqueeze(1)


def _with_square(scores: Scores, q: Tensor, keys: Tensor) -> Tensor | None:
    """The numbers added to the scores, or those that make the causal diagonal."""
    if not scores.square:
        return scores.added
    ones = torch.ones(q.shape[2], keys.shape[2], dtype=torch.bool, device=q.device)
    return additive(ones.tril(keys.shape[2] - q.shape[2])[None], q.dtype)


def _every_head(added: Tensor | None, q: Tensor) -> Tensor | None:
    """A mask for all (B, heads), which the fused CPU kernel needs; it returns the log-sum-exp, unlike F.sdpa."""
    return None if added is None else added.expand(q.shape[0], q.shape[1], -1, -1)


def _refuses_compiled(q: Tensor, keys: Tensor, values: Tensor, scores: Scores) -> str:
    return _changed(scores) or calls.refuses_prefill(q, keys, values)


def _compiled(q: Tensor, keys: Tensor, values: Tensor, scores: Scores) -> Result:
    return calls.prefill(q, keys, values, scores.scale, scores.square)


def _refuses_runs(q: Tensor, keys: Tensor, values: Tensor, scores: Scores) -> str:
    return "" if _longer(q, keys, scores) else "there are no keys before the causal diagonal"


def _runs(q: Tensor, keys: Tensor, values: Tensor, scores: Scores) -> Result:
    edge = keys.shape[2] - q.shape[2]
    before = OVER(q, keys[:, :, :edge], values[:, :, :edge], replace(scores, square=False))
    return merge([before, OVER(q, keys[:, :, edge:], values[:, :, edge:], scores)])


def _longer(q: Tensor, keys: Tensor, scores: Scores) -> bool:
    return scores.square and keys.shape[2] > q.shape[2]


def _refuses_torch(q: Tensor, keys: Tensor, values: Tensor, scores: Scores) -> str:
    if q.device.type != "cpu":
        return calls.NOT_CPU
    return CAPPED if scores.cap is not None else BEFORE if _longer(q, keys, scores) else ""


def _torch(q: Tensor, keys: Tensor, values: Tensor, scores: Scores) -> Result:
    mask = _every_head(scores.added, q)
    keys, values = keys.to(q.dtype), values.to(q.dtype)
    return _forward(q, keys, values, 0.0, scores.square, attn_mask=mask, scale=scores.scale)


def _refuses_gpu(q: Tensor, keys: Tensor, values: Tensor, scores: Scores) -> str:
    return _changed(scores) or (BEFORE if _longer(q, keys, scores) else "") or gpu.refuses(q, keys, values)


def _gpu(q: Tensor, keys: Tensor, values: Tensor, scores: Scores) -> Result:
    return gpu.forward(q, keys, values, scores.scale, scores.square)


def _changed(scores: Scores) -> str:
    return CAPPED if scores.cap is not None else ADDED if scores.added is not None else ""


def _products(q: Tensor, keys: Tensor, values: Tensor, scores: Scores) -> Result:
    """Plain products on any device with float32 softmax, for one tile of queries at a time to keep the scores small."""
    added = _with_square(scores, q, keys)
    keys, values = keys.to(q.dtype), values.to(q.dtype)
    outs, lses = [], []
    for rows in _tiles(q, keys):
        found = _scores(q[:, :, rows], keys, scores)
        found = found if added is None else found + added[:, :, rows]
        lse = torch.logsumexp(found, dim=-1)
        weights = torch.exp(found - lse.unsqueeze(-1)).to(q.dtype)
        outs.append((_folded(weights, keys) @ values).reshape(q[:, :, rows].shape))
        lses.append(lse)
    return torch.cat(outs, dim=2), torch.cat(lses, dim=2)


def _refuses_torch_gradient(slope: Tensor, inputs: Inputs, result: Result, scores: Scores, take: Take | None) -> str:
    return KEPT if take is not None else _refuses_torch(*inputs, scores)


def _torch_gradient(slope: Tensor, inputs: Inputs, result: Result, scores: Scores, take: Take | None) -> Inputs:
    mask = _every_head(scores.added, inputs[0])
    return _backward(slope, *inputs, *result, 0.0, scores.square, attn_mask=mask, scale=scores.scale)


def _refuses_gpu_gradient(slope: Tensor, inputs: Inputs, result: Result, scores: Scores, take: Take | None) -> str:
    return KEPT if take is not None else _refuses_gpu(*inputs, scores)


def _gpu_gradient(slope: Tensor, inputs: Inputs, result: Result, scores: Scores, take: Take | None) -> Inputs:
    return gpu.backward(slope, inputs, *result, scores.scale, scores.square)


def _products_gradient(slope: Tensor, inputs: Inputs, result: Result, scores: Scores, take: Take | None) -> Inputs:
    (q, keys, values), (out, lse), added = inputs, result, _with_square(scores, *inputs[:2])
    wide, cap = accumulator(q), scores.cap
    grad_q = torch.empty_like(q)
    grad_keys, grad_values = torch.zeros_like(keys, dtype=wide), torch.zeros_like(values, dtype=wide)
    for rows in _tiles(q, keys):
        here, up = q[:, :, rows], slope[:, :, rows]
        bare = _scores(here, keys, scores)
        weights = torch.exp((bare if added is None else bare + added[:, :, rows]) - lse[:, :, rows].unsqueeze(-1))
        inner = (up.to(wide) * out[:, :, rows].to(wide)).sum(dim=-1, keepdim=True)
        up_folded, here_folded = _folded(up, keys), _folded(here, keys)
        change = (up_folded @ values.transpose(-1, -2)).to(wide).reshape(weights.shape)
        change = weights * (change - inner)
        if take is not None:
            take(rows.start, change)
        if cap is not None:
            change = change * (1.0 - (bare / cap).square())  # the derivative of cap * tanh(s / cap)
        change = (change * scores.scale).to(q.dtype)
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
    """(B, H, T, X) -> (B, K, H / K x T, X): the query heads of one kv head become rows of one product."""
    batch, heads, count, size = x.shape
    kv = keys.shape[1]
    return x.reshape(batch, kv, heads // kv * count, size)


def _scores(q: Tensor, keys: Tensor, scores: Scores) -> Tensor:
    """Scaled and capped scores, without `added`."""
    found = capped((_folded(q, keys) @ keys.transpose(-1, -2)).to(accumulator(q)) * scores.scale, scores.cap)
    return found.reshape(*q.shape[:3], keys.shape[2])


def _refuses_few_compiled(q: Tensor, span: KeysValues, first: int, last: int, scale: float, cap: float | None) -> str:
    return CAPPED if cap is not None else calls.refuses_decode(q, span, first)


def _few_compiled(q: Tensor, span: KeysValues, first: int, last: int, scale: float, cap: float | None) -> Result:
    return calls.decode(q, span, first, last, scale)


def _refuses_few_gpu(q: Tensor, span: KeysValues, first: int, last: int, scale: float, cap: float | None) -> str:
    if q.device.type != "cuda":
        return "the tensors are not on a GPU"
    read = (span.keys, span.values) if span.scales is None else (q, q)
    return CAPPED if cap is not None else gpu.refuses(q, *read)


def _few_gpu(q: Tensor, span: KeysValues, first: int, last: int, scale: float, cap: float | None) -> Result:
    return gpu.forward(q, *span.read(first, last, q.dtype), scale, square=False)


def _few_products(q: Tensor, span: KeysValues, first: int, last: int, scale: float, cap: float | None) -> Result:
    keys, values = (x.to(q.dtype) for x in span.read(first, last, q.dtype))
    out, lse = rows(_folded(q, keys) * scale, keys, values, None, None, cap)
    return out.reshape(q.shape), lse.reshape(q.shape[:3])


# Attention of a few queries (B, H, T, E) that all see the keys first .. last - 1 of a span.
FEW = Operation(
    "attention of a few queries over a span",
    Kernel("compiled", "reads each key once, rounded ones as they lie", _refuses_few_compiled, _few_compiled),
    Kernel("gpu", "the fused kernels that come with torch", _refuses_few_gpu, _few_gpu),
    Kernel("products", "two matrix products over folded query heads, any dtype and device", always, _few_products),
)
OVER = Operation(
    "attention of many queries over a run of keys",
    Kernel("compiled", "the processor's bfloat16 products, grouped heads without copies", _refuses_compiled, _compiled),
    Kernel("torch", "the fused kernel for CPUs that comes with torch", _refuses_torch, _torch),
    Kernel("gpu", "the fused kernels for GPUs that come with torch", _refuses_gpu, _gpu),
    Kernel("two runs", "the keys before the causal diagonal, then the diagonal", _refuses_runs, _runs),
    Kernel("products", "plain products by tiles, any dtype and device", always, _products),
)
GRADIENT = Operation(
    "gradient of attention over a run of keys",
    Kernel("torch", "the fused kernel for CPUs that comes with torch", _refuses_torch_gradient, _torch_gradient),
    Kernel("gpu", "the fused kernels for GPUs that come with torch", _refuses_gpu_gradient, _gpu_gradient),
    Kernel("products", "plain products by tiles, any dtype and device", always, _products_gradient),
)
