"""Triton kernels for one new token of every row over a long cache; they read its length from the GPU's memory.

So one recorded graph serves every length (`nn/compiled/graph.py`). The keys are divided among many programs. Each
program folds the query heads of a kv head into the rows of one product; partial results are joined by log-sum-exp
(Dao et al. 2023, "Flash-Decoding"). Scores, sums and the output before rounding are float32.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportArgumentType=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 64  # keys of a step
ROWS = 16  # least query rows of a product
PROGRAMS = 256  # that share rows, kv heads and keys (4.2 TB/s of an H200's 4.3; with 512 programs: 3.9)
LOG2E = 1.4426950408889634


def attend(
    q: Float[Tensor, "B H 1 E"],
    keys: Float[Tensor, "B K capacity E"],
    values: Float[Tensor, "B K capacity E"],
    slot: Int[Tensor, "1"],
    scale: float,
    window: int = 0,
) -> tuple[Float[Tensor, "B H 1 E"], Float[Tensor, "B H 1"]]:
    """Softmax attention over keys 0 .. slot, or over the last `window` of them (0: all), and its log-sum-exp."""
    batch, heads, _, size = q.shape
    kv = keys.shape[1]
    splits = max(1, PROGRAMS // (batch * kv))
    groups = heads // kv
    q = q.contiguous()
    parts = torch.empty(batch * heads, splits, size, dtype=torch.float32, device=q.device)
    sums = torch.empty(batch * heads, splits, dtype=torch.float32, device=q.device)
    padded = triton.next_power_of_2(size)
    _split[(batch * kv, splits)](
        q, keys, values, parts, sums, slot, scale * LOG2E, *keys.stride()[:3], *values.stride()[:3],
        kv, window, groups, size, splits,
        ROWS=max(ROWS, triton.next_power_of_2(groups)), PADDED=padded, BLOCK=BLOCK, num_warps=4, num_stages=3,
    )  # fmt: skip
    out = torch.empty_like(q)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    _join[(batch * heads,)](parts, sums, out, lse, size, splits, PADDED=padded, SPLITS=triton.next_power_of_2(splits))
    return out, lse


def append(
    keys: Float[Tensor, "B K capacity E"],
    values: Float[Tensor, "B K capacity E"],
    new_keys: Float[Tensor, "B K 1 E"],
    new_values: Float[Tensor, "B K 1 E"],
    slot: Int[Tensor, "1"],
) -> None:
    """Write a token's keys and values into the slot."""
    batch, kv, _, size = new_keys.shape
    _append[(batch * kv,)](
        keys, values, new_keys, new_values, slot, *keys.stride()[:3], *values.stride()[:3],
        *new_keys.stride()[:2], *new_values.stride()[:2], kv, size, PADDED=triton.next_power_of_2(size),
    )  # fmt: skip


def turn(
    x: Float[Tensor, "B H T E"], cosine: Float[Tensor, "b T half"], sine: Float[Tensor, "b T half"]
) -> Float[Tensor, "B H T E"]:
    """x with the first 2 x half numbers of each head rotated, in float32; the rest stays unchanged."""
    batch, heads, count, size = x.shape
    out, half = torch.empty(x.shape, dtype=x.dtype, device=x.device), cosine.shape[-1]
    row = 0 if cosine.shape[0] == 1 else count * half
    _turn[(batch * heads * count,)](
        x, cosine.contiguous(), sine.contiguous(), out, *x.stride()[:3], row, heads, count, size, half,
        PADDED=triton.next_power_of_2(half), REST=triton.next_power_of_2(max(1, size - 2 * half)),
    )  # fmt: skip
    return out


