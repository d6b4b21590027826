"""T5's learned bias: buckets against the released ones, every kernel and its gradients against a dense oracle."""

import math

import pytest
import torch

from handscroll.nn.attend import attend
from handscroll.nn.bias import Buckets, Relative
from handscroll.nn.marks import Marks
from handscroll.nn.mask import Causal, Everything, SameSegment, Window
from handscroll.nn.span import Span
from tests.nn.material import heads, packed_marks


def table(dtype=torch.float32, buckets=32):
    return torch.randn(buckets, 8, generator=torch.Generator().manual_seed(5)).to(dtype)


def dense(qkv, marks, key_marks, mask, learned, buckets):
    """softmax(q.k + b[bucket(j - i)]) over the keys that are seen, in float64, by plain autograd."""
    q, k, v = qkv
    groups = q.shape[1] // k.shape[1]
    q, k, v = q.double(), k.double().repeat_interleave(groups, 1), v.double().repeat_interleave(groups, 1)
    i, j = (m.tensors(torch.device("cpu"))[2] for m in (marks, key_marks))
    bucket = buckets.of(j[:, None, :] - i[:, :, None])
    scores = torch.einsum("bhte,bhse->bhts", q, k) + learned.double()[bucket].permute(0, 3, 1, 2)
    allowed = mask.allowed(marks, key_marks, torch.device("cpu"))[:, None]
    return torch.softmax(scores.masked_fill(~allowed, -math.inf), dim=-1).nan_to_num(0.0) @ v


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize(("count", "reach"), [(32, 128), (32, 1000), (8, 20), (16, 64)])
def test_buckets_are_those_of_the_reference(both, count, reach):
    from transformers.models.t5.modeling_t5 import T5Attention

    distances = torch.arange(-1500, 1501)
    theirs = T5Attention._relative_position_bucket(distances, both, count, reach)
    buckets = Buckets(count, reach, both)
    assert torch.equal(buckets.of(distances), theirs)
    end = torch.tensor([-buckets.last, -buckets.last - 1, -9999])
    assert len(set(buckets.of(end).tolist())) == 1  # nothing changes past `last`, where tables of distances are cut


def test_the_factor_divides_distances():
    plain, divided = Buckets(32, 128, True), Buckets(32, 128, True, factor=4.0)
    distances = torch.arange(-1200, 1201)
    toward = torch.where(distances < 0, -(-distances // 4), distances // 4)
    assert torch.equal(divided.of(distances[distances.abs() >= 4]), plain.of(toward[distances.abs() >= 4]))
    assert divided.last == 512


@pytest.mark.parametrize("kernel", ["eager", "fold", "tiles"])
@pytest.mark.parametrize(("tokens", "keys"), [(1, 700), (9, 33), (530, 560)])
def test_every_kernel_adds_the_bias(kernel, tokens, keys):
    q, k, v = heads(2, tokens, keys)
    marks, key_marks, buckets = Marks.run(keys - tokens, tokens), Marks.run(0, keys), Buckets(32, 128, True)
    bias = Relative(table(), buckets)
    for mask in (Everything(), Causal() & Window(200)):
        want = dense((q, k, v), marks, key_marks, mask, bias.table, buckets)
        out, lse = attend(q, [Span(k, v, key_marks)], mask, marks, 1.0, kernel, bias=bias)
        torch.testing.assert_close(out.double(), want, atol=2e-5, rtol=1e-5)
        cuts = [(0, keys // 3), (keys // 3, keys)]
        spans = [Span(k[:, :, a:b], v[:, :, a:b], Marks.run(a, b - a)) for a, b in cuts]
        parted, parted_lse = attend(q, spans, mask, marks, 1.0, kernel, bias=bias)
        torch.testing.assert_close(parted, out, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(parted_lse, lse, atol=3e-5, rtol=1e-5)


CASES = {
    "both ways": (Marks.run(0, 45), Everything(), True),
    "causal": (Marks.run(3, 45), Causal(), False),
    "several tiles": (Marks.run(0, 560), Causal() & Window(300), False),
    "packed both ways": (packed_marks(2, 45), SameSegment(), True),
    "packed causal": (packed_marks(2, 45), Causal() & SameSegment(), False),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("oracle", ["dense", "eager"])
def test_gradients_equal_those_of_the_dense_softmax(case, oracle):
    marks, mask, both = CASES[case]
    buckets, length, grads = Buckets(32, 128, both), marks.length, []
    for exact in (True, False):
        q, k, v = (t.requires_grad_() for t in heads(2, length, length, torch.float64))
        learned = table(torch.float64).requires_grad_()
        bias = Relative(learned, buckets)
        if not exact:
            out, _ = attend(q, [Span(k, v, marks)], mask, marks, 1.0, bias=bias)
        elif oracle == "eager":
            out, _ = attend(q, [Span(k, v, marks)], mask, marks, 1.0, "eager", bias=bias)
        else:
            out = dense((q, k, v), marks, marks, mask, learned, buckets)
        real = torch.ones(2, length, dtype=torch.bool) if marks.index is None else marks.index >= 0
        out.transpose(1, 2)[real].sin().sum().backward()
        grads.append([q.grad, k.grad, v.grad, learned.grad])
    for want, got in zip(*grads, strict=True):
        assert (got - want).norm() <= 1e-12 * want.norm()


@pytest.mark.parametrize("count", [4, 20])
def test_the_table_alone_is_trained_over_a_cut_past(count):
    """Nothing but the table wants a gradient; sixteen queries or fewer would run through another kernel."""
    buckets, grads = Buckets(8, 20, False), []
    k, v = (t.double() for t in heads(2, 30, 30)[1:])
    q = heads(2, count, 30, torch.float64)[0]
    for cut in (0, 13):
        learned = table(torch.float64, 8).requires_grad_()
        spans = [Span(k[:, :, a:b], v[:, :, a:b], Marks.run(a, b - a)) for a, b in ((0, cut), (cut, 30)) if a < b]
        out, _ = attend(q, spans, Causal(), Marks.run(30 - count, count), 1.0, bias=Relative(learned, buckets))
        out.sin().sum().backward()
        grads.append(learned.grad)
    torch.testing.assert_close(grads[0], grads[1], atol=1e-14, rtol=1e-12)
    assert grads[0].abs().max() > 1e-3


def test_bfloat16_has_the_gradient_of_float64_within_its_rounding():
    marks, buckets, found = Marks.run(0, 200), Buckets(32, 128, False), []
    narrow = [t.bfloat16() for t in heads(2, 200, 200)]
    for dtype, wide in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        q, k, v = (t.detach().to(dtype).requires_grad_() for t in narrow)
        learned = table(wide).requires_grad_()
        out, _ = attend(q, [Span(k, v, marks)], Causal(), marks, 0.25, bias=Relative(learned, buckets))
        (out.double() * torch.linspace(-1, 1, 200, dtype=torch.float64)[:, None]).sum().backward()
        assert learned.grad is not None and learned.grad.dtype == wide
        found.append(learned.grad.double())
    assert (found[0] - found[1]).norm() < 0.02 * found[1].norm()


class Untrained(Relative):
    def gradient(self, slope, query, key):
        raise AssertionError("asked for a gradient that nobody wants")


def test_a_table_that_is_not_trained_costs_no_gradient():
    q, k, v = (t.requires_grad_() for t in heads(1, 40, 40))
    bias = Untrained(table(), Buckets(32, 128, False))
    attend(q, [Span(k, v, Marks.run(0, 40))], Causal(), Marks.run(0, 40), 1.0, bias=bias)[0].sum().backward()
    assert bias.table.grad is None and q.grad is not None
