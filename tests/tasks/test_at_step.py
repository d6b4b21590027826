"""Predictions of the checkpoints of a tuning run."""

import shutil
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file, save_file

from handscroll.base.errors import CheckpointError, ConfigError
from handscroll.base.runs import write_folder
from handscroll.tasks.at_step import at_step
from handscroll.tasks.ensemble import together
from handscroll.tasks.finetune import finetune
from handscroll.tasks.predict import load_tuned, predict
from handscroll.tasks.recipe import TaskData
from tests.tasks.material import recipe, table, tiny


def chances(source, data) -> torch.Tensor:
    found = predict(*load_tuned(source), TaskData(train=(str(data),))).predictions
    return torch.tensor([list(one.more["probabilities"].values()) for one in found])


@pytest.mark.parametrize("way", ["full", "head", "last", "lora"])
def test_the_last_checkpoint_predicts_what_the_saved_model_predicts(tmp_path, way):
    model, data, run = tiny(tmp_path / "bert"), table(tmp_path / "train.csv"), tmp_path / "run"
    how = {"way": way, "epochs": 3, **({"layers": 1} if way == "last" else {})}
    finetune(recipe(model, data, how, held_out=0), run)
    steps = sorted(run.glob("step-*"))
    torch.testing.assert_close(chances(steps[-1], data), chances(run, data))
    assert not torch.equal(chances(steps[0], data), chances(run, data))


def test_the_best_weights_are_those_of_the_result(tmp_path):
    model, data, run = tiny(tmp_path / "bert"), table(tmp_path / "train.csv"), tmp_path / "run"
    tuned = finetune(recipe(model, data, {"epochs": 3}), run)
    assert tuned.progress is not None
    best = run / "best" / f"step-{tuned.progress.best_step:06d}"
    torch.testing.assert_close(chances(best, data), chances(run, data))


def test_the_last_weights_are_the_result_where_they_are_asked_for(tmp_path):
    model, data = tiny(tmp_path / "bert"), table(tmp_path / "train.csv", 40, ("bad", "good"))
    lines = data.read_text(encoding="utf-8").splitlines()  # labels that no text tells: what is learned is noise
    told = [f"{line.rpartition(',')[0]},{'good' if number % 3 else 'bad'}" for number, line in enumerate(lines[1:])]
    data.write_text("\n".join([lines[0], *told]) + "\n", encoding="utf-8")
    for result in ("best", "last"):
        run, how = tmp_path / result, {"epochs": 12, "lr": 2e-2, "result": result}
        tuned = finetune(recipe(model, data, how), run)
        assert tuned.progress is not None and tuned.progress.best_step < tuned.progress.step
        last = max(run.glob("step-*"))
        assert torch.allclose(chances(last, data), chances(run, data), atol=1e-6) == (result == "last")
        card = (run / "model" / "README.md").read_text(encoding="utf-8")
        kept = tuned.progress.step if result == "last" else tuned.progress.best_step
        assert f"those of update {kept:,}" in card and ("was lowest" in card) == (result == "best")
        assert (run / "best").exists() == (result == "best") and tuned.scores["valid"]
    with pytest.raises(ConfigError, match="leave result out"):
        recipe(model, data, {"result": "last", "patience": 2})


def test_numbers_come_in_their_own_units(tmp_path):
    data, run = tmp_path / "train.csv", tmp_path / "run"
    lines = [f"w{20 + number % 2} w{30 + number % 7},{100 + 50 * (number % 2)}" for number in range(32)]
    data.write_text("text,number\n" + "\n".join(lines) + "\n", encoding="utf-8")
    finetune(recipe(tiny(tmp_path / "bert"), data, None, {"name": "regress"}, held_out=0), run)
    (*_, last), given = sorted(run.glob("step-*")), TaskData(train=(str(data),))
    one, other = (predict(*load_tuned(source), given).predictions for source in (last, run))
    assert [a.output for a in one] == pytest.approx([b.output for b in other], rel=1e-4)


