"""Attention of many rows over common keys in tiles, against float64."""

import math

import pytest
import torch

from handscroll.kernels.native import calls
from handscroll.kernels.native.library import library, reason
from handscroll.nn.marks import Marks
from handscroll.nn.span import Span

pytestmark = pytest.mark.skipif(library() is None, reason=f"no compiled kernels: {reason()}")
PAIRS = [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.float32, torch.float16)]


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def oracle(q, keys, values):
    """For each query head (B, H, T, E) the kv head that it shares."""
    groups = q.shape[1] // keys.shape[1]
    keys, values = (x.double().repeat_interleave(groups, dim=1) for x in (keys, values))
    scores = q.double() @ keys.transpose(-1, -2)
    return scores.softmax(-1) @ values, scores.logsumexp(-1)


def tiled(q, span):
    return calls.decode_runs(q, calls.Runs.of([(span, 0, span.keys.shape[2])]), many=True)


@pytest.mark.parametrize(("dtype", "kept"), PAIRS)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("groups", "rows", "length", "size"),
    [(3, 17, 1000, 64), (3, 18, 257, 80), (3, 16, 1, 16), (3, 19, 2049, 128), (3, 5, 63, 48)]
    + [(1, rows, 200, 64) for rows in (11, 12, 13, 14, 19, 35, 36, 37, 43)],  # tiles of 4 to 6 rows, and none
)
def test_tiles_equal_float64(monkeypatch, dtype, kept, threads, groups, rows, length, size):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    kv = 2
    q = (random(1, groups * kv, rows, size) * 2 / math.sqrt(size)).to(dtype)
    keys, values = (random(1, kv, length + 5, size, seed=n).to(kept)[:, :, 2 : length + 2] for n in (1, 2))
    span = Span(keys, values, Marks.run(0, length))
    out, lse = tiled(q, span)
    want, want_lse = oracle(q, keys, values)
    torch.testing.assert_close(out.double(), want, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(lse.double(), want_lse, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(("dtype", "kept"), PAIRS)
@pytest.mark.parametrize("tokens", [1, 2])
def test_batch_rows_over_keys_that_all_read(dtype, kept, tokens):
    """Branches: their common past is one run without copies (stride 0), which is read once for all."""
    q = (random(8, 14, tokens, 64) / 4).to(dtype)
    keys, values = (random(1, 2, 900, 64, seed=n).to(kept).expand(8, -1, -1, -1) for n in (1, 2))
    span = Span(keys, values, Marks.run(0, 900))
    out, lse = calls.decode(q, span, 100, 900)
    want, want_lse = oracle(q, keys[:, :, 100:], values[:, :, 100:])
    torch.testing.assert_close(out.double(), want, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(lse.double(), want_lse, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hard_numbers(dtype):
    """Scores too far apart for an exponential, equal scores, and what is no number."""
    q, keys, values = random(1, 4, 25, 32), random(1, 2, 300, 32, seed=1), random(1, 2, 300, 32, seed=2)
    keys[:, :, 7], keys[:, :, 250] = 1e4, -1e4
    q, keys, values = (x.to(dtype) for x in (q, keys, values))
    out, lse = tiled(q, Span(keys, values, Marks.run(0, 300)))
    want, want_lse = oracle(q, keys, values)
    torch.testing.assert_close(out.double(), want, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(lse.double(), want_lse, rtol=5e-6, atol=2e-6)
    out, _ = tiled(torch.zeros_like(q), Span(keys, values, Marks.run(0, 300)))
    mean = values.double().mean(dim=2, keepdim=True).repeat_interleave(2, dim=1).expand(-1, -1, 25, -1)
    torch.testing.assert_close(out.double(), mean, rtol=1e-5, atol=1e-5)
    broken = keys.clone()
    broken[:, :, 123] = math.nan
    out, lse = tiled(q, Span(broken, values, Marks.run(0, 300)))
    assert out.isnan().all() and lse.isnan().all()
