"""The compiled kernels against float64, what they refuse, and life without a compiler."""

import math
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from handscroll.base.errors import ConfigError
from handscroll.kernels.native import calls
from handscroll.kernels.native import library as module
from handscroll.kernels.native.library import library, reason
from handscroll.kernels.registry import recording, without
from handscroll.kernels.rounding import from_int4, from_int4_columns, from_int8, to_int4, to_int4_columns, to_int8
from handscroll.kernels.runs import OVER, Scores, forward
from handscroll.nn import attend as kernels
from handscroll.nn.linear import Linear
from handscroll.nn.marks import Marks
from handscroll.nn.mask import Causal, Window
from handscroll.nn.span import Span

needs_library = pytest.mark.skipif(library() is None, reason=f"no compiled kernels: {reason()}")
needs_narrow = pytest.mark.skipif(
    library() is None or not calls._narrow_products(), reason="this processor has no AVX-512 BF16"
)


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def oracle(q, keys, values, allowed=None):
    scores = q.double() @ keys.double().transpose(-1, -2)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -math.inf)
    return scores.softmax(-1) @ values.double(), scores.logsumexp(-1)


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "shape", [(1, 3, 3, 1000, 64), (2, 2, 7, 257, 80), (1, 1, 1, 1, 16), (1, 2, 16, 4097, 128), (3, 1, 5, 63, 32)]
)
def test_decode_equals_float64(monkeypatch, dtype, threads, shape):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    batch, kv, rows, length, size = shape
    q = random(batch, kv, rows, size) * 2 / math.sqrt(size)
    room = [random(batch, kv, length + 5, size, dtype=dtype, seed=n) for n in (1, 2)]
    keys, values = (x[:, :, 2 : length + 2] for x in room)  # a part of a larger buffer, as caches hold them
    q = q.to(torch.float32 if dtype == torch.float16 else dtype)
    span = Span(keys, values, Marks.run(0, length))
    assert not calls.refuses_decode(q, span)
    out, lse = calls.decode(q, span, 0, length)
    want, want_lse = oracle(q, keys, values)
    torch.testing.assert_close(out.double(), want, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(lse.double(), want_lse, rtol=1e-6, atol=2e-6)


@needs_library
def test_decode_of_extreme_scores():
    """Scores of +-1e4: the largest key wins, nothing overflows; equal scores share evenly."""
    q = torch.full((1, 1, 2, 16), 100.0)
    keys = torch.full((1, 1, 300, 16), -6.25)
    keys[0, 0, 170] = 6.25
    values = random(1, 1, 300, 16)
    span = Span(keys, values, Marks.run(0, 300))
    out, lse = calls.decode(q, span, 0, 300)
    torch.testing.assert_close(out[0, 0, 0], values[0, 0, 170])
    torch.testing.assert_close(lse[0, 0, 0], torch.tensor(1e4))
    out, _ = calls.decode(torch.zeros_like(q), span, 0, 300)
    torch.testing.assert_close(out[0, 0, 1], values[0, 0].mean(dim=0))


@needs_library
def test_what_is_no_number_stays_so():
    """Damaged weights must be seen: a key that is no number is not a key that nobody sees."""
    q, keys = random(1, 1, 3, 32), random(1, 1, 300, 32)
    keys[0, 0, 100, 3] = math.nan
    out, lse = calls.decode(q, Span(keys, keys, Marks.run(0, 300)), 0, 300)
    assert bool(out.isnan().all()) and bool(lse.isnan().all())
    if calls._narrow_products():
        out, lse = calls.prefill(*(x.bfloat16() for x in (q, keys, keys)), 1.0, False)
        assert bool(out.isnan().all()) and bool(lse.isnan().all())


@needs_library
def test_results_are_float32_whatever_the_default(monkeypatch):
    q, keys = random(1, 1, 3, 32), random(1, 1, 300, 32)
    want = calls.decode(q, Span(keys, keys, Marks.run(0, 300)), 0, 300)
    torch.set_default_dtype(torch.float64)
    try:
        got = calls.decode(q, Span(keys, keys, Marks.run(0, 300)), 0, 300)
    finally:
        torch.set_default_dtype(torch.float32)
    assert got[0].dtype == got[1].dtype == torch.float32
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [3, 40])
def test_values_alone_may_want_a_gradient(count, dtype):
    """As with LoRA on the values of the first layer: no kernel without a graph may take it."""
    q, keys, values = (random(1, 2, count, 32, dtype=dtype, seed=n) for n in range(3))
    values.requires_grad_()
    out, _ = kernels.attend(q, [Span(keys, values, Marks.run(0, count))], Causal(), Marks.run(0, count))
    out.float().square().sum().backward()
    assert values.grad is not None and bool(values.grad.any())