def test_as_many_checkpoints_are_kept_as_asked_and_joined_to_an_ensemble(tmp_path):
    model, data, run = tiny(tmp_path / "bert"), table(tmp_path / "train.csv"), tmp_path / "run"
    finetune(recipe(model, data, {"epochs": 5, "checkpoints": 3}), run)
    steps = sorted(run.glob("step-*"))
    assert len(steps) == 3 and '"checkpoints"' not in (run / "recipe.json").read_text(encoding="utf-8")
    each = [chances(step, data) for step in steps]
    assert all(not torch.equal(a, b) for a, b in pairwise(each))
    found = together(steps, TaskData(train=(str(data),)))
    mean = [list(one.more["probabilities"].values()) for one in found.joint.predictions]
    torch.testing.assert_close(torch.tensor(mean), sum(each) / 3)
    assert set(found.members) == {str(step) for step in steps} and found.gain is not None


def test_a_run_goes_on_when_another_number_of_checkpoints_is_kept(tmp_path):
    model, data, run = tiny(tmp_path / "bert"), table(tmp_path / "train.csv"), tmp_path / "run"
    first = finetune(recipe(model, data, {"epochs": 2}), run)
    again = finetune(recipe(model, data, {"epochs": 2, "checkpoints": 4}), run)
    assert first.progress is not None and again.progress is not None and again.progress.step == first.progress.step


def test_an_adapter_that_was_tuned_further_is_found_again(tmp_path):
    model, data, run = tiny(tmp_path / "bert"), table(tmp_path / "train.csv"), tmp_path / "run"
    finetune(recipe(model, data, {"way": "lora", "epochs": 1}, held_out=0), tmp_path / "first")
    finetune(recipe(tmp_path / "first", data, {"way": "lora", "epochs": 2}, held_out=0), run)
    torch.testing.assert_close(chances(sorted(run.glob("step-*"))[-1], data), chances(run, data))
    merged = tmp_path / "merged"
    finetune(recipe(tmp_path / "first", data, {"way": "last", "layers": 1, "epochs": 1}, held_out=0), merged)
    with pytest.raises(ConfigError, match="merged an adapter before it began: use its result"):
        at_step(max(merged.glob("step-*")))


def test_what_is_no_checkpoint_of_a_tuning_run_is_refused(tmp_path):
    model, data, run = tiny(tmp_path / "bert"), table(tmp_path / "train.csv"), tmp_path / "run"
    finetune(recipe(model, data, {"epochs": 1}), run)
    step = max(run.glob("step-*"))
    with pytest.raises(ConfigError, match="leave --task and --shots out"):
        load_tuned(step, {"name": "classify"})
    with pytest.raises(ConfigError, match="leave --task and --shots out"):
        load_tuned(step, prompted=True)
    shutil.copytree(step, alone := tmp_path / "elsewhere" / step.name)
    with pytest.raises(ConfigError, match="no checkpoint of a run of handscroll finetune"):
        load_tuned(alone)


def test_a_damaged_checkpoint_and_one_of_another_model_are_refused(tmp_path):
    model, data, run = tiny(tmp_path / "bert"), table(tmp_path / "train.csv"), tmp_path / "run"
    finetune(recipe(model, data, {"epochs": 1}), run)
    step = max(run.glob("step-*"))
    kept = load_file(step / "model.safetensors")
    save_file({name: tensor * 2 for name, tensor in kept.items()}, step / "model.safetensors")
    with pytest.raises(CheckpointError, match="not a valid checkpoint"):
        at_step(step)
    files = {path.name: path.read_bytes() for path in step.iterdir() if path.name != "manifest.json"}
    shutil.rmtree(step)
    (name, one), *rest = kept.items()
    save_file({name: one[:1].clone(), **dict(rest)}, part := tmp_path / "part.safetensors")
    write_folder(step, files | {"model.safetensors": part.read_bytes()})
    with pytest.raises(CheckpointError, match="of another model: tensor"):
        at_step(step)
