"""Attention on a GPU against the float64 oracle: fused kernels in runs, plain products, and the recorded layers."""

import pytest
import torch

from handscroll.cache.full import FullCache
from handscroll.kernels.gpu import fused as gpu
from handscroll.models.llama import Llama, LlamaConfig
from handscroll.nn.attend import attend
from handscroll.nn.compiled import graph as stack
from handscroll.nn.marks import Marks
from handscroll.nn.mask import Causal, SameSegment, Window
from handscroll.nn.norm import RMSNorm
from handscroll.nn.span import Span

if not torch.cuda.is_available():
    pytest.skip("needs CUDA", allow_module_level=True)


def distance(found, wanted):
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def heads(tokens, keys, size=64, dtype=torch.bfloat16, grad=True):
    torch.manual_seed(tokens + keys)
    q = torch.randn(1, tokens, 8, size, device="cuda").transpose(1, 2)
    k, v = (torch.randn(1, 2, keys, size, device="cuda") for _ in "kv")
    return [x.to(dtype).detach().requires_grad_(grad) for x in (q, k, v)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("tokens", "keys"), [(1, 5000), (24, 24), (1024, 1024), (1024, 3072), (1000, 2999)])
@pytest.mark.parametrize("size", [64, 128])
def test_attention_and_gradients_equal_the_oracle(dtype, tokens, keys, size, monkeypatch):
    monkeypatch.setattr(gpu, "RUN", 1024)
    marks, key_marks = Marks.run(keys - tokens, tokens), Marks.run(0, keys)
    q, k, v = heads(tokens, keys, size, dtype)
    slope = torch.randn_like(q)
    out, lse = attend(q, [Span(k, v, key_marks)], Causal(), marks)
    out.backward(slope)
    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    want, want_lse = attend(wide[0], [Span(wide[1], wide[2], key_marks)], Causal(), marks, kernel="eager")
    want.backward(slope.double())
    limit = 1e-5 if dtype == torch.float32 else 6e-3
    assert distance(out, want) < limit
    assert distance(lse, want_lse) < limit
    for x, y in zip((q, k, v), wide, strict=True):
        assert distance(x.grad, y.grad) < limit


def test_a_past_that_takes_its_own_gradient(monkeypatch):
    monkeypatch.setattr(gpu, "RUN", 1024)
    q, k, v = heads(1024, 3072)
    past = torch.zeros(2, 1, 2, 2048, 64, device="cuda")

    def take(first, *changes):
        for held, change in zip(past, changes, strict=True):
            held[:, :, first : first + change.shape[2]] += change

    spans = [
        Span(k[:, :, :2048].detach(), v[:, :, :2048].detach(), Marks.run(0, 2048), accumulate=take),
        Span(k[:, :, 2048:], v[:, :, 2048:], Marks.run(2048, 1024)),
    ]
    out, _ = attend(q, spans, Causal(), Marks.run(2048, 1024))
    out.sum().backward()
    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    whole = [Span(wide[1], wide[2], Marks.run(0, 3072))]
    attend(wide[0], whole, Causal(), Marks.run(2048, 1024), kernel="eager")[0].sum().backward()
    for held, own, want in zip(past, (k.grad, v.grad), (x.grad for x in wide[1:]), strict=True):
        assert distance(held, want[:, :, :2048]) < 6e-3
        assert distance(own[:, :, 2048:], want[:, :, 2048:]) < 6e-3


@pytest.mark.parametrize("mask", [Causal() & Window(300), Causal() & SameSegment()])
def test_masks_equal_the_oracle(mask):
    q, k, v = heads(1500, 1500, grad=False)
    index = torch.arange(1500, device="cuda")[None]
    marks = Marks.of(index, index // 600)
    out, _ = attend(q, [Span(k, v, marks)], mask, marks)
    want, _ = attend(q.double(), [Span(k.double(), v.double(), marks)], mask, marks, kernel="eager")
    assert distance(out, want) < 6e-3


def test_the_fused_norm_equals_the_plain_one():
    norm, x = RMSNorm(96, 1e-5), torch.randn(3, 5, 96)
    torch.nn.init.normal_(norm.weight)
    want = norm(x)
    torch.testing.assert_close(norm.cuda()(x.cuda()).cpu(), want, atol=1e-6, rtol=1e-6)
    half = norm.bfloat16()
    with torch.no_grad():
        few, many = half(x.cuda().bfloat16()), half(x.cuda().bfloat16().repeat(1, 4, 1))[:, :5]
    assert distance(few.cpu(), want) < 4e-3
    assert distance(many.cpu(), want) < 4e-3


def model(windows=(), family="llama"):
    torch.manual_seed(0)
    positions = {"base": 1e4, "scaling": {"name": "none"}, "context": 4096, "trained": 4096}
    sizes = {"vocab": 97, "width": 128, "layers": 3, "heads": 6, "kv_heads": 2, "head_size": 48, "mlp_width": 200}
    made = Llama(LlamaConfig(family=family, **sizes, windows=windows, positions=positions))
    return made.to("cuda", torch.bfloat16)


@torch.no_grad()
def steps(one, batch, count, start=700):
    cache, found = FullCache(3, capacity=start + count), []
    tokens = torch.randint(0, 97, (batch, start), generator=torch.Generator().manual_seed(1)).cuda()
    one(tokens, Marks.run(0, start), cache)
    for number in range(count):
        found.append(one(tokens[:, number : number + 1], Marks.run(start + number, 1), cache))
    return torch.cat(found, dim=1), cache


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("windows", [(), (None, 100, 256)])
def test_recorded_layers_equal_the_layers_one_by_one(batch, windows, monkeypatch):
    one = model(windows, "mistral" if windows else "llama")
    with torch.no_grad():
        found, cache = steps(one, batch, 12)
    graph = stack._KNOWN[cache].graph
    assert graph is not None  # it was recorded
    monkeypatch.setattr(stack, "EAGER", 1000)
    want, other = steps(one, batch, 12)
    assert stack._KNOWN[other].graph is None
    wide, _ = steps(one.double(), batch, 12)
    assert distance(found, wide) < 1.5 * distance(want, wide) + 1e-3
    for layer in range(3):
        ours, theirs = (list(one.columns(layer).values()) for one in (cache, other))
        assert distance(ours[0], theirs[0]) < 1e-2
        assert distance(ours[1], theirs[1]) < 1e-2


def test_a_cache_that_grows_is_recorded_anew():
    one = model()
    with torch.no_grad():
        cache = FullCache(3)
        tokens = torch.randint(0, 97, (1, 40)).cuda()
        one(tokens[:, :4], Marks.run(0, 4), cache)
        found = [one(tokens[:, n : n + 1], Marks.run(n, 1), cache) for n in range(4, 40)]
        want = one.double()(tokens)[:, 4:]
    assert distance(torch.cat(found, dim=1), want) < 2e-2
