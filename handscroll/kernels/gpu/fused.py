"""Attention of some queries over one run of keys on a GPU, by the fused kernels that come with torch.

cuDNN's kernels are used where they are faster (Hopper and later: 690 and 590 TFLOP/s forward and backward at a head
size of 128 on an H200, 2026-11), FlashAttention-2 (Dao 2023, arXiv:2307.08691; 360 and 310) elsewhere. Both take and
return the log-sum-exp, so that runs are joined exactly, and both share kv heads without copying them.

Limits: bfloat16 and float16, head sizes up to 256 in steps of 8; no mask tensor and no bias. The order of additions in
the backward is not fixed: under `torch.use_deterministic_algorithms`, plain products are used instead.
"""

from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from handscroll.base.portions import RUN
from handscroll.kernels.merge import merge

ROUND = 64  # cuDNN runs only for multiples of this, because it makes a plan for every new shape (40 ms)
LARGE = 1 << 20  # least query-key pairs of a head for which such a plan pays

_aten = torch.ops.aten


def refuses(q: Tensor, keys: Tensor, values: Tensor) -> str:
    """Why `forward` and `backward` do not take them; they need half precision on a GPU and whole vectors."""
    if q.device.type != "cuda":
        return "the tensors are not on a GPU"
    if q.dtype not in (torch.bfloat16, torch.float16):
        return "it computes in half precision only"
    if not all(x.dtype == q.dtype and x.stride(-1) == 1 for x in (q, keys, values)):
        return "keys or values have another dtype, or gaps"
    if q.shape[-1] % 8 or q.shape[-1] > 256:
        return "the head size is no multiple of 8 up to 256"
    if not q.numel() or not keys.shape[2]:
        return "there is nothing to read"
    return "its order of additions is not fixed" if torch.are_deterministic_algorithms_enabled() else ""


def forward(q: Tensor, keys: Tensor, values: Tensor, scale: float, square: bool) -> tuple[Tensor, Tensor]:
    """Output (B, H, T, E) and float32 log-sum-exp (B, H, T) of queries over (B, K, S, E) keys and values.

    `square`: query t sees keys 0 .. t; otherwise all see all.
    """
    found: tuple[Tensor, Tensor] | None = None
    for first, last in _runs(keys.shape[2], square):
        run = slice(first, last)
        out, lse = _forward(q, keys[:, :, run], values[:, :, run], scale, square)
        found = (out, lse) if found is None else merge([(found[0].float(), found[1]), (out, lse)])
    assert found is not None, "no keys"
    return found[0].to(q.dtype), found[1]


def backward(
    slope: Tensor, inputs: tuple[Tensor, Tensor, Tensor], out: Tensor, lse: Tensor, scale: float, square: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries (float32), keys and values of one run; `out` and `lse` are those over all runs together."""
    q, keys, values = inputs
    runs = _runs(keys.shape[2], square)
    if len(runs) == 1:
        return _backward(slope, q, keys, values, out, lse, scale, square)
    grad_q = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
    grad_keys, grad_values = torch.empty_like(keys), torch.empty_like(values)
    for first, last in runs:
        run = slice(first, last)
        parts = _backward(slope, q, keys[:, :, run], values[:, :, run], out, lse, scale, square)
        grad_q += parts[0]
        grad_keys[:, :, run], grad_values[:, :, run] = parts[1:]
    return grad_q, grad_keys, grad_values


def _runs(length: int, square: bool) -> list[tuple[int, int]]:
    edges = [0, length] if square else [*range(0, length, RUN), length]
    return list(pairwise(edges))


def _forward(q: Tensor, keys: Tensor, values: Tensor, scale: float, square: bool) -> tuple[Tensor, Tensor]:
    if _takes_cudnn(q, keys):
        out, lse = _aten._scaled_dot_product_cudnn_attention(
            q, keys, values, None, True, 0.0, square, False, scale=scale
        )[:2]
        return out, lse.view(q.shape[:3])
    out, lse = _aten._scaled_dot_product_flash_attention(q, keys, values, 0.0, square, False, scale=scale)[:2]
    return out, lse


def _backward(  # noqa: PLR0913 - everything about one run of keys
    slope: Tensor, q: Tensor, keys: Tensor, values: Tensor, out: Tensor, lse: Tensor, scale: float, square: bool
) -> tuple[Tensor, Tensor, Tensor]:
    none = _unused(q.device)  # random state for dropout, which is not used
    lengths = (None, None, q.shape[2], keys.shape[2])
    if _takes_cudnn(q, keys):
        stats = lse.unsqueeze(-1).contiguous()
        return _aten._scaled_dot_product_cudnn_attention_backward(
            slope, q, keys, values, out, stats, none, none, None, *lengths, 0.0, square, scale=scale
        )
    return _aten._scaled_dot_product_flash_attention_backward(
        slope, q, keys, values, out, lse.contiguous(), *lengths, 0.0, square, none, none, scale=scale
    )


def _takes_cudnn(q: Tensor, keys: Tensor) -> bool:
    tokens, length = q.shape[2], keys.shape[2]
    if tokens % ROUND or length % ROUND or tokens * length < LARGE or not torch.backends.cuda.cudnn_sdp_enabled():
        return False
    return q.shape[-1] <= 128 and _cudnn_works(q.device, q.dtype, q.shape[-1], q.shape[1] // keys.shape[1])


@cache
def _cudnn_works(device: torch.device, dtype: torch.dtype, size: int, shared: int) -> bool:
    """Whether this GPU's cuDNN has forward and backward for such heads, tried once; before Hopper it is no faster."""
    if torch.cuda.get_device_capability(device) < (9, 0) or not torch.backends.cudnn.is_available():
        return False
    q = torch.ones(1, shared, ROUND, size, dtype=dtype, device=device)
    keys, none = q[:, :1], _unused(device)
    try:
        out, lse = _aten._scaled_dot_product_cudnn_attention(q, keys, keys, None, True, 0.0, False, False)[:2]
        _aten._scaled_dot_product_cudnn_attention_backward(
            q, q, keys, keys, out, lse, none, none, None, None, None, ROUND, ROUND, 0.0, False
        )
    except RuntimeError:
        return False
    return True


@cache
def _unused(device: torch.device) -> Tensor:
    return torch.zeros(2, dtype=torch.int64, device=device)
