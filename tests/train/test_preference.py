"""Preference tuning: the loss and the gradients of the formula under autograd, on every memory strategy."""

import json

import numpy as np
import pytest
import torch

from handscroll.base.errors import CheckpointError, ConfigError
from handscroll.data.batch import collate
from handscroll.data.encoded import Encoded
from handscroll.data.preferred import Pair, Preferred
from handscroll.nn.noise import Noise
from handscroll.objectives.causal import Causal
from handscroll.objectives.preference import Preference
from handscroll.train.assemble import Updates
from handscroll.train.loop import Callbacks, train
from handscroll.train.lora import LoRA, add_lora
from handscroll.train.optim import Optimizer
from handscroll.train.preference import PreferenceStep, reference_likelihoods, row_likelihoods, without_updates
from handscroll.train.run import Loop, Run
from handscroll.train.schedule import Schedule
from handscroll.train.step import Step
from handscroll.train.strategies.plain import Plain
from handscroll.train.strategies.staged import Staged
from tests.generate.material import tiny


def pairs_of(count=4, seed=0, vocab=4):
    drawn = np.random.default_rng(seed)

    def side(prompt, size):
        ids = prompt + drawn.integers(0, vocab, size).tolist()
        return Encoded(ids, [n >= len(prompt) for n in range(len(ids))], "row")

    prompts = [drawn.integers(0, vocab, drawn.integers(2, 9)).tolist() for _ in range(count)]
    return [Pair(side(prompt, 5 + n), side(prompt, 9 - n)) for n, prompt in enumerate(prompts)]


def direct(model, other, pairs, settings):
    """The formula of the paper, with whole logits and autograd."""

    def likelihood(model, one):
        ids = torch.tensor([one.ids])
        scores = model(ids[:, :-1]).log_softmax(-1).gather(2, ids[:, 1:, None])[0, :, 0]
        kept = scores[torch.tensor(one.trained[1:])]
        return kept.mean() if settings.mean else kept.sum()

    losses, margins = [], []
    for pair in pairs:
        with torch.no_grad():
            base = likelihood(other, pair.chosen) - likelihood(other, pair.rejected)
        margin = likelihood(model, pair.chosen) - likelihood(model, pair.rejected) - base
        margins.append(float(margin.detach()))
        if settings.loss == "ipo":
            losses.append((margin - 1 / (2 * settings.beta)) ** 2)
        else:
            sure = torch.sigmoid(settings.beta * margin)
            losses.append(-(1 - settings.smoothing) * sure.log() - settings.smoothing * (1 - sure).log())
    return torch.stack(losses).mean(), margins


SETTINGS = {
    "sigmoid": Preference(beta=0.3),
    "smoothed": Preference(beta=0.3, smoothing=0.1),
    "mean": Preference(beta=2.0, mean=True),
    "ipo": Preference(beta=0.3, loss="ipo", mean=True),
}
STRATEGIES = {
    "plain": Plain(),
    "checkpoint": Plain(recompute=True),
    "chunk": Staged(3, 0, 0, None),
    "layer": Staged(3, 1, 0, None),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_gradient_is_that_of_the_formula_on_every_strategy(name):
    settings, pairs = SETTINGS[name], pairs_of()
    model, other = tiny(0), tiny(1)
    rows = Preferred(pairs)
    want, margins = direct(model, other, pairs, settings)
    want.backward()
    expected = {key: p.grad.clone() for key, p in model.named_parameters()}
    reference = row_likelihoods(other, [collate([row]) for row in rows.rows])
    for strategy in STRATEGIES.values():
        model.zero_grad()
        step = PreferenceStep(Step(strategy), settings, reference, chunk=4)
        loss = step(model, [collate([row]) for row in rows.rows], Causal())
        assert float(loss.total) / loss.count == pytest.approx(float(want.detach()), rel=1e-12)
        for key, parameter in model.named_parameters():
            apart = (parameter.grad - expected[key]).norm()
            assert float(apart) <= 1e-10 * float(expected[key].norm()), key
        assert loss.metrics["margin"][0] == pytest.approx(settings.beta * sum(margins), rel=1e-10)
        assert loss.metrics["accuracy"] == (sum(margin > 0 for margin in margins), len(pairs))
        kept = loss.metrics["reward_chosen"][0] - loss.metrics["reward_rejected"][0]
        assert kept == pytest.approx(loss.metrics["margin"][0], rel=1e-10)


def test_a_run_learns_the_preferences_and_goes_on_with_its_reference(tmp_path):
    torch.manual_seed(0)
    pairs = pairs_of(6)
    model = tiny(0)
    add_lora(model, LoRA(rank=4, targets=("query", "value", "up", "down")))
    rows = Preferred(pairs, seed=0, epochs=None)
    reference = reference_likelihoods(model, rows, tmp_path / "reference.json")
    seen = []
    run = Run(tmp_path / "run", model, Optimizer(lr=0.03), Schedule(), Loop(steps=12))
    run.step = PreferenceStep(run.step, Preference(beta=0.5), reference)
    train(run, Updates(rows, 6, 1), Causal(), Callbacks(on_record=seen.append))
    assert seen[0]["loss"] == pytest.approx(float(np.log(2))) and seen[0]["margin"] == 0
    assert seen[-1]["accuracy"] == 1.0 and seen[-1]["loss"] < 0.4
    # The reference is that of the model without its updates, also afterwards.
    again = reference_likelihoods(model, rows, tmp_path / "other.json")
    assert again == pytest.approx(reference, rel=1e-12)
    assert reference_likelihoods(model, rows, tmp_path / "reference.json") == reference
    with without_updates(model):
        pass
    assert row_likelihoods(model, [collate([rows.rows[0]])])[0] != pytest.approx(reference[0], rel=1e-3)
    with pytest.raises(CheckpointError, match="other pairs"):
        reference_likelihoods(model, Preferred(pairs_of(6, seed=1)), tmp_path / "reference.json")
    (tmp_path / "reference.json").write_text("{}")
    with pytest.raises(CheckpointError, match="damaged"):
        reference_likelihoods(model, rows, tmp_path / "reference.json")


def test_pairs_resume():
    pairs = pairs_of(4)
    stream = Preferred(pairs, seed=1, epochs=2)
    items = list(stream)
    assert len(items) == 16 and all(row.document % 2 == n % 2 for n, (row, _) in enumerate(items))
    for number, (_, state) in enumerate(items):
        rest = [row.document for row, _ in stream.resume(json.loads(json.dumps(state)))]
        assert rest == [row.document for row, _ in items[number + 1 :]]
    with pytest.raises(ConfigError, match="dropout"):
        PreferenceStep(Step(Plain()), Preference(), {})(tiny(0), [], Causal(), Noise(0.1, 0, 0))
    with pytest.raises(ConfigError, match="smoothing"):
        Preference.parse({"loss": "ipo", "smoothing": 0.1}, "preference")
