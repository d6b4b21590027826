"""Spikes are caught, noise is not, the state goes through JSON, and the guilty tensors are named."""

import json
import math
import re

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from handscroll.train.spike import Spike, SpikeGuard, culprits
from tests.naming import naming

RECOMMENDED = Spike(threshold=7.5)


def curve(noise, steps, seed, size=0.05):
    """A falling loss curve from about 9.5 to 3 nats, its noise, and the standard deviation of the noise."""
    generator = np.random.default_rng(seed)
    trend = 2.0 + 7.5 * (1 + np.arange(steps) / 50) ** -0.35
    if noise == "normal":
        return trend, size * generator.normal(size=steps), size
    freedom = int(noise.removeprefix("t"))
    return trend, size * generator.standard_t(freedom, size=steps), size * math.sqrt(freedom / (freedom - 2))


def rates(noise, steps, seed, settings=RECOMMENDED):
    """Share of spikes of 10 standard deviations that are caught, and the number of false alarms.

    Every step is tried once as it is and once as a spike; the guard goes on with the loss as it is.
    """
    trend, wobble, deviation = curve(noise, steps, seed)
    guard, alarms, caught, tried = SpikeGuard(settings), 0, 0, 0
    for number, loss in enumerate((trend + wobble).tolist()):
        alarms += guard.check(loss) is not None
        if number >= settings.warmup:
            tried += 1
            caught += guard.check(loss + 10 * deviation) is not None
        guard.add(loss)
    return caught / tried, alarms


@pytest.mark.promise("R13")
@pytest.mark.parametrize("noise", ["normal", "t8"])
def test_spikes_are_caught_and_noise_is_not(noise):
    caught, alarms = rates(noise, 10_000, seed=0)
    assert caught >= 0.95 and alarms <= 1, (caught, alarms)


@pytest.mark.long
@pytest.mark.parametrize(("noise", "threshold", "most"), [("normal", 7.5, 0), ("t8", 7.5, 20), ("t5", 10.0, 20)])
def test_false_alarms_over_two_hundred_thousand_steps(noise, threshold, most):
    found = [rates(noise, 10_000, seed, Spike(threshold=threshold)) for seed in range(20)]
    alarms, caught = sum(alarm for _, alarm in found), sum(share for share, _ in found) / 20
    assert alarms <= most and caught >= (0.95 if threshold < 10 else 0.85), (alarms, caught)


def filled(losses, settings=RECOMMENDED):
    guard = SpikeGuard(settings)
    for loss in losses:
        guard.add(float(loss))
    return guard


def test_a_flat_curve_does_not_alarm_but_a_jump_does():
    for level in (0.0, 1e-6, 3.0):
        guard = filled([level] * 100)
        assert guard.check(level + 1e-4) is None
        assert guard.check(level + 0.5) is not None


def test_outliers_in_the_window_do_not_hide_a_spike():
    trend, wobble, deviation = curve("normal", 300, seed=3)
    losses = trend + wobble
    losses[200::8] += 9 * deviation  # an eighth of the window
    guard = filled(losses)
    assert guard.check(float(trend[-1] + 11 * deviation)) is not None
    assert guard.check(float(trend[-1] + 3 * deviation)) is None


def test_the_trend_is_followed():
    """On a steep line a spike is far below the losses of the window, and is one all the same."""
    line = [10.0 - 0.05 * step + 0.01 * (-1) ** step for step in range(128)]
    guard = filled(line)
    assert guard.check(10.0 - 0.05 * 128) is None
    assert guard.check(10.0 - 0.05 * 128 + 0.5) is not None


def test_only_upward_jumps_count():
    guard = filled(curve("normal", 200, seed=1)[0])
    assert guard.check(0.0) is None and guard.check(9.0) is not None


def test_warm_up_and_off():
    for warmup in (16, 64, 300):
        settings = Spike(threshold=7.5, warmup=warmup)
        assert filled([3.0] * (warmup - 1), settings).check(30.0) is None
        assert filled([3.0] * warmup, settings).check(30.0) is not None
    off = filled([3.0] * 200, Spike())
    assert off.check(1e9) is None and off.check(math.nan) is None and off.state() == []


def test_the_message_names_loss_trend_spread_and_threshold():
    message = filled([3.0] * 200).check(5.0)
    assert re.match(naming("loss 5", 666.7, 0.003, 3, 7.5), message), message
    for loss in (math.nan, math.inf):
        assert SpikeGuard(RECOMMENDED).check(loss) == f"loss {loss} is not finite", "also in the warm-up"


@pytest.mark.parametrize("cut", [5, 64, 128, 400])
def test_going_on_from_json_is_exact(cut):
    losses = sum(curve("t5", 500, seed=2)[:2]).tolist()
    straight = filled(losses[:cut])
    state = json.loads(json.dumps(straight.state()))
    resumed = SpikeGuard.from_state(RECOMMENDED, state)
    state.append(1.0)
    assert resumed.state() == straight.state(), "the guard keeps a copy"
    for loss in losses[cut:]:
        assert straight.check(loss + 0.3) == resumed.check(loss + 0.3)
        straight.add(loss), resumed.add(loss)
    assert straight.state() == resumed.state() and len(straight.state()) == 128


@pytest.mark.parametrize("values", [{"threshold": -1}, {"window": 8}, {"warmup": 0}, {"threshold": math.inf}])
def test_impossible_settings_are_refused(values):
    with pytest.raises(ValidationError):
        Spike(**values)


# ---- culprits --------------------------------------------------------------------------------------------------


def model():
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(4)))
    for number, layer in enumerate(net):
        layer.weight.data.fill_(1.0)
        layer.weight.grad = torch.full((4, 4), [0.5, 3.0, 0.1, 2.0][number])
    return net


def test_the_largest_gradients_relative_to_weights():
    net = model()
    assert culprits(net) == "largest gradients relative to weights: 1.weight (3), 3.weight (2), 0.weight (0.5)"
    net[2].weight.data.fill_(0.02)
    assert culprits(net, limit=1) == "largest gradients relative to weights: 2.weight (5)"
    net[0].weight.data.zero_()
    net[0].weight.grad.fill_(1e-4)
    assert "0.weight" not in culprits(net), "zero weights with a tiny gradient are no suspects"


def test_size_does_not_make_guilty():
    """Root mean squares, not norms: a large table is not named for being large."""
    net = nn.ModuleDict({"small": nn.Linear(2, 2, bias=False), "large": nn.Linear(100, 100, bias=False)})
    net["small"].weight.data.fill_(1.0), net["large"].weight.data.zero_()
    net["small"].weight.grad, net["large"].weight.grad = torch.full((2, 2), 0.2), torch.full((100, 100), 1e-4)
    assert culprits(net, 1).endswith("small.weight (0.2)")


@pytest.mark.promise("R13")
def test_non_finite_weights_go_before_gradients():
    net = model()
    for number in (3, 1):
        net[number].weight.grad[0, 0] = math.nan  # the last one is over the limit
    net[0].weight.grad[0, 0] = -math.inf
    assert culprits(net, 2) == "first non-finite gradients: 0.weight, 1.weight"
    net[2].weight.data[1, 1] = math.inf
    assert culprits(net) == "first non-finite weights: 2.weight"


def test_no_gradients_no_suspects():
    assert culprits(nn.Linear(2, 2)) == ""
