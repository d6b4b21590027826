"""Chunked projection + cross-entropy against torch's plain one."""

import pytest
import torch
import torch.nn.functional as F

from handscroll.base.errors import ConfigError
from handscroll.base.portions import LOGITS
from handscroll.objectives import head as module
from handscroll.objectives.head import cross_entropy, token_losses
from tests.naming import naming


def case(count=301, width=24, vocab=97, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(count, width, generator=generator, dtype=dtype)
    weight = torch.randn(vocab, width, generator=generator, dtype=dtype)
    targets = torch.randint(0, vocab, (count,), generator=generator)
    targets[::7] = -100
    return hidden, weight, targets


def losses(hidden, weight, *rest):
    return token_losses(hidden, lambda part: part @ weight.T, len(weight), *rest)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("chunk", [1, 10_000, 1 << 25])
@pytest.mark.parametrize("cap", [None, 2.5])
def test_loss_and_gradients_equal_torch(monkeypatch, cap, chunk, smoothing, biased):
    monkeypatch.setitem(LOGITS, "cpu", chunk)
    grads = []
    for ours in (True, False):
        hidden, weight, targets = case()
        bias = torch.linspace(-2, 2, 97, dtype=torch.float64) if biased else torch.zeros(97, dtype=torch.float64)
        hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()
        if ours:
            total, count = cross_entropy(hidden, weight, targets, smoothing, bias if biased else None, cap)
            assert int(count) == int((targets >= 0).sum())
        else:
            logits = hidden @ weight.T + bias
            logits = logits if cap is None else cap * torch.tanh(logits / cap)
            total = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
            expected = F.cross_entropy(logits, targets, reduction="none")
            torch.testing.assert_close(losses(hidden, weight, targets, bias, cap), expected.detach())
        (total * 0.37).backward()
        grads.append((total.detach(), hidden.grad, weight.grad, *([bias.grad] if biased else [])))
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_no_chunk_holds_the_whole_vocabulary_times_the_text(monkeypatch):
    """The largest product formed has as many rows as a chunk, not as the text."""
    monkeypatch.setitem(LOGITS, "cpu", 97 * 4 * 20)
    rows = []
    project = module._project
    monkeypatch.setattr(module, "_project", lambda h, w: rows.append(h.shape[0]) or project(h, w))
    cross_entropy(*case())
    hidden, weight, targets = case()
    token_losses(hidden, lambda part: module._project(part, weight), 97, targets)
    assert max(rows) <= 21 and len(rows) > 20


def test_chunks_are_of_nearly_equal_size():
    """512 tokens over 49,152 words: three chunks of 171, not three of 170 and one of 2."""
    assert module.chunk_rows(49152, 512) == 171
    assert module.chunk_rows(49152) == 170
    assert module.chunk_rows(49152, 3) == 3


def test_token_losses_equal_torch():
    hidden, weight, targets = case()
    want = F.cross_entropy(hidden @ weight.T, targets, reduction="none")
    torch.testing.assert_close(losses(hidden, weight, targets), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("count", [301, 0])
def test_nothing_counted_is_a_differentiable_zero(count, smoothing):
    hidden, weight, targets = case(count)
    hidden.requires_grad_(), weight.requires_grad_()
    total, counted = cross_entropy(hidden, weight, torch.full_like(targets, -100), smoothing)
    total.backward()
    assert float(total.detach()) == 0.0 and int(counted) == 0
    assert torch.equal(hidden.grad, torch.zeros_like(hidden)) and torch.equal(weight.grad, torch.zeros_like(weight))


def test_smoothing_by_hand():
    """Three words with logits 0, ln 2, ln 5 (p = 1/8, 2/8, 5/8); target 1; s = 0.3."""
    head = torch.tensor([[0.0], [2.0], [5.0]], dtype=torch.float64)
    head[1:].log_()
    total, _ = cross_entropy(torch.ones(1, 1, dtype=torch.float64), head, torch.tensor([1]), 0.3)
    p = torch.tensor([1, 2, 5], dtype=torch.float64) / 8
    assert float(total) == pytest.approx(float(-0.7 * p[1].log() - 0.1 * p.log().sum()), abs=1e-14)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
def test_impossible_smoothing_is_refused(smoothing):
    with pytest.raises(ConfigError, match=naming(0, 1)):
        cross_entropy(*case(), smoothing)


def test_the_gradient_of_the_head_is_summed_in_float32_under_bfloat16(monkeypatch):
    """Many chunks: a bfloat16 sum would lose what is below 1/256 of it."""
    monkeypatch.setitem(LOGITS, "cpu", 1)  # 16 rows a chunk
    hidden, weight, targets = case(count=4096, dtype=torch.bfloat16)
    weight.requires_grad_()
    cross_entropy(hidden, weight, targets)[0].backward()
    exact = weight.detach().double().requires_grad_()
    F.cross_entropy(hidden.double() @ exact.T, targets, reduction="sum").backward()
    assert weight.grad.dtype == torch.bfloat16
    assert (weight.grad.double() - exact.grad).norm() / exact.grad.norm() < 6e-3


def test_frozen_head_gets_no_gradient():
    hidden, weight, targets = case()
    hidden.requires_grad_()
    cross_entropy(hidden, weight, targets)[0].backward()
    assert weight.grad is None and hidden.grad is not None


def test_autocast_products_are_bfloat16_and_sums_float32():
    hidden, weight, targets = case(dtype=torch.float32)
    hidden.requires_grad_(), weight.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = cross_entropy(hidden, weight, targets)
    total.backward()
    want = F.cross_entropy(hidden.detach() @ weight.detach().T, targets, reduction="sum")
    assert total.dtype == torch.float32 and weight.grad.dtype == torch.float32
    assert abs(float(total.detach() - want)) / float(want) < 5e-3
