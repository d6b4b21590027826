"""The compiled kernels as functions of tensors. Each has a `can_...` that says whether it takes these tensors.

All are for the CPU and without gradient. Threads: torch's.
"""

import ctypes

import torch
from jaxtyping import Float, Int
from torch import Tensor

from handscroll.nn.cache import Span
from handscroll.nn.native.library import library

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
LANES = 16  # sizes must be multiples of this


def can_decode(q: Tensor, span: Span) -> bool:
    """Whether `decode` takes them: a CPU, keys in float32, bfloat16 or int8, whole vectors, rows without gaps."""
    if q.device.type != "cpu" or q.dtype not in (torch.float32, torch.bfloat16):
        return False
    alike = span.keys.dtype == span.values.dtype == (q.dtype if span.scales is None else torch.int8)
    if not q.numel() or not span.marks.length or not _untracked(q, span.keys, span.values):
        return False
    return alike and _whole(span.keys, span.values) and library() is not None


def decode(
    q: Float[Tensor, "B K R E"], span: Span, first: int, last: int
) -> tuple[Float[Tensor, "B K R E"], Float[Tensor, "B K R"]]:
    """Attention of R scaled query rows of each kv head over a run of a span: output and log-sum-exp, both float32."""
    keys, values = span.keys[:, :, first:last], span.values[:, :, first:last]
    key_scales, value_scales = (None, None) if span.scales is None else (s[:, :, first:last] for s in span.scales)
    found = library()
    assert found is not None
    batch, kv, rows, size = q.shape
    q = q.to(torch.float32).contiguous()
    out, lse = _floats(*q.shape), _floats(*q.shape[:3])
    strides = (*keys.stride()[:2], *values.stride()[:2], *((0, 0) if key_scales is None else key_scales.stride()[:2]))
    found.handscroll_decode(
        KINDS[keys.dtype],
        _at(q),
        _at(keys),
        _at(values),
        _at(key_scales),
        _at(value_scales),
        _numbers(batch, kv, rows, keys.shape[2], size, torch.get_num_threads()),
        _numbers(*strides),
        _at(out),
        _at(lse),
    )
    return out, lse


def can_page(q: Tensor, keys: Tensor, values: Tensor) -> bool:
    """Whether `paged` takes them: a CPU, float32 or bfloat16, whole vectors, a pool (K, slots, E) without gaps."""
    tensors = (q, keys, values)
    if any(x.device.type != "cpu" or x.dtype != q.dtype for x in tensors) or not _untracked(*tensors):
        return False
    fits = q.dtype in (torch.float32, torch.bfloat16) and q.shape[-1] % LANES == 0
    return fits and bool(q.numel()) and keys.is_contiguous() and values.is_contiguous() and library() is not None


def paged(
    q: Float[Tensor, "B K R E"],
    keys: Float[Tensor, "K slots E"],
    values: Float[Tensor, "K slots E"],
    page: int,
    table: Int[Tensor, "pages"],
    spans: Int[Tensor, "B 3"],
) -> tuple[Float[Tensor, "B K R E"], Float[Tensor, "B K R"]]:
    """Attention of R scaled query rows of each kv head of row b over tokens first .. last - 1 of its own pages.

    Pages are `page` slots of the pool. `spans` holds per row where its pages begin in `table`, first and last. Output
    and log-sum-exp are float32; a row's do not depend on the other rows.
    """
    found = library()
    assert found is not None
    batch, kv, rows, size = q.shape
    wide = q.to(torch.float32).contiguous()
    out, lse = _floats(*q.shape), _floats(*q.shape[:3])
    numbers = _numbers(batch, kv, rows, size, page, keys.shape[1], torch.get_num_threads())
    kind = KINDS[keys.dtype]
    found.handscroll_paged(kind, _at(wide), _at(keys), _at(values), _at(table), _at(spans), numbers, _at(out), _at(lse))
    return out, lse


def can_prefill(q: Tensor, keys: Tensor, values: Tensor) -> bool:
    """Whether `prefill` takes them: bfloat16 on a CPU that multiplies it (AVX-512 BF16)."""
    tensors = (q, keys, values)
    if any(x.device.type != "cpu" or x.dtype != torch.bfloat16 or x.stride(3) != 1 for x in tensors):
        return False
    tracked = not _untracked(*tensors)
    return bool(q.numel()) and bool(keys.shape[2]) and not tracked and _whole(keys, values) and _narrow_products()


