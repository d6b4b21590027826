"""Penalties equal autograd's, act on matrices only, cost nothing when off, and work on sharded parameters."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from handscroll.train.regularise import Regularise, add_penalty

SHARDED = Path(__file__).with_name("sharded_worker.py")


def model(dtype=torch.float64):
    torch.manual_seed(0)
    net = nn.ModuleDict({"table": nn.Embedding(7, 4), "layer": nn.Linear(4, 4), "norm": nn.RMSNorm(4)}).to(dtype)
    with torch.no_grad():
        net["layer"].weight[0, 0] = 0.0  # where |w| has no slope
    return net


def loss(net):
    return net["norm"](net["layer"](net["table"](torch.arange(5)))).square().mean()


@pytest.mark.parametrize(("l1", "l2"), [(0.3, 0.0), (0.0, 0.7), (0.3, 0.7)])
def test_equals_autograd(l1, l2):
    ours, theirs = model(), model()
    loss(ours).backward()
    value = add_penalty(ours, Regularise(l1=l1, l2=l2))
    matrices = [p for p in theirs.parameters() if p.dim() == 2]
    assert len(matrices) == 2, "the table and the layer; not its bias, not the norm"
    penalty = l1 * sum(p.abs().sum() for p in matrices) + l2 / 2 * sum(p.square().sum() for p in matrices)
    (loss(theirs) + penalty).backward()
    assert value == pytest.approx(float(penalty.detach()), rel=1e-13)
    for got, want in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad, rtol=1e-13, atol=1e-14)


def test_a_missing_gradient_is_made_and_frozen_weights_are_left_alone():
    net = model()
    net["table"].weight.requires_grad_(False)
    add_penalty(net, Regularise(l2=0.5))
    torch.testing.assert_close(net["layer"].weight.grad, 0.5 * net["layer"].weight.detach())
    assert net["table"].weight.grad is None and net["layer"].bias.grad is None


def test_tied_weights_count_once():
    net = model()
    net["projection"] = nn.Linear(4, 7, bias=False)
    net["projection"].weight = net["table"].weight
    value = add_penalty(net, Regularise(l1=1.0))
    want = net["table"].weight.abs().sum() + net["layer"].weight.abs().sum()
    assert value == pytest.approx(float(want.detach()))


def test_off_touches_nothing():
    net = model()
    assert add_penalty(net, Regularise()) == 0.0
    assert all(p.grad is None for p in net.parameters())
    loss(net).backward()
    before = [(p.grad, p.grad._version) for p in net.parameters() if p.grad is not None]
    add_penalty(net, Regularise())
    after = [(p.grad, p.grad._version) for p in net.parameters() if p.grad is not None]
    assert all(old[0] is new[0] and old[1] == new[1] for old, new in zip(before, after, strict=True))


def test_a_bfloat16_penalty_is_summed_in_float32():
    net = nn.Linear(300, 300, bias=False, dtype=torch.bfloat16)
    value = add_penalty(net, Regularise(l1=1.0))
    assert value == pytest.approx(float(net.weight.detach().double().abs().sum()), rel=1e-5)
    assert net.weight.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("values", [{"l1": -0.1}, {"l2": -1e-9}, {"l1": float("inf")}, {"l2": float("nan")}])
def test_impossible_settings_are_refused(values):
    with pytest.raises(ValidationError):
        Regularise(**values)


def test_two_ranks_with_sharded_parameters_equal_one(tmp_path):
    """Penalty and its gradient, the guilty tensors, and LAMB, over DTensors on two gloo processes."""
    workers = [
        subprocess.Popen([sys.executable, SHARDED, str(rank), tmp_path], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["penalty"][0] == pytest.approx(found["penalty"][1], rel=1e-6)
        assert found["gradient"] < 1e-7 and found["lamb"] < 1e-6
        assert found["largest"][0] == found["largest"][1] != ""
        assert found["broken"] == "first non-finite weights: 1.weight", "known on both ranks"
