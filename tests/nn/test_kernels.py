"""Every kernel against the float64 oracle, with gradients, for every kind of mask and marks."""

import itertools
import math

import pytest
import torch

from handscroll.cache.full import FullCache
from handscroll.kernels import runs as fused
from handscroll.kernels.merge import merge
from handscroll.nn.attend import attend
from handscroll.nn.marks import Marks
from handscroll.nn.mask import Causal, Window
from handscroll.nn.pieces import Piece, joined
from handscroll.nn.span import Span
from tests.masks import First
from tests.nn.material import MASKS, heads, packed_marks


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
    monkeypatch.setattr("handscroll.nn.pieces.QUERIES", 7)
    out, _ = attend(q, [Span(k, v, marks)], Causal(), marks, kernel="tiles")
    torch.testing.assert_close(out, want, atol=1e-6, rtol=1e-6)


def test_the_keys_before_the_diagonal_join_it_where_all_queries_see_them():
    square = Piece(6, 9, square=True)
    assert joined([Piece(0, 6), square]) == [Piece(0, 9, square=True)]
    assert joined([Piece(0, 2, Causal()), Piece(2, 6), square]) == [Piece(0, 2, Causal()), Piece(2, 9, square=True)]
    for apart in ([Piece(0, 5), square], [Piece(0, 6, Causal()), square], [square], [Piece(0, 6), Piece(6, 9)], []):
        assert joined(apart) == apart


def test_merge_with_an_empty_piece():
    out, lse = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3)
    nothing = torch.zeros(1, 2, 3, 4), torch.full((1, 2, 3), -math.inf)
    merged, merged_lse = merge([(out, lse), nothing])
    torch.testing.assert_close(merged, out)
    torch.testing.assert_close(merged_lse, lse)
    empty, _ = merge([nothing, nothing])
    assert torch.equal(empty, nothing[0])


def test_chunked_appends_equal_the_whole():
    """A cache fed in pieces of every size gives what one whole call gives."""
    _, k, v = heads(2, 1, 48)
    q = torch.randn(2, 8, 48, 16)
    want, _ = attend(q, [Span(k, v, Marks.run(0, 48))], Causal(), Marks.run(0, 48), kernel="eager")
    for step in (1, 7, 17, 48):
        cache, outs = FullCache(1), []
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
        "sinks": (Causal() & (Window(1) | First(1)), ["x...", "xx..", "x.x.", "x..x"]),
        "prefix": (First(3) | Causal(), ["xxx.", "xxx.", "xxx.", "xxxx"]),
    }
    for mask, picture in rows.values():
        want = torch.tensor([[mark == "x" for mark in row] for row in picture])
        assert torch.equal(mask.allowed(run, run, torch.device("cpu"))[0], want)


@pytest.mark.parametrize("mask", MASKS)
def test_what_a_mask_says_of_blocks_holds_for_every_pair(mask):
    """`within` is a promise: True means all pairs, False none, and what is left decides exactly the rest."""
    device, mask = torch.device("cpu"), MASKS[mask]
    decided = 0
    for query_marks, key_marks in [(Marks.run(5, 7), Marks.run(0, 12)), (packed_marks(2, 24), packed_marks(2, 24))]:
        whole = mask.allowed(query_marks, key_marks, device)
        for a, c in itertools.product(range(0, query_marks.length, 3), range(0, key_marks.length, 4)):
            b, d = min(a + 3, query_marks.length), min(c + 4, key_marks.length)
            queries, keys = query_marks.extents((a, b))[0], key_marks.extents((c, d))[0]
            for row, (query, key) in enumerate(zip(queries, keys, strict=True)):
                tile, left = whole[row, a:b, c:d], mask.within(query, key)
                real = (key_marks.tensors(device)[0][row, c:d] >= 0).expand_as(tile)
                if isinstance(left, bool):
                    decided += 1
                    assert torch.equal(tile, real & left)
                else:
                    again = left.allowed(query_marks.part(a, b), key_marks.part(c, d), device)[row]
                    assert torch.equal(tile, again)
    assert decided > 10


def test_a_span_that_takes_its_own_gradient_gets_what_autograd_would():
    """The past of a long training step: two spans, the first outside the graph."""
    for mask, packed in itertools.product(MASKS.values(), (False, True)):
        marks = packed_marks(2, 30) if packed else Marks.run(0, 30)
        q, k, v = (t.requires_grad_() for t in heads(2, 30, 30, torch.float64))
        out, _ = attend(q[:, :, 18:], [Span(k, v, marks)], mask, marks.part(18, 30), kernel="eager")
        out.sin().sum().backward()
        taken = [torch.zeros(2, 2, 18, 16, dtype=torch.float64) for _ in range(2)]

        def take(first, *parts, taken=taken):
            for total, part in zip(taken, parts, strict=True):
                total[:, :, first : first + part.shape[2]] += part

        query, key, value = (t.detach()[:, :, 18:].clone().requires_grad_() for t in (q, k, v))
        past = Span(k.detach()[:, :, :18], v.detach()[:, :, :18], marks.part(0, 18), accumulate=take)
        out, _ = attend(query, [past, Span(key, value, marks.part(18, 30))], mask, marks.part(18, 30))
        out.sin().sum().backward()
        torch.testing.assert_close(query.grad, q.grad[:, :, 18:], atol=1e-12, rtol=1e-10)
        for want, before, own in ((k.grad, taken[0], key.grad), (v.grad, taken[1], value.grad)):
            torch.testing.assert_close(torch.cat([before, own], dim=2), want, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("square", [False, True])
def test_plain_products_equal_the_fused_kernel(square):
    """What other devices run, held to what the CPU runs."""
    q, k, v = heads(2, 40, 40, torch.float64)
    slope = torch.randn_like(q)
    allowed = None if square else (torch.rand(2, 40, 40) > 0.4) | torch.eye(40, dtype=torch.bool)
    added = None if allowed is None else fused.additive(allowed, q.dtype)
    scores = fused.Scores(0.3, added=added, square=square)
    want, want_lse = fused.OVER(q, k, v, scores)
    out, lse = fused.OVER.kernel("products").run(q, k, v, scores)
    torch.testing.assert_close(out, want)
    torch.testing.assert_close(lse, want_lse)
    given = slope, (q, k, v), (out, lse), scores, None
    wants, gots = fused.GRADIENT(*given), fused.GRADIENT.kernel("products").run(*given)
    for got, wanted in zip(gots, wants, strict=True):
        torch.testing.assert_close(got, wanted)
