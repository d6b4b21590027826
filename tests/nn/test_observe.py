"""Attention mass against the dense softmax in float64."""

import pytest
import torch

from handscroll.nn import observe
from handscroll.nn.attend import attend
from handscroll.nn.bias import ALiBi
from handscroll.nn.marks import Marks
from handscroll.nn.mask import Causal
from handscroll.nn.span import Observer, Span
from tests.nn.material import MASKS, heads, packed_marks


def dense(q, k, mask, marks, key_marks, queries, added=0.0):
    """Mass (B, K, S) from a whole softmax."""
    allowed = mask.allowed(marks, key_marks, q.device).expand(q.shape[0], -1, -1)[:, None]
    scores = (q.double() @ k.double().repeat_interleave(4, dim=1).transpose(-1, -2) / 4) + added
    scores = scores.masked_fill(~allowed, -torch.inf)
    weights = scores.softmax(-1).nan_to_num(0.0) * queries.double()[:, None, :, None]
    return weights.sum(dim=2).unflatten(1, (2, 4)).sum(dim=2)


def watched(k, v, marks, queries):
    mass = torch.zeros(k.shape[:3], dtype=torch.float64)

    def take(first, part):
        mass[:, :, first : first + part.shape[2]] += part

    return Span(k, v, marks, observer=Observer(queries, take)), mass


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kernel", ["fold", "tiles"])
@pytest.mark.parametrize(("tokens", "keys"), [(1, 33), (33, 33), (70, 200)])
def test_mass_is_that_of_the_dense_softmax(mask, kernel, tokens, keys, monkeypatch):
    monkeypatch.setattr(observe, "QUERIES", 32)
    monkeypatch.setattr(observe, "KEYS", 50)
    q, k, v = heads(2, tokens, keys)
    marks, queries = Marks.run(keys - tokens, tokens), torch.ones(1, tokens)
    span, mass = watched(k, v, Marks.run(0, keys), queries)
    plain, _ = attend(q, [Span(k, v, span.marks)], MASKS[mask], marks, kernel=kernel)
    out, _ = attend(q, [span], MASKS[mask], marks, kernel=kernel)
    assert torch.equal(out, plain)
    torch.testing.assert_close(mass, dense(q, k, MASKS[mask], marks, span.marks, queries), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("mask", MASKS)
def test_padded_and_packed_rows_and_some_of_the_queries(mask):
    q, k, v = heads(3, 40, 40)
    marks = packed_marks(3, 40)
    queries = (torch.rand(3, 40, generator=torch.Generator().manual_seed(1)) > 0.6).float() * 2
    span, mass = watched(k, v, marks, queries)
    attend(q, [span], MASKS[mask], marks)
    torch.testing.assert_close(mass, dense(q, k, MASKS[mask], marks, marks, queries), atol=1e-5, rtol=1e-4)
    assert not mass[0, :, -4:].any()  # padding


def test_several_spans_share_one_softmax():
    q, k, v = heads(2, 8, 60)
    marks, queries = Marks.run(52, 8), torch.ones(1, 8)
    want = dense(q, k, Causal(), marks, Marks.run(0, 60), queries)
    spans, masses = zip(
        *(watched(k[:, :, a:b], v[:, :, a:b], Marks.run(a, b - a), queries) for a, b in ((0, 20), (20, 60))),
        strict=True,
    )
    attend(q, spans, Causal(), marks)
    torch.testing.assert_close(torch.cat(masses, dim=2), want, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(want.sum(dim=(1, 2)), torch.full((2,), 64.0, dtype=torch.float64))


def test_a_bias_is_part_of_the_scores(monkeypatch):
    monkeypatch.setattr(observe, "KEYS", 20)
    q, k, v = heads(2, 30, 50)
    marks, bias = Marks.run(20, 30), ALiBi(8)
    span, mass = watched(k, v, Marks.run(0, 50), torch.ones(1, 30))
    attend(q, [span], Causal(), marks, bias=bias)
    added = bias.values(marks, span.marks, q.device)
    want = dense(q, k, Causal(), marks, span.marks, torch.ones(1, 30), added)
    torch.testing.assert_close(mass, want, atol=1e-5, rtol=1e-4)
