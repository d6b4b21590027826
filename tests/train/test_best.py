"""The best validated weights: they go on with the run after a kill, and they are what the run ends with."""

import pytest
import torch

from handscroll.base.records import read_records
from handscroll.base.runs import checkpoint_step
from handscroll.train import start
from handscroll.train.checkpoint import load_checkpoint
from handscroll.train.start import run_recipe, validation
from handscroll.train.streams import held_out
from tests.resuming import Killed, dies_after

PATIENT = ["stages.0.steps=5", "stages.1.steps=7", "loop.save_every=4", "loop.evaluate_every=1", "loop.patience=3"]


@pytest.fixture
def falling(monkeypatch):
    """The validation loss falls with every update: by how far the embedding is from its beginning."""

    def made(held, tokenizer, model, objective):
        first = model.embedding.weight.detach().clone()
        return lambda model, pulse: 100 - float((model.embedding.weight.detach() - first).norm())

    monkeypatch.setattr(start, "validation", made)


def best_steps(folder):
    return sorted(checkpoint_step(path) for path in (folder / "best").glob("step-*"))


@pytest.mark.usefixtures("falling")
@pytest.mark.parametrize("cut", [3, 7, 8])  # before the first checkpoint, between two, and in the update of one
def test_a_run_with_patience_resumes_after_a_kill(recipe, tmp_path, cut):
    """The best weights lie after the checkpoint that the run resumes from."""
    straight, _ = run_recipe(recipe(*PATIENT), tmp_path / "straight")
    with pytest.raises(Killed):
        run_recipe(recipe(*PATIENT), tmp_path / "run", dies_after(cut))
    resumed, _ = run_recipe(recipe(*PATIENT), tmp_path / "run")
    for name in ("records.jsonl", "model/model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes(), name
    assert best_steps(tmp_path / "run") == best_steps(tmp_path / "straight")
    for name, tensor in straight.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


@pytest.mark.usefixtures("falling")
def test_the_best_weights_that_a_checkpoint_names_outlive_better_ones(recipe, tmp_path, monkeypatch):
    """The run improves after its checkpoint and is killed; resumed elsewhere, it does not improve again."""
    with pytest.raises(Killed):
        run_recipe(recipe(*PATIENT, "loop.save_every=3"), tmp_path / "run", dies_after(8))
    kept = [record["validation_loss"] for record in read_records(tmp_path / "run" / "records.jsonl")]
    assert kept == sorted(kept, reverse=True)  # the loss fell all the time, so the best of step 6 was not the last
    wanted = load_checkpoint(tmp_path / "run" / "best" / "step-000006")[0]["model"]
    monkeypatch.setattr(start, "validation", lambda *given: lambda model, pulse: 100.0)
    lm, progress = run_recipe(recipe(*PATIENT, "loop.save_every=3"), tmp_path / "run")
    assert progress.stopped and progress.best_step == 6 and progress.best_loss == kept[5]
    for name, tensor in wanted.items():
        assert torch.equal(tensor, lm.model.get_parameter(name)), name


@pytest.mark.usefixtures("falling")
def test_lost_best_weights_are_told_and_replaced_by_the_next_validated_ones(recipe, tmp_path, caplog):
    with pytest.raises(Killed):
        run_recipe(recipe(*PATIENT), tmp_path / "run", dies_after(7))
    damaged = tmp_path / "run" / "best" / "step-000004" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    _, progress = run_recipe(recipe(*PATIENT), tmp_path / "run")
    assert "the best weights, of step 4, are damaged or missing" in caplog.text
    assert progress.best_step > 4 and progress.best_loss is not None


def test_a_run_ends_with_the_best_of_its_averaged_weights(recipe, tmp_path):
    more = ("loop.average=0.5", "loop.patience=2", "loop.evaluate_every=2", "optimizer.lr=2.0")
    settings = recipe(*more, "optimizer.matrix_lr=2.0")
    lm, progress = run_recipe(settings, tmp_path / "run")
    assert progress.stopped and progress.best_step < progress.step
    held = held_out(settings.validation, lm.tokenizer, lm.model.config)
    validate = validation(held, lm.tokenizer, lm.model, settings.objective)
    assert validate(lm.model) == pytest.approx(progress.best_loss, abs=1e-6)
