"""Every optimiser lowers a loss, resumes bit for bit, follows its formula, and refuses what it would ignore."""

import json

import pytest
import torch
from pydantic import ValidationError
from pytorch_optimizer import Lamb as ReferenceLamb
from torch import nn

from handscroll.base.errors import ConfigError
from handscroll.train.checkpoint import load_checkpoint, optimizer_tensors, restore_optimizer, save_checkpoint
from handscroll.train.lamb import Lamb
from handscroll.train.optim import DEFAULTS, Optimizer
from tests.naming import naming
from tests.train.strategies.common import llama

RATES = {"adam": 0.02, "adamw": 0.02, "sgd": 0.1, "lamb": 0.03, "muon": 0.02, "adafactor": 0.05}


class Net(nn.Module):
    """A table, a hidden matrix with a bias, a norm and a head: every kind of parameter that is told apart."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.hidden = nn.Linear(8, 8)
        self.norm = nn.RMSNorm(8)
        self.projection = nn.Linear(8, 3, bias=False)

    @property
    def head(self):
        return self.projection.weight

    def forward(self, tokens):
        return self.projection(self.norm(torch.tanh(self.hidden(self.table(tokens)))))


def net(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return Net().to(dtype)


def backward(model):
    """A small regression: learn a fixed table of three numbers for each of eleven words."""
    dtype = model.head.dtype
    wanted = torch.randn(11, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype)
    loss = (model(torch.arange(11)) - wanted).square().mean()
    loss.backward()
    return float(loss.detach())


def step(model, optimizers):
    loss = backward(model)
    for optimizer in optimizers.values():
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss


@pytest.mark.parametrize("name", DEFAULTS)
def test_lowers_the_loss(name):
    model = net()
    optimizers = Optimizer(name=name, lr=RATES[name]).build(model)
    losses = [step(model, optimizers) for _ in range(60)]
    assert losses[-1] < 0.35 * losses[0], losses[::10]


@pytest.mark.parametrize("name", [*DEFAULTS, "sgd-nesterov"])
def test_three_steps_saved_and_three_more_are_six(name, tmp_path):
    rule, _, nesterov = name.partition("-")
    settings = Optimizer(name=rule, weight_decay=0.1, nesterov=True if nesterov else None)
    straight = net()
    optimizers = settings.build(straight)
    for _ in range(6):
        step(straight, optimizers)

    first = net()
    optimizers = settings.build(first)
    for _ in range(3):
        step(first, optimizers)
    tensors, states = {"model": first.state_dict()}, {}
    for key, optimizer in optimizers.items():
        tensors[key], states[key] = optimizer_tensors(optimizer)
        assert states[key]["values"] == {}, "all state is tensors"
    tensors, state = load_checkpoint(save_checkpoint(tmp_path, 3, tensors, states))
    second = net(seed=9)
    second.load_state_dict(tensors["model"])
    optimizers = settings.build(second)
    for key, optimizer in optimizers.items():
        restore_optimizer(optimizer, tensors[key], state[key])
    for _ in range(3):
        step(second, optimizers)
    for key, tensor in straight.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[key]), key


# ---- LAMB ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_lamb_equals_the_reference_in_float64(decay):
    """pytorch_optimizer's without bias correction, with the decay inside the ratio.

    By default that one divides the rate by 1 - beta1^t, outside the ratio (ten times the step at first);
    `adam_debias` turns this off. Its ratio has an eps where the paper has none, and it caps |w| at 10: the eps
    here is tiny and the weights stay below.
    """
    ours, theirs = net(dtype=torch.float64), net(dtype=torch.float64)
    for model in (ours, theirs):
        model.table.weight.data.mul_(0.3)
    options = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-13, "weight_decay": decay}
    one = Lamb(ours.parameters(), bias_correction=False, **options)
    two = ReferenceLamb(theirs.parameters(), weight_decouple=False, pre_norm=False, adam_debias=True, **options)
    for _ in range(10):
        backward(ours), backward(theirs)
        one.step(), two.step()
        one.zero_grad(), two.zero_grad()
    assert max(float(p.detach().norm()) for p in theirs.parameters()) < 10
    for got, want in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


def test_lamb_follows_algorithm_2_with_bias_correction():
    """Written out for one tensor, with an eps large enough to be seen; then without the ratio."""
    generator = torch.Generator().manual_seed(0)
    begin, *grads = (torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(6))
    for adapt in (True, False):
        weight = nn.Parameter(begin.clone())
        optimizer = Lamb([{"params": [weight], "adapt": adapt}], lr=0.1, betas=(0.8, 0.7), eps=0.3, weight_decay=0.2)
        want, m, v = begin.clone(), torch.zeros(()), torch.zeros(())
        for number, grad in enumerate(grads, start=1):
            weight.grad = grad.clone()
            optimizer.step()
            m, v = 0.8 * m + 0.2 * grad, 0.7 * v + 0.3 * grad**2
            update = (m / (1 - 0.8**number)) / ((v / (1 - 0.7**number)) ** 0.5 + 0.3) + 0.2 * want
            ratio = want.norm() / update.norm() if adapt else 1.0
            want = want - 0.1 * ratio * update
        torch.testing.assert_close(weight.detach(), want, rtol=1e-12, atol=1e-13)


def test_lamb_moves_zero_weights_and_leaves_zero_gradients_alone():
    zero, still = nn.Parameter(torch.zeros(3, 2)), nn.Parameter(torch.ones(3, 2))
    optimizer = Lamb([zero, still], lr=0.1)
    zero.grad, still.grad = torch.ones(3, 2), torch.zeros(3, 2)
    optimizer.step()
    torch.testing.assert_close(zero.detach(), torch.full((3, 2), -0.1))
    assert torch.equal(still.detach(), torch.ones(3, 2))


# ---- what acts on what -----------------------------------------------------------------------------------------


def test_keys_groups_and_peaks():
    model = net()
    for name in DEFAULTS:
        optimizers = Optimizer(name=name, lr=0.5, weight_decay=0.25).build(model)
        assert list(optimizers) == (["adamw", "muon"] if name == "muon" else [name])
        first = next(iter(optimizers.values()))
        assert [group["weight_decay"] for group in first.param_groups] == [0.25, 0.0]
        assert all(group["peak"] == 0.5 for group in first.param_groups)
        matrices = {id(p) for p in first.param_groups[0]["params"]}
        expected = {id(p) for p in model.parameters() if p.dim() == 2}
        assert matrices == (expected - {id(model.hidden.weight)} if name == "muon" else expected)
    muon = Optimizer(name="muon", matrix_lr=0.7).build(model)["muon"]
    assert muon.param_groups[0]["peak"] == 0.7 and muon.param_groups[0]["params"] == [model.hidden.weight]


def test_the_options_reach_the_rule():
    model = net()
    for name in ("adam", "adamw", "lamb", "muon"):
        group = next(iter(Optimizer(name=name, betas=(0.5, 0.6), eps=0.125).build(model).values())).param_groups[0]
        assert group["betas"] == (0.5, 0.6) and group["eps"] == 0.125
    assert [group["adapt"] for group in Optimizer(name="lamb").build(model)["lamb"].param_groups] == [True, False]
    sgd = Optimizer(name="sgd", momentum=0.5, nesterov=True).build(model)["sgd"].param_groups[0]
    assert sgd["momentum"] == 0.5 and sgd["nesterov"] is True
    assert Optimizer(name="adafactor", eps=0.125).build(model)["adafactor"].param_groups[0]["eps"] == (0.125, 1e-3)
    assert Optimizer(name="muon", momentum=0.5).build(model)["muon"].param_groups[0]["momentum"] == 0.5
    kinds = {name: type(next(iter(Optimizer(name=name).build(model).values()))) for name in DEFAULTS}
    assert kinds["adam"] is torch.optim.Adam and kinds["adamw"] is kinds["muon"] is torch.optim.AdamW
    assert kinds["lamb"] is Lamb and kinds["sgd"] is torch.optim.SGD and kinds["adafactor"] is torch.optim.Adafactor


def decayed(name, rate=0.5, decay=0.1):
    """What weight decay alone does to a matrix in one step from a gradient of 2: the difference it makes."""
    results = []
    for strength in (decay, 0.0):
        model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
        model.weight.data.fill_(3.0)
        model.weight.grad = torch.full((1, 1), 2.0, dtype=torch.float64)
        Optimizer(name=name, lr=rate, weight_decay=strength).build(model)[name].step()
        results.append(float(model.weight.detach()))
    return results[0] - results[1]


def test_weight_decay_means_what_the_docstring_says():
    assert decayed("sgd") == pytest.approx(-0.5 * 0.1 * 3.0)  # joins the gradient
    assert decayed("adam") == pytest.approx(0.0, abs=1e-7)  # so does Adam's, and is then divided by it: sign stays
    for name in ("adamw", "adafactor"):
        assert decayed(name) == pytest.approx(-0.5 * 0.1 * 3.0), name  # decoupled
    assert decayed("lamb") == pytest.approx(0.0, abs=1e-7)  # inside the ratio: one number keeps its step |w|


def test_frozen_parameters_are_left_out():
    model = net()
    model.table.weight.requires_grad_(False)
    model.norm.weight.requires_grad_(False)
    held = Optimizer().build(model)["adamw"]
    assert sum(len(group["params"]) for group in held.param_groups) == 3


# ---- settings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("adam", "momentum", 0.9),
        ("adamw", "momentum", 0.9),
        ("adamw", "matrix_lr", 0.1),
        ("adamw", "nesterov", False),
        ("sgd", "betas", [0.9, 0.95]),
        ("sgd", "eps", 1e-8),
        ("sgd", "matrix_lr", 0.1),
        ("lamb", "momentum", 0.9),
        ("muon", "nesterov", True),
        ("adafactor", "betas", [0.9, 0.95]),
        ("adafactor", "momentum", 0.9),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(name, option, value):
    with pytest.raises(ConfigError, match=naming(name, option, "lr", "weight_decay")):
        Optimizer.parse({"name": name, option: value}, "recipe")
    with pytest.raises(ValidationError, match="ignore"):
        Optimizer(name=name, **{option: value})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"name": "rmsprop"}, "'adafactor'"),
        ({"name": 3}, "'adafactor'"),
        ({"name": "adam", "betas": [0.9, 1.0]}, "betas"),
        ({"name": "sgd", "momentum": 0.0, "nesterov": True}, "momentum"),
        ({"name": "adam", "eps": 0.0}, "eps"),
        ({"lrr": 1.0}, "'lr'"),
    ],
)
def test_wrong_settings_are_refused(values, words):
    with pytest.raises(ConfigError, match=words):
        Optimizer.parse(values, "recipe")


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_kept_recipe_shows_the_numbers_used_and_reads_back(name):
    settings = Optimizer(name=name)
    kept = json.loads(json.dumps(settings.model_dump(mode="json")))
    assert Optimizer.parse(kept, "kept") == settings
    assert {key: getattr(settings, key) for key in DEFAULTS[name]} == DEFAULTS[name]
    unused = {"betas", "eps", "matrix_lr", "momentum", "nesterov"} - DEFAULTS[name].keys()
    assert all(kept[key] is None for key in unused)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_rules_of_older_recipes_are_unchanged(name):
    """As they were before other rules joined: torch's classes with these arguments."""
    ours, theirs = net(), net()
    optimizers = Optimizer(name=name, weight_decay=0.1).build(ours)
    tables = [theirs.table.weight, theirs.projection.weight]
    groups = [
        {"params": tables if name == "muon" else [*tables, theirs.hidden.weight], "weight_decay": 0.1},
        {"params": [theirs.hidden.bias, theirs.norm.weight], "weight_decay": 0.0},
    ]
    reference: dict = {"adamw": torch.optim.AdamW(groups, lr=3e-4, betas=(0.9, 0.95))}
    if name == "muon":
        reference["muon"] = torch.optim.Muon([theirs.hidden.weight], lr=0.02, momentum=0.95, weight_decay=0.1)
    for _ in range(4):
        assert step(ours, optimizers) == step(theirs, reference)
    for got, want in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_layer_decay_acts_on_every_matrix_of_a_layer(name):
    model = llama()
    names = {id(parameter): named for named, parameter in model.named_parameters()}
    peaks = {}
    settings = {"lr": 0.5, "layer_decay": 0.5} | ({"matrix_lr": 0.5} if name == "muon" else {})
    for optimizer in Optimizer(name=name, **settings).build(model).values():
        for group in optimizer.param_groups:
            peaks |= {names[id(parameter)]: group["peak"] for parameter in group["params"]}
    assert peaks.keys() == set(names.values())
    for named, peak in peaks.items():
        below = 4 - int(named.split(".")[1]) if named.startswith("layers.") else 5 * named.startswith("embedding.")
        assert peak == 0.5 * 0.5**below, named