def norm(x: Float[Tensor, "*rows D"], weight: Float[Tensor, "D"], epsilon: float) -> Float[Tensor, "*rows D"]:
    """Root-mean-square norm times weight of a few rows, one program per row; computed in float32."""
    out, width = torch.empty_like(x), x.shape[-1]
    _norm[(x.numel() // width,)](x, weight, out, epsilon, width, PADDED=triton.next_power_of_2(width), num_warps=8)
    return out


@triton.jit
def _split(  # noqa: PLR0913 - pointers, strides and sizes
    q_at, keys_at, values_at, parts_at, sums_at, slot_at, scale,
    key_row, key_head, key_token, value_row, value_head, value_token, kv, window, groups, size, splits,
    ROWS: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    pair, split = tl.program_id(0), tl.program_id(1)
    row, head = (pair // kv).to(tl.int64), (pair % kv).to(tl.int64)
    length = tl.load(slot_at).to(tl.int32) + 1
    first = tl.where(window > 0, tl.maximum(length - window, 0), 0)
    each = tl.cdiv(tl.cdiv(length - first, splits), BLOCK) * BLOCK
    start = first + split * each
    stop = tl.minimum(start + each, length)
    place, column = tl.arange(0, ROWS), tl.arange(0, PADDED)
    inside, real = column < size, place < groups
    rows = (row * kv + head) * groups + place
    q = tl.load(q_at + rows[:, None] * size + column[None, :], mask=real[:, None] & inside[None, :], other=0.0)
    keys_at += row * key_row + head * key_head
    values_at += row * value_row + head * value_head
    most = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, PADDED], tl.float32)
    for at in range(start, stop, BLOCK):
        tokens = at + tl.arange(0, BLOCK)
        seen = tokens < stop
        keys = tl.load(
            keys_at + tokens[None, :] * key_token + column[:, None], mask=seen[None, :] & inside[:, None], other=0.0
        )
        scores = tl.where(seen[None, :], tl.dot(q, keys) * scale, float("-inf"))
        more = tl.maximum(most, tl.max(scores, 1))
        weights = tl.exp2(scores - more[:, None])
        shrink = tl.exp2(most - more)
        values = tl.load(
            values_at + tokens[:, None] * value_token + column[None, :],
            mask=seen[:, None] & inside[None, :],
            other=0.0,
        )
        total = total * shrink + tl.sum(weights, 1)
        out = out * shrink[:, None] + tl.dot(weights.to(values.dtype), values)
        most = more
    some = total > 0
    out = tl.where(some[:, None], out / tl.where(some, total, 1.0)[:, None], 0.0)
    sums = tl.where(some, most + tl.log2(tl.where(some, total, 1.0)), float("-inf"))
    tl.store(sums_at + rows * splits + split, sums, mask=real)
    places = (rows * splits + split)[:, None] * size + column[None, :]
    tl.store(parts_at + places, out, mask=real[:, None] & inside[None, :])


@triton.jit
def _join(  # noqa: PLR0913 - pointers and sizes
    parts_at, sums_at, out_at, lse_at, size, splits, PADDED: tl.constexpr, SPLITS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    split, column = tl.arange(0, SPLITS), tl.arange(0, PADDED)
    sums = tl.load(sums_at + row * splits + split, mask=split < splits, other=float("-inf"))
    most = tl.max(sums, 0)
    weights = tl.exp2(sums - most)
    places = (row * splits + split)[:, None] * size + column[None, :]
    parts = tl.load(parts_at + places, mask=(split < splits)[:, None] & (column < size)[None, :], other=0.0)
    total = tl.sum(weights, 0)
    out = tl.sum(parts * weights[:, None], 0) / total
    tl.store(lse_at + row, (most + tl.log2(total)) * 0.6931471805599453)
    tl.store(out_at + row * size + column, out.to(out_at.dtype.element_ty), mask=column < size)


@triton.jit
def _append(  # noqa: PLR0913 - pointers, strides and sizes
    keys_at, values_at, new_keys_at, new_values_at, slot_at,
    key_row, key_head, key_token, value_row, value_head, value_token,
    new_key_row, new_key_head, new_value_row, new_value_head, kv, size, PADDED: tl.constexpr,
):  # fmt: skip
    pair = tl.program_id(0)
    row, head, slot = (pair // kv).to(tl.int64), (pair % kv).to(tl.int64), tl.load(slot_at)
    column = tl.arange(0, PADDED)
    inside = column < size
    new = tl.load(new_keys_at + row * new_key_row + head * new_key_head + column, mask=inside)
    tl.store(keys_at + row * key_row + head * key_head + slot * key_token + column, new, mask=inside)
    new = tl.load(new_values_at + row * new_value_row + head * new_value_head + column, mask=inside)
    tl.store(values_at + row * value_row + head * value_head + slot * value_token + column, new, mask=inside)


@triton.jit
def _turn(  # noqa: PLR0913 - pointers, strides and sizes
    x_at, cosine_at, sine_at, out_at, x_row, x_head, x_token, table_row, heads, count, size, half,
    PADDED: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64)
    token, head, row = place % count, (place // count) % heads, place // (count * heads)
    x_at += row * x_row + head * x_head + token * x_token
    out_at += place * size
    pair = tl.arange(0, PADDED)
    inside = pair < half
    table = row * table_row + token * half + pair
    cosine, sine = tl.load(cosine_at + table, mask=inside), tl.load(sine_at + table, mask=inside)
    first = tl.load(x_at + pair, mask=inside).to(tl.float32)
    second = tl.load(x_at + half + pair, mask=inside).to(tl.float32)
    kind = out_at.dtype.element_ty
    tl.store(out_at + pair, (first * cosine - second * sine).to(kind), mask=inside)
    tl.store(out_at + half + pair, (second * cosine + first * sine).to(kind), mask=inside)
    rest = 2 * half + tl.arange(0, REST)
    tl.store(out_at + rest, tl.load(x_at + rest, mask=rest < size), mask=rest < size)


@triton.jit
def _norm(x_at, weight_at, out_at, epsilon, width, PADDED: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, PADDED)
    inside = column < width
    x = tl.load(x_at + row * width + column, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_at + column, mask=inside, other=0.0).to(tl.float32)
    x = x * tl.rsqrt(tl.sum(x * x, 0) / width + epsilon)
    tl.store(out_at + row * width + column, (x * weight).to(out_at.dtype.element_ty), mask=inside)
