"""The compiled kernels as functions of tensors. Each has a `can_...` that says whether it takes these tensors.

All are for the CPU and without gradient. Threads: torch's.
"""

import ctypes
from functools import cache
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from handscroll.kernels.native.library import library
from handscroll.kernels.rounding import GROUP

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2, torch.uint8: 3}  # the last: two int4 a byte
LANES = 16  # sizes must be multiples of this
WIDEST = 512  # numbers of an int8 key, whose products are added up in 32 bits
FEW = 16  # tokens up to which products, norms and rotations are asked here


class KeysValues(Protocol):
    """Keys and values (B, K, S, E), rounded where `scales` are given (`nn/span.py: Span`)."""

    @property
    def keys(self) -> Tensor: ...

    @property
    def values(self) -> Tensor: ...

    @property
    def scales(self) -> tuple[Tensor, Tensor] | None: ...

    def scales_of(self, first: int, last: int) -> tuple[Tensor, Tensor]: ...


def can_decode(q: Tensor, span: KeysValues, first: int = 0) -> bool:
    """Whether `decode` takes a run from `first` on: a CPU, a known dtype, whole vectors, rows without gaps."""
    if q.device.type != "cpu" or q.dtype not in (torch.float32, torch.bfloat16):
        return False
    keys, values = span.keys, span.values
    if not q.numel() or not keys.shape[2] or not _untracked(q, keys, values) or keys.dtype != values.dtype:
        return False
    if span.scales is None:
        alike = keys.dtype == q.dtype
    elif keys.dtype == torch.uint8:
        alike = first % GROUP == 0 and q.shape[3] % GROUP == 0 and all(s[0, 0].is_contiguous() for s in span.scales)
    else:
        alike = keys.dtype == torch.int8 and q.shape[3] <= WIDEST
    return alike and _whole(keys, values) and library() is not None


def decode(
    q: Float[Tensor, "B K R E"], span: KeysValues, first: int, last: int, scale: float = 1.0
) -> tuple[Float[Tensor, "B K R E"], Float[Tensor, "B K R"]]:
    """Attention of R query rows of each kv head over a run of a span: output and log-sum-exp, both float32.

    Over int8 on a processor with AVX-512 VNNI, queries and softmax weights are rounded to 16 bits (integers.h).
    """
    keys, values = span.keys[:, :, first:last], span.values[:, :, first:last]
    key_scales, value_scales = (None, None) if span.scales is None else span.scales_of(first, last)
    found = library()
    assert found is not None
    batch, kv, rows, size = q.shape
    q = q.contiguous()
    out, lse = _floats(*q.shape), _floats(*q.shape[:3])
    strides = [n for x in (keys, values, key_scales, value_scales) for n in ((0, 0) if x is None else x.stride()[:2])]
    found.handscroll_decode(
        KINDS[keys.dtype],
        int(q.dtype == torch.bfloat16),
        _at(q),
        scale,
        _at(keys),
        _at(values),
        _at(key_scales),
        _at(value_scales),
        _numbers(batch, kv, rows, keys.shape[2], size, torch.get_num_threads(), 1),
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
    scale: float = 1.0,
) -> tuple[Float[Tensor, "B K R E"], Float[Tensor, "B K R"]]:
    """Attention of R query rows of each kv head of row b over tokens first .. last - 1 of its own pages.

    Pages are `page` slots of the pool. `spans` holds per row where its pages begin in `table`, first and last. Output
    and log-sum-exp are float32; a row's do not depend on the other rows.
    """
    found = library()
    assert found is not None
    batch, kv, rows, size = q.shape
    q = q.contiguous()
    out, lse = _floats(*q.shape), _floats(*q.shape[:3])
    numbers = _numbers(batch, kv, rows, size, page, keys.shape[1], torch.get_num_threads())
    at = [_at(x) for x in (keys, values, table, spans)]
    found.handscroll_paged(KINDS[keys.dtype], _at(q), scale, *at, numbers, _at(out), _at(lse))
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
    found.handscroll_prefill(_at(q), _at(keys), _at(values), scale, numbers, _at(out), _at(lse))
    return out, lse


def can_multiply(x: Tensor, weight: Tensor) -> bool:
    """Whether `multiply` takes them: bfloat16 on a CPU, whole vectors, a matrix without gaps."""
    alike = x.dtype == weight.dtype and x.dtype in (torch.float32, torch.bfloat16)
    return alike and _fits(x, weight) and library() is not None