@needs_narrow
@pytest.mark.parametrize("square", [True, False])
@pytest.mark.parametrize(
    "shape",
    [
        (1, 9, 3, 300, 300, 64),
        (2, 4, 2, 70, 513, 80),
        (1, 2, 1, 1, 5, 16),
        (1, 3, 3, 600, 600, 128),
        (1, 6, 1, 257, 1000, 32),
        (1, 2, 1, 130, 700, 96),
    ],
)
def test_prefill_equals_float64(shape, square):
    batch, heads, kv, count, length, size = shape
    q = random(batch, count, heads, size, dtype=torch.bfloat16).transpose(1, 2)
    keys, values = (random(batch, kv, length + 3, size, dtype=torch.bfloat16, seed=n)[:, :, :length] for n in (1, 2))
    out, lse = calls.prefill(q, keys, values, 0.7 / math.sqrt(size), square)
    wide = [x.repeat_interleave(heads // kv, dim=1) for x in (keys, values)]
    allowed = torch.ones(count, length, dtype=torch.bool).tril(length - count) if square else None
    want, want_lse = oracle(q.double() * 0.7 / math.sqrt(size), *wide, allowed)
    torch.testing.assert_close(lse.double(), want_lse, rtol=1e-6, atol=4e-6)
    error = (out.double() - want).abs().max() / want.abs().max()
    assert error < 2**-8  # the output's own rounding, and that of the weights


@needs_narrow
@pytest.mark.parametrize("square", [True, False])
@pytest.mark.parametrize("shape", [(1, 6, 2, 300, 300, 64), (2, 2, 1, 70, 513, 80), (1, 2, 1, 1, 5, 16)])
def test_prefill_multiplies_float32_by_float16(shape, square):
    """Keys with a large common part, as biases make them: a rounding of keys or queries to bfloat16 would be seen.

    Only weights and values are rounded; of the queries, 16 bits count.
    """
    batch, heads, kv, count, length, size = shape
    q = random(batch, count, heads, size).transpose(1, 2)
    keys, values = (random(batch, kv, length + 3, size, seed=n) for n in (1, 2))
    keys = (keys + 40 * random(size, seed=3)).half()[:, :, :length]
    values = values.half()[:, :, :length]
    assert not calls.refuses_prefill(q, keys, values)
    out, lse = calls.prefill(q, keys, values, 1 / math.sqrt(size), square)
    assert out.dtype == torch.float32
    wide = [x.repeat_interleave(heads // kv, dim=1) for x in (keys, values)]
    allowed = torch.ones(count, length, dtype=torch.bool).tril(length - count) if square else None
    want, want_lse = oracle(q.double() / math.sqrt(size), *wide, allowed)
    torch.testing.assert_close(lse.double(), want_lse, rtol=1e-6, atol=5e-4)
    assert (out.double() - want).abs().max() / want.abs().max() < 2**-8


@needs_narrow
def test_bfloat16_training_takes_the_compiled_forward():
    """The backward of torch's kernel works from the compiled forward's output and log-sum-exp."""
    tensors = [random(1, heads, 70, 32, dtype=torch.bfloat16, seed=n) for n, heads in enumerate((4, 2, 2))]
    grads = []
    for others in ((), ("compiled",)):
        q, keys, values = (x.clone().requires_grad_() for x in tensors)
        with without(OVER, *others), recording() as made:
            out, _ = kernels.attend(q, [Span(keys, values, Marks.run(0, 70))], Causal(), Marks.run(0, 70))
        assert {choice.kernel for choice in made if choice.operation == OVER.name} == {
            "torch" if others else "compiled"
        }
        out.float().square().sum().backward()
        grads.append([x.grad.float() for x in (q, keys, values)])
    for got, want in zip(*grads, strict=True):
        assert (got - want).norm() / want.norm() < 0.02


@needs_library
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("bias", [True, False])
def test_products_equal_float64(rows, bias):
    layer = Linear(592, 100, bias=bias).to(torch.bfloat16)
    x = random(rows, 1, 592, dtype=torch.bfloat16)
    with torch.no_grad():
        assert not calls.refuses_product(x, layer.weight)
    with torch.no_grad():
        got = layer(x)
    want = F.linear(x.double(), layer.weight.double(), layer.bias.double() if bias else None)
    torch.testing.assert_close(got.double(), want, rtol=2**-8, atol=1e-5)
    torch.testing.assert_close(got, layer(x).detach(), rtol=2**-7, atol=2**-7)  # with a gradient: torch's own product


@pytest.mark.parametrize("mask", [Causal(), Causal() & Window(40)])
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_folded_attention_equals_the_oracle_under_masks(mask, count, dtype):
    """New tokens after 300 cached ones: unmasked pieces go to the compiled kernel, the rest to products."""
    q = random(1, 6, count, 32, dtype=dtype)
    spans = [
        Span(random(1, 2, n, 32, dtype=dtype, seed=n), random(1, 2, n, 32, dtype=dtype, seed=n + 1), Marks.run(at, n))
        for at, n in ((0, 200), (200, 100 + count))
    ]
    marks = Marks.run(300, count)
    got, got_lse = kernels.attend(q, spans, mask, marks, 0.2, "fold")
    want, want_lse = kernels.attend(q, spans, mask, marks, 0.2, "eager")
    limit = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float64: 1e-12}[dtype]
    torch.testing.assert_close(got, want, rtol=limit, atol=limit)
    torch.testing.assert_close(got_lse, want_lse, rtol=limit, atol=limit)


def int8_span(*shape, length, seed=0):
    """A span of int8 keys and values inside longer buffers."""
    pairs = [to_int8(random(*shape, seed=seed + n)) for n in (1, 2)]
    keys, values = (x[:, :, :length] for x, _ in pairs)
    key_scales, value_scales = (s[:, :, :length] for _, s in pairs)
    return Span(keys, values, Marks.run(0, length), scales=(key_scales, value_scales))


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("run", "rows", "size"),
    [
        ((100, 600), 5, 64),
        ((0, 650), 3, 64),
        ((0, 256), 4, 64),
        ((7, 8), 1, 16),
        ((3, 74), 4, 80),
        ((1, 650), 9, 128),
        ((2, 201), 3, 128),
        ((0, 65), 2, 32),
        ((5, 130), 6, 272),
    ],
)
def test_decode_reads_int8_as_what_it_stands_for(run, rows, size, dtype):
    """A run in the middle of a span whose buffers are longer, against float64 over the widened numbers.

    Queries and weights are rounded to 16 bits; keys and values to 8, which costs about 400 times as much.
    """
    span = int8_span(2, 3, 700, size, length=650)
    q = (random(2, 3, rows, size) / math.sqrt(size)).to(dtype)
    assert not calls.refuses_decode(q, span)
    out, lse = calls.decode(q, span, *run)
    want, want_lse = oracle(q, *span.read(*run, torch.float64))
    torch.testing.assert_close(out.double(), want, rtol=0, atol=4e-5)
    torch.testing.assert_close(lse.double(), want_lse, rtol=0, atol=1e-4)
    exact = [random(2, 3, 700, size, seed=n)[:, :, run[0] : run[1]] for n in (1, 2)]
    far = (oracle(q, *exact)[0] - want).square().mean().sqrt()
    assert (out.double() - want).square().mean().sqrt() < far / 40


@needs_library
def test_int8_of_extreme_scores_and_of_no_numbers():
    keys, key_scales = to_int8(torch.full((1, 1, 300, 64), -6.25))
    keys[0, 0, 170] = 127
    values, value_scales = to_int8(random(1, 1, 300, 64))
    q = torch.full((1, 1, 2, 64), 25.0)

    def read(q, key_scales, value_scales):
        return calls.decode(q, Span(keys, values, Marks.run(0, 300), scales=(key_scales, value_scales)), 0, 300)

    out, lse = read(q, key_scales, value_scales)
    wide = from_int8(values, value_scales, torch.float32)[0, 0]
    torch.testing.assert_close(out[0, 0, 0], wide[170], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lse[0, 0, 0], torch.tensor(1e4))
    out, _ = read(torch.zeros_like(q), key_scales, value_scales)
    torch.testing.assert_close(out[0, 0, 1], wide.mean(dim=0), rtol=0, atol=1e-5)
    for wrong in ((q * math.nan, key_scales, value_scales), (q, key_scales * math.nan, value_scales)):
        out, lse = read(*wrong)
        assert bool(out.isnan().all()) and bool(lse.isnan().all())
    value_scales = value_scales.clone()
    value_scales[0, 0, 100] = math.nan
    assert bool(read(torch.zeros_like(q), key_scales, value_scales)[0].isnan().all())


def int4_span(*shape, seed=0):
    """A span of int4 keys and values inside longer buffers, and what it stands for."""
    keys, values = (random(*shape, seed=seed + n) + n for n in (1, 2))
    (keys, key_scales), (values, value_scales) = to_int4_columns(keys), to_int4(values)
    length = shape[2] - 64
    keys, values, value_scales = (x[:, :, :length] for x in (keys, values, value_scales))
    return Span(keys, values, Marks.run(0, length), scales=(key_scales[:, :, : length // 32], value_scales))


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("run", "rows", "size"),
    [
        ((0, 640), 3, 64),
        ((0, 637), 3, 64),
        ((64, 576), 4, 64),
        ((96, 600), 5, 96),
        ((32, 33), 1, 32),
        ((0, 637), 4, 128),
        ((0, 256), 3, 128),
        ((32, 75), 1, 128),
        ((0, 201), 6, 256),
        ((64, 113), 2, 64),
        ((0, 99), 7, 160),
    ],
)
def test_decode_reads_int4_as_what_it_stands_for(run, rows, size, dtype):
    """Queries and weights are rounded to 16 bits; keys and values to 4, which costs about 1,200 times as much."""
    span = int4_span(2, 3, 704, size)
    q = (random(2, 3, rows, size) / 8).to(dtype)
    assert not calls.refuses_decode(q, span, run[0])
    out, lse = calls.decode(q, span, *run)
    want, want_lse = oracle(q, *span.read(*run, torch.float64))
    torch.testing.assert_close(out.double(), want, rtol=0, atol=3e-4)
    torch.testing.assert_close(lse.double(), want_lse, rtol=0, atol=3e-4)
    exact = [random(2, 3, 704, size, seed=n)[:, :, run[0] : run[1]] + n for n in (1, 2)]
    far = (oracle(q, *exact)[0] - want).square().mean().sqrt()
    assert (out.double() - want).square().mean().sqrt() < far / 600


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int8, torch.uint8])
def test_a_row_has_the_same_bits_alone_and_among_others(dtype):
    """Rows of a head are read in groups of up to eight."""
    keys, values = (random(1, 1, 300, 64, seed=n).to(dtype) for n in (1, 2))
    span = Span(keys, values, Marks.run(0, 300))
    if dtype == torch.int8:
        span = int8_span(1, 1, 384, 64, length=320)
    elif dtype == torch.uint8:
        span = int4_span(1, 1, 384, 64)
    q = random(1, 1, 9, 64) / 8
    alone = torch.cat([calls.decode(q[:, :, n : n + 1], span, 0, 290)[0] for n in range(9)], dim=2)
    for count in range(1, 10):
        assert torch.equal(calls.decode(q[:, :, :count], span, 0, 290)[0], alone[:, :, :count])


@needs_library
@pytest.mark.parametrize("size", [64, 96, 128])
def test_int4_values_of_no_numbers_and_of_steps_below_zero(size):
    keys, values = random(1, 1, 64, size), random(1, 1, 64, size)
    (keys, key_scales), (values, value_scales) = to_int4_columns(keys), to_int4(values)
    q = torch.zeros(1, 1, 2, size)

    def read(scales):
        span = Span(keys, values, Marks.run(0, 64), scales=(key_scales, scales))
        return calls.decode(q, span, 0, 40)[0][0, 0, 1]

    steps = value_scales.clone()
    steps[0, 0, 7, 0] = 0.0
    none = read(steps)
    steps[0, 0, 7, 0] = -0.0
    assert torch.equal(read(steps), none)
    last = size // 32 - 1
    steps[0, 0, 39, 0, last] = math.nan
    got = read(steps)
    assert bool(got[32 * last :].isnan().all()) and torch.equal(got[: 32 * last], none[: 32 * last])


@needs_library
def test_int4_of_extreme_scores_of_equal_numbers_and_of_no_numbers():
    keys, values = torch.full((1, 1, 320, 64), -6.25), random(1, 1, 320, 64)
    keys[0, 0, 170] = 6.25
    values[0, 0, 96:128] = 7.01  # bfloat16 has no such lowest number, so the step of these is below 0

    def read(q, keys, values):
        (keys, key_scales), (values, value_scales) = to_int4_columns(keys), to_int4(values)
        span = Span(keys, values, Marks.run(0, 320), scales=(key_scales, value_scales))
        return *calls.decode(q, span, 0, 300), *span.read(0, 300, torch.float32)

    q = torch.full((1, 1, 2, 64), 25.0)
    out, lse, wide_keys, wide = read(q, keys, values)
    torch.testing.assert_close(out[0, 0, 0], wide[0, 0, 170], rtol=0, atol=1e-3)
    torch.testing.assert_close(lse[0, 0, 0], 25 * wide_keys[0, 0, 170].sum(), rtol=1e-4, atol=0)
    torch.testing.assert_close(read(q * 0, keys, values)[0][0, 0, 1], wide[0, 0].mean(dim=0), rtol=0, atol=1e-4)
    keys[0, 0, 100, 3] = math.nan
    out, lse, *_ = read(q, keys, values)
    assert bool(out.isnan().all()) and bool(lse.isnan().all())
    out, lse, *_ = read(q * math.nan, values, values)
    assert bool(out.isnan().all()) and bool(lse.isnan().all())
    values[0, 0, 100, 3] = math.nan
    assert bool(read(q * 0, values * 0 + 1, values)[0][..., :32].isnan().all())


def test_int4_is_read_from_any_token_on():
    """Also where no group begins, which the compiled kernel leaves to the other path."""
    span = int4_span(1, 2, 256, 32)
    keys, values = span.read(0, 192, torch.float32)
    assert calls.refuses_decode(random(1, 2, 1, 32), span, 40)
    for first, last in ((40, 41), (40, 100), (31, 192), (64, 96)):
        got = span.read(first, last, torch.float32)
        assert torch.equal(got[0], keys[:, :, first:last]) and torch.equal(got[1], values[:, :, first:last])
    marks, q = Marks.run(191, 1), random(1, 4, 1, 32)
    got, want = (
        kernels.attend(q, [s], Causal() & Window(150), marks, 0.2, "fold")[0]
        for s in (span, Span(keys, values, span.marks))
    )
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [32, 96, 20])
def test_rounding_to_int4(size):
    x = random(4, 64, size) * 3 + 40  # far from zero: bfloat16 holds the lowest number to 1 in 256
    x[0, :, 0] = 0
    x[1, :, : min(size, 32)] = 7
    numbers, scales = to_int4(x)
    assert numbers.shape == (4, 64, size // 2) and scales.shape == (4, 64, 2, -(-size // 32))
    steps = scales[..., 0, :].float().repeat_interleave(min(size, 32), -1)
    error = (from_int4(numbers, scales, torch.float32) - x).abs()
    assert bool((error <= 0.5 * steps * 1.06 + x.abs() / 256).all()) and error.max() > 0
    assert torch.equal(from_int4(numbers, scales, torch.float32)[1, :, : min(size, 32)], x[1, :, : min(size, 32)])
    columns, column_scales = to_int4_columns(x)
    assert columns.shape == numbers.shape and column_scales.shape == (4, 2, 2, size)
    turned = from_int4(*to_int4(x.mT.contiguous()), torch.float32).mT
    torch.testing.assert_close(from_int4_columns(columns, column_scales, torch.float32), turned)


def test_int4_refuses_odd_rows_and_keeps_what_is_no_number():
    with pytest.raises(ConfigError, match=r"\b33\b"):
        to_int4(random(2, 33))
    with pytest.raises(ConfigError, match=r"\b5\b"):
        to_int4_columns(random(32, 5))
    x = random(2, 64)
    x[0, 3] = math.nan
    assert bool(from_int4(*to_int4(x), torch.float32)[0, :32].isnan().all())


def test_rounding_to_int8():
    x = random(4, 7, 33)
    x[0, 0] = 0
    numbers, scales = to_int8(x)
    error = (from_int8(numbers, scales, torch.float32) - x).abs()
    assert bool((error <= 0.5001 * scales.unsqueeze(-1)).all()) and error.max() > 0
    assert numbers.abs().max() == 127 and not bool(numbers[0, 0].any())
    torch.testing.assert_close(scales, x.abs().amax(-1) / 127)


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 5, 40])
def test_keys_before_the_diagonal_are_a_run_of_their_own_for_torch(count):
    """Float32 has no kernel that takes both; the parts are joined exactly."""
    q, keys, values = random(1, 4, count, 32), random(1, 2, 90, 32, seed=1), random(1, 2, 90, 32, seed=2)
    with recording() as made:
        out, lse = forward(q, keys, values, None, 0.3, square=True)
    assert {choice.kernel for choice in made} == {"two runs", "torch"}
    whole, _ = OVER.kernel("products").run(q, keys, values, Scores(0.3, square=True))
    torch.testing.assert_close(whole, out, rtol=1e-5, atol=2e-6)
    allowed = torch.ones(count, 90, dtype=torch.bool).tril(90 - count)
    want, want_lse = oracle(q * 0.3, *(x.repeat_interleave(2, dim=1) for x in (keys, values)), allowed)
    torch.testing.assert_close(out.double(), want, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(lse.double(), want_lse, rtol=1e-5, atol=2e-6)


@torch.no_grad()
def test_what_the_kernels_do_not_take():
    def span(x):
        return Span(x, x, Marks.run(0, x.shape[2]))

    q = random(1, 2, 3, 32)
    assert calls.refuses_decode(q.double(), span(q.double()))
    assert calls.refuses_decode(q, span(q.bfloat16()))
    assert calls.refuses_decode(q.bfloat16(), span(q.half()))
    assert calls.refuses_decode(q, span(q.to(torch.int8)))  # without scales
    wide = int8_span(1, 1, 3, 528, length=3)  # sums of 32 bits would not hold it
    assert calls.refuses_decode(random(1, 1, 2, 528), wide)
    assert calls.refuses_decode(q[..., :20], span(q[..., :20].contiguous()))
    assert calls.refuses_decode(q, span(random(1, 2, 9, 32)[:, :, ::2]))
    assert calls.refuses_prefill(q, q, q)
    assert calls.refuses_prefill(q.bfloat16(), q.half(), q.half())
    assert calls.refuses_product(q.double(), random(4, 32).double())
    assert calls.refuses_product(q, random(4, 40))
    assert calls.refuses_product(q[..., :20], random(4, 20))


def test_without_a_compiler_there_is_a_reason(monkeypatch):
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    assert module._loaded.__wrapped__() == (None, "no C++ compiler found (c++, g++, clang++)")


def test_a_compiler_that_fails_is_quoted(monkeypatch, tmp_path):
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho the disk is on fire >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(module.shutil, "which", lambda name: str(broken))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found, why = module._loaded.__wrapped__()
    assert found is None and "the disk is on fire" in why
    assert not list((tmp_path / "cache" / "handscroll").rglob("*.so"))


@needs_library
def test_switched_off_gives_the_same_answer():
    """A fresh process with HANDSCROLL_NATIVE=0: plain torch, the same attention."""
    code = (
        "import torch; from handscroll.nn import attend as kernels; from handscroll.nn.span import Span;"
        "from handscroll.nn.marks import Marks; from handscroll.nn.mask import Causal;"
        "from handscroll.kernels.native.library import reason;"
        "g = torch.Generator().manual_seed(0); q, k, v = (torch.randn(1, 2, n, 32, generator=g) for n in (1, 90, 90));"
        "out, _ = kernels.attend(q, [Span(k, v, Marks.run(0, 90))], Causal(), Marks.run(89, 1));"
        "print(repr(out.sum().item()), reason())"
    )
    answers = []
    for switch in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"HANDSCROLL_NATIVE": switch},
            capture_output=True,
            text=True,
            check=True,
        )
        number, _, why = done.stdout.partition(" ")
        answers.append((float(number), why))
    assert answers[0][0] == pytest.approx(answers[1][0], rel=1e-5)
    assert "switched off" in answers[0][1] and ".so" in answers[1][1]