def prefill(
    q: Float[Tensor, "B H T E"],
    keys: Float[Tensor, "B K S E"],
    values: Float[Tensor, "B K S E"],
    scale: float,
    square: bool,
) -> tuple[Float[Tensor, "B H T E"], Float[Tensor, "B H T"]]:
    """Attention of T queries over S keys in bfloat16; `square`: query t sees keys 0 .. t, else all see all.

    The weights are rounded to bfloat16 before they meet the values, as torch's fused kernel does it; scores, sums and
    the log-sum-exp are float32. The output lies as (B, T, H, E), which the next projection reads.
    """
    found = library()
    assert found is not None
    batch, heads, count, size = q.shape
    out = torch.empty(batch, count, heads, size, dtype=q.dtype, device="cpu").transpose(1, 2)
    lse = _floats(batch, heads, count)
    shape = (batch, heads, keys.shape[1], count, keys.shape[2], size, int(square), torch.get_num_threads())
    strides = (*q.stride()[:3], *keys.stride()[:2], *values.stride()[:2], *out.stride()[:3])
    numbers = _numbers(*shape, *strides)
    found.handscroll_prefill(_at(q), _at(keys), _at(values), ctypes.c_float(scale), numbers, _at(out), _at(lse))
    return out, lse


def can_multiply(x: Tensor, weight: Tensor) -> bool:
    """Whether `multiply` takes them: bfloat16 on a CPU, whole vectors, a matrix without gaps."""
    alike = x.dtype == weight.dtype and x.dtype in (torch.float32, torch.bfloat16)
    return alike and _fits(x, weight) and library() is not None


def can_multiply_int8(x: Tensor, numbers: Tensor) -> bool:
    """The same for a matrix in int8."""
    alike = x.dtype in (torch.float32, torch.bfloat16) and numbers.dtype == torch.int8
    return alike and _fits(x, numbers) and library() is not None


def multiply(
    x: Float[Tensor, "*rows D"],
    weight: Float[Tensor, "N D"],
    bias: Float[Tensor, "N"] | None,
    scales: Float[Tensor, "N"] | None = None,
) -> Float[Tensor, "*rows N"]:
    """x times weight transposed (times scales) plus bias, with float32 sums; the weights are read once per 4 rows.

    A row's result does not depend on the other rows. In bfloat16 the weights are read once per 8 rows where the
    processor multiplies it.
    """
    found = library()
    assert found is not None
    outer, inner = weight.shape
    out = torch.empty(*x.shape[:-1], outer, dtype=x.dtype, device="cpu")
    bias = None if bias is None else bias.to(x.dtype).contiguous()
    numbers = _numbers(x.numel() // inner, inner, outer, torch.get_num_threads())
    if x.dtype == weight.dtype == torch.bfloat16 and _narrow_products():
        x = x.contiguous()
        found.handscroll_narrow_product(_at(x), _at(weight), _at(bias), numbers, _at(out))
        return out
    wide = x.to(torch.float32).contiguous()
    scales = None if scales is None else scales.to(torch.float32).contiguous()
    narrow = int(x.dtype == torch.bfloat16)
    kind = KINDS[weight.dtype]
    found.handscroll_product(kind, narrow, _at(wide), _at(weight), _at(scales), _at(bias), numbers, _at(out))
    return out


def _narrow_products() -> bool:
    found = library()
    return found is not None and bool(found.handscroll_has_prefill())


def _fits(x: Tensor, weight: Tensor) -> bool:
    """Whether rows are whole vectors on the CPU and go with the matrix."""
    placed = x.device.type == weight.device.type == "cpu" and bool(x.numel())
    return placed and x.shape[-1] == weight.shape[1] and weight.shape[1] % LANES == 0 and weight.is_contiguous()


def _untracked(*tensors: Tensor) -> bool:
    """Whether no gradient is wanted of any."""
    return not torch.is_grad_enabled() or not any(x.requires_grad for x in tensors)


def _floats(*shape: int) -> Tensor:
    """Room for float32 results, whatever torch's default dtype and device are."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _whole(*tensors: Tensor) -> bool:
    """Whether rows are whole vectors and the (S, E) of a head lie without gaps."""
    return all(
        x.shape[3] % LANES == 0 and x.stride(3) == 1 and (x.stride(2) == x.shape[3] or x.shape[2] == 1) for x in tensors
    )


def _at(x: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if x is None else x.data_ptr())


def _numbers(*values: int) -> ctypes.Array:
    return (ctypes.c_int64 * len(values))(*values)