def can_multiply_rounded(x: Tensor, numbers: Tensor, scales: Tensor) -> bool:
    """The same for a matrix in int8, or in int4 with groups of 32."""
    if x.dtype not in (torch.float32, torch.bfloat16) or library() is None:
        return False
    if numbers.dtype == torch.int8:
        return _fits(x, numbers)
    grouped = scales.shape[-1] * GROUP == x.shape[-1] and scales.is_contiguous()
    return numbers.dtype == torch.uint8 and grouped and _fits(x, numbers, 2 * numbers.shape[1])


def multiply(
    x: Float[Tensor, "*rows D"],
    weight: Tensor,
    bias: Float[Tensor, "N"] | None,
    scales: Float[Tensor, "..."] | None = None,
) -> Float[Tensor, "*rows N"]:
    """x times weight transposed plus bias, with float32 sums; the weights are read once per 4 rows.

    Rounded weights come with their scales, as `kernels/rounding.py` makes them. A row's result does not depend on the
    other rows. In bfloat16 the weights are read once per 8 rows where the processor multiplies it.
    """
    found = library()
    assert found is not None
    outer, inner = weight.shape[0], x.shape[-1]
    out = torch.empty(*x.shape[:-1], outer, dtype=x.dtype, device="cpu")
    bias = None if bias is None else bias.to(x.dtype).contiguous()
    numbers = _numbers(x.numel() // inner, inner, outer, torch.get_num_threads())
    x = x.contiguous()
    if scales is not None:  # int8: float32, int4: bfloat16
        scales = scales.to(torch.float32 if weight.dtype == torch.int8 else torch.bfloat16).contiguous()
    narrow = int(x.dtype == torch.bfloat16)
    kind = KINDS[weight.dtype]
    found.handscroll_product(kind, narrow, _at(x), _at(weight), _at(scales), _at(bias), numbers, _at(out))
    return out


def can_norm(x: Tensor, weight: Tensor) -> bool:
    """Whether `norm` takes them: few tokens (..., T, D) without gaps on a CPU, in the dtype of the weight."""
    return weight.dtype == x.dtype and x.is_contiguous() and x.shape[-1] % LANES == 0 and _few(x)


def norm(x: Float[Tensor, "*rows D"], weight: Float[Tensor, "D"], epsilon: float) -> Float[Tensor, "*rows D"]:
    """Root-mean-square norm times weight, in one pass a row; rounded where `nn/norm.py` rounds."""
    found = library()
    assert found is not None
    out, width = torch.empty_like(x), x.shape[-1]
    numbers = _numbers(x.numel() // width, width)
    found.handscroll_norm(KINDS[x.dtype], _at(x), _at(weight), epsilon, numbers, _at(out))
    return out


def can_turn(x: Tensor, cosine: Tensor) -> bool:
    """Whether `turn` takes them: few tokens (B, H, T, E) on a CPU, tables in float32, halves of whole vectors."""
    fits = x.stride(-1) == 1 and x.shape[-1] % (2 * LANES) == 0 and cosine.dtype == torch.float32
    return fits and cosine.is_contiguous() and _few(x)


def turn(
    x: Float[Tensor, "B H T E"], cosine: Float[Tensor, "b T half"], sine: Float[Tensor, "b T half"]
) -> Float[Tensor, "B H T E"]:
    """x rotated by tables of one row or of every row; computed in float32."""
    found = library()
    assert found is not None
    out = torch.empty(x.shape, dtype=x.dtype, device="cpu")
    numbers, strides = _numbers(*x.shape, cosine.shape[0]), _numbers(*x.stride()[:3])
    found.handscroll_turn(KINDS[x.dtype], _at(x), _at(cosine), _at(sine.contiguous()), numbers, strides, _at(out))
    return out


def _few(x: Tensor) -> bool:
    """Whether x (..., T, D) is of few tokens, on the CPU, and no gradient is wanted of it."""
    placed = x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)
    return placed and x.dim() > 1 and x.shape[-2] <= FEW and bool(x.numel()) and _untracked(x) and library() is not None


@cache
def _narrow_products() -> bool:
    found = library()
    return found is not None and bool(found.handscroll_has_prefill())


def _fits(x: Tensor, weight: Tensor, inner: int | None = None) -> bool:
    """Whether rows are whole vectors on the CPU and go with the matrix of `inner` columns."""
    inner = weight.shape[1] if inner is None else inner
    placed = x.device.type == weight.device.type == "cpu" and bool(x.numel())
    return placed and x.shape[-1] == inner and inner % LANES == 0 and weight.is_contiguous()


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


def _at(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _numbers(*values: int) -> ctypes.Array:
    return (ctypes.c_int64 * len(values))(*values)
