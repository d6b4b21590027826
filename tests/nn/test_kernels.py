"""Every kernel against the float64 oracle, with gradients, for every kind of mask and marks."""

import itertools
import math

import pytest
import torch

from handscroll.nn.cache import Cache, Span
from handscroll.nn.kernels import attend, choose, merge
from handscroll.nn.marks import Marks
from handscroll.nn.mask import Causal, Everything, Prefix, SameSegment, Sinks, Window

MASKS = {
    "causal": Causal(),
    "everything": Everything(),
    "window": Causal() & Window(5),
    "window+sinks": Causal() & (Window(5) | Sinks(2)),
    "prefix": Prefix(7) | Causal(),
    "packed": Causal() & SameSegment(),
}


def heads(batch, tokens, keys, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(batch, 8, tokens, 16, generator=generator, dtype=dtype)
    k, v = (torch.randn(batch, 2, keys, 16, generator=generator, dtype=dtype) for _ in range(2))
    return q, k, v


def packed_marks(batch, tokens):
    index = torch.arange(tokens).expand(batch, -1).clone()
    index[0, -4:] = -1  # padding in one row only
    segment = (torch.arange(tokens) >= tokens // 3).long().expand(batch, -1)
    return Marks.of(index, segment)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kernel", ["fold", "tiles", "auto"])
@pytest.mark.parametrize(("tokens", "keys"), [(1, 33), (9, 33), (33, 33), (70, 200)])
def test_plain_runs_equal_the_oracle(mask, kernel, tokens, keys):
    q, k, v = heads(2, tokens, keys)
    spans, marks = [Span(k, v, Marks.run(0, keys))], Marks.run(keys - tokens, tokens)
    want, want_lse = attend(
        q.double(), [Span(k.double(), v.double(), spans[0].marks)], MASKS[mask], marks, kernel="eager"
    )
    out, lse = attend(q, spans, MASKS[mask], marks, kernel=None if kernel == "auto" else kernel)
    torch.testing.assert_close(out.double(), want, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(lse.double(), want_lse, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kernel", ["fold", "tiles"])
def test_padded_and_packed_rows_equal_the_oracle(mask, kernel):
    q, k, v = heads(3, 40, 40)
    marks = packed_marks(3, 40)
    spans = [Span(k, v, marks)]
    want, want_lse = attend(q, spans, MASKS[mask], marks, kernel="eager")
    out, lse = attend(q, spans, MASKS[mask], marks, kernel=kernel)
    torch.testing.assert_close(out, want, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(lse, want_lse, atol=2e-6, rtol=1e-5)
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("kernel", ["fold", "tiles"])
def test_several_spans_equal_one(kernel):
    q, k, v = heads(2, 8, 60)
    marks = Marks.run(52, 8)
    cuts = [(0, 20), (20, 21), (21, 60)]
    spans = [Span(k[:, :, a:b], v[:, :, a:b], Marks.run(a, b - a)) for a, b in cuts]
    for mask in MASKS.values():
        want, _ = attend(q, [Span(k, v, Marks.run(0, 60))], mask, marks, kernel="eager")
        out, _ = attend(q, spans, mask, marks, kernel=kernel)
        torch.testing.assert_close(out, want, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("packed", [False, True])
def test_gradients_equal_the_oracle(mask, packed):
    marks = packed_marks(2, 30) if packed else Marks.run(0, 30)
    grads = []
    for kernel in ("eager", None):
        q, k, v = (t.requires_grad_() for t in heads(2, 30, 30, torch.float64))
        out, _ = attend(q, [Span(k, v, marks)], MASKS[mask], marks, kernel=kernel)
        out.sin().sum().backward()
        grads.append([q.grad, k.grad, v.grad])
    for want, got in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-10)


def test_small_tiles_change_nothing(monkeypatch):
    q, k, v = heads(2, 50, 50)
    marks = packed_marks(2, 50)
    want, _ = attend(q, [Span(k, v, marks)], Causal(), marks, kernel="tiles")
    monkeypatch.setattr("handscroll.nn.kernels.TILE", 700)
    out, _ = attend(q, [Span(k, v, marks)], Causal(), marks, kernel="tiles")
    torch.testing.assert_close(out, want, atol=1e-6, rtol=1e-6)


def test_merge_with_an_empty_piece():
    out, lse = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3)
    nothing = torch.zeros(1, 2, 3, 4), torch.full((1, 2, 3), -math.inf)
    merged, merged_lse = merge([(out, lse), nothing])
    torch.testing.assert_close(merged, out)
    torch.testing.assert_close(merged_lse, lse)
    empty, _ = merge([nothing, nothing])
    assert torch.equal(empty, nothing[0])


def test_choice_is_explained():
    q, k, v = heads(1, 64, 64)
    choice = choose(q, [Span(k, v, Marks.run(0, 64))], Causal(), Marks.run(0, 64))
    assert choice.kernel == "causal" and "no mask" in choice.reason
    choice = choose(q, [Span(k, v, Marks.run(0, 64))], Causal() & Window(9), Marks.run(0, 64))
    assert choice.kernel == "tiles"


def test_chunked_appends_equal_the_whole():
    """A cache fed in pieces of every size gives what one whole call gives."""
    _, k, v = heads(2, 1, 48)
    q = torch.randn(2, 8, 48, 16)
    want, _ = attend(q, [Span(k, v, Marks.run(0, 48))], Causal(), Marks.run(0, 48), kernel="eager")
    for step in (1, 7, 17, 48):
        cache, outs = Cache(1), []
        for first in range(0, 48, step):
            last = min(first + step, 48)
            marks = Marks.run(first, last - first)
            spans = cache.append(0, k[:, :, first:last], v[:, :, first:last], marks)
            outs.append(attend(q[:, :, first:last], spans, Causal(), marks)[0])
            cache.commit()
        torch.testing.assert_close(torch.cat(outs, dim=2), want, atol=2e-6, rtol=1e-5)


def test_masks_by_hand():
    """Small masks written out."""
    run = Marks.run(0, 4)
    rows = {
        "causal": (Causal(), ["x...", "xx..", "xxx.", "xxxx"]),
        "window": (Causal() & Window(2), ["x...", "xx..", ".xx.", "..xx"]),
        "sinks": (Causal() & (Window(1) | Sinks(1)), ["x...", "xx..", "x.x.", "x..x"]),
        "prefix": (Prefix(3) | Causal(), ["xxx.", "xxx.", "xxx.", "xxxx"]),
    }
    for mask, picture in rows.values():
        want = torch.tensor([[mark == "x" for mark in row] for row in picture])
        assert torch.equal(mask.allowed(run, run, torch.device("cpu"))[0], want)


def test_bands_say_what_masks_say():
    """A band is a promise about the mask: both must allow the same pairs."""
    device = torch.device("cpu")
    for mask, (start, count) in itertools.product(MASKS.values(), [(0, 12), (5, 7), (11, 1)]):
        band = mask.band()
        if band is None:
            continue
        query, key = Marks.run(start, count), Marks.run(0, 12)
        gap = query.tensors(device)[0][0][:, None] - key.tensors(device)[0][0][None]
        low, high = band
        want = torch.ones_like(gap, dtype=torch.bool)
        want &= gap >= low if low is not None else True
        want &= gap <= high if high is not None else True
        assert torch.equal(mask.allowed(query, key, device)[0], want)
