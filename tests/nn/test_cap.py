"""Capped attention scores: against a dense softmax in float64, forward and backward, on every kernel."""

import pytest
import torch

from handscroll.nn.attend import Part, attend, attend_parts
from handscroll.nn.bias import ALiBi
from handscroll.nn.marks import Marks
from handscroll.nn.mask import Causal, Everything, SameSegment, Window
from handscroll.nn.span import Observer, Span

CAP = 3.0  # low enough to bend the scores of random heads


def heads(tokens, keys, dtype=torch.float32, seed=0):
    draw = torch.Generator().manual_seed(seed)
    shapes = [(2, 8, tokens, 16), (2, 4, keys, 16), (2, 4, keys, 16)]
    return [(2 * torch.randn(shape, generator=draw, dtype=torch.float64)).to(dtype) for shape in shapes]


def dense(q, k, v, marks, key_marks, mask, bias=None):
    """The scores as Gemma Team 2024, section 2, has them: cap * tanh(s / cap), then mask and softmax."""
    q, k, v = q.double(), *(t.double().repeat_interleave(2, dim=1) for t in (k, v))
    scores = CAP * torch.tanh(q @ k.mT * 0.25 / CAP)
    if bias is not None:
        scores = scores + bias.values(marks, key_marks, q.device)
    allowed = mask.allowed(marks, key_marks, q.device)[:, None]
    return scores.masked_fill(~allowed, -torch.inf).softmax(dim=-1) @ v


@pytest.mark.parametrize("kernel", ["eager", "fold", "tiles", None])
@pytest.mark.parametrize(("tokens", "keys"), [(1, 1300), (9, 33), (33, 33), (600, 1300)])
def test_every_kernel_caps_the_scores(kernel, tokens, keys):
    q, k, v = heads(tokens, keys)
    marks, key_marks = Marks.run(keys - tokens, tokens), Marks.run(0, keys)
    for mask in (Causal(), Causal() & Window(20)):
        want = dense(q, k, v, marks, key_marks, mask)
        out, lse = attend(q, [Span(k, v, key_marks)], mask, marks, 0.25, kernel, cap=CAP)
        torch.testing.assert_close(out.double(), want, atol=1e-5, rtol=1e-5)
        cuts = [(0, keys // 3), (keys // 3, keys)]
        spans = [Span(k[:, :, a:b], v[:, :, a:b], Marks.run(a, b - a)) for a, b in cuts]
        parted, parted_lse = attend(q, spans, mask, marks, 0.25, kernel, cap=CAP)
        torch.testing.assert_close(parted, out, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(parted_lse, lse, atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize("bias", [None, ALiBi(8)])
@pytest.mark.parametrize("packed", [False, True])
def test_gradients_equal_those_of_the_dense_softmax(packed, bias):
    segment = (torch.arange(30) // 11).expand(2, -1)
    marks = Marks.of(torch.arange(30).expand(2, -1), segment, torch.arange(30).expand(2, -1))
    marks = marks if packed else Marks.run(0, 30)
    mask, grads = Causal() & SameSegment(), []
    for ours in (False, True):
        q, k, v = (t.requires_grad_() for t in heads(30, 30, torch.float64))
        if ours:
            out, _ = attend(q, [Span(k, v, marks)], mask, marks, 0.25, bias=bias, cap=CAP)
        else:
            out = dense(q, k, v, marks, marks, mask, bias)
        out.sin().sum().backward()
        grads.append([q.grad, k.grad, v.grad])
    for want, got in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, atol=1e-12 if bias is None else 1e-7, rtol=1e-9 if bias is None else 1e-6)


def test_gradients_of_parts_are_those_of_all_keys_together():
    marks, grads = Marks.run(0, 30), []
    for parted in (False, True):
        q, k, v = (t.requires_grad_() for t in heads(30, 30, torch.float64))
        cuts = [(0, 11), (11, 30)] if parted else [(0, 30)]
        parts = [Part(q, [Span(k[:, :, a:b], v[:, :, a:b], Marks.run(a, b - a))], Causal()) for a, b in cuts]
        attend_parts(parts, marks, 0.25, cap=CAP).sin().sum().backward()
        grads.append([q.grad, k.grad, v.grad])
    for want, got in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-9)


def test_the_mass_that_is_observed_is_of_the_capped_scores():
    q, k, v = heads(5, 40, torch.float64)
    found = torch.zeros(2, 4, 40, dtype=torch.float64)
    observer = Observer(torch.ones(1, 5), lambda first, mass: found[:, :, first : first + mass.shape[2]].add_(mass))
    marks, keys = Marks.run(40, 5), Marks.run(0, 40)
    attend(q, [Span(k, v, keys, observer=observer)], Everything(), marks, 0.25, cap=CAP)
    scores = CAP * torch.tanh(q @ k.repeat_interleave(2, dim=1).mT * 0.25 / CAP)
    want = scores.softmax(dim=-1).sum(dim=2).unflatten(1, (4, 2)).sum(dim=2)
    torch.testing.assert_close(found, want, atol=1e-9, rtol=1e-9)
