"""Chunked projection + cross-entropy against torch's plain one."""

import pytest
import torch
import torch.nn.functional as F

from handscroll.objectives import head as module
from handscroll.objectives.head import cross_entropy, token_losses


def case(count=301, width=24, vocab=97, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(count, width, generator=generator, dtype=dtype)
    weight = torch.randn(vocab, width, generator=generator, dtype=dtype)
    targets = torch.randint(0, vocab, (count,), generator=generator)
    targets[::7] = -100
    return hidden, weight, targets


@pytest.mark.parametrize("chunk", [1, 10_000, 1 << 25])
def test_loss_and_gradients_equal_torch(monkeypatch, chunk):
    monkeypatch.setattr(module, "CHUNK_BYTES", chunk)
    grads = []
    for ours in (True, False):
        hidden, weight, targets = case()
        hidden.requires_grad_(), weight.requires_grad_()
        if ours:
            total, count = cross_entropy(hidden, weight, targets)
            assert int(count) == int((targets >= 0).sum())
        else:
            total = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
        (total * 0.37).backward()
        grads.append((total.detach(), hidden.grad, weight.grad))
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_no_chunk_holds_the_whole_vocabulary_times_the_text(monkeypatch):
    """The largest product formed has as many rows as a chunk, not as the text."""
    monkeypatch.setattr(module, "CHUNK_BYTES", 97 * 4 * 20)
    rows = []
    project = module._project
    monkeypatch.setattr(module, "_project", lambda h, w: rows.append(h.shape[0]) or project(h, w))
    cross_entropy(*case())
    token_losses(*case())
    assert max(rows) == 20 and len(rows) > 20


def test_token_losses_equal_torch():
    hidden, weight, targets = case()
    want = F.cross_entropy(hidden @ weight.T, targets, reduction="none")
    torch.testing.assert_close(token_losses(hidden, weight, targets), want, rtol=1e-12, atol=1e-12)


def test_nothing_counted_is_zero_and_harmless():
    hidden, weight, targets = case()
    hidden.requires_grad_(), weight.requires_grad_()
    total, count = cross_entropy(hidden, weight, torch.full_like(targets, -100))
    total.backward()
    assert float(total.detach()) == 0.0 and int(count) == 0 and float(weight.grad.abs().sum()) == 0.0


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
