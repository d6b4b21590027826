"""The benchmarks of labels take up what they kept under the same settings alone, and refuse options that do nothing."""

import json
from argparse import Namespace
from types import SimpleNamespace

import pytest

from bench import augment, far_labels, labels


@pytest.fixture
def tune(monkeypatch, tmp_path):
    """A function that runs `bench.labels` on made-up data, and the epochs and shares of what it tuned."""
    data, work = tmp_path / "data", tmp_path / "work"
    (data / "cls_en").mkdir(parents=True)
    for name in ("sst2_train.tsv", "sst2_dev.tsv"):
        rows = "".join(f"{number % 2}\ttext {name} {number}\n" for number in range(20))
        (data / "cls_en" / name).write_text(rows, encoding="utf-8")
    tuned = []

    def tuning(options, way, seed, folder, train, test):
        tuned.append((way, options.epochs, options.held_out))
        return ["1"] * 20

    monkeypatch.setattr(labels, "tuned", tuning)

    def run(*more):
        command = ["labels", str(data), "--only", "sst2", "--work", str(work), *more]
        monkeypatch.setattr("sys.argv", command)
        labels.main()

    return run, tuned


@pytest.mark.parametrize("more", [["--epochs", "5"], ["--held-out", "0"], ["--minilm", "another"]])
def test_a_result_of_other_settings_is_not_shown_as_that_of_these(tune, more):
    run, tuned = tune
    given = ["--ways", "majority,full", "--minilm", "encoder"]
    run(*given)
    run(*given)
    assert tuned == [("full", None, 0.1)]
    with pytest.raises(SystemExit, match="give another --work"):
        run(*given, *more)


def test_the_table_tells_other_epochs(tune, capsys):
    run, _ = tune
    run("--ways", "majority,full,lora", "--minilm", "encoder", "--epochs", "5", "--held-out", "0")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert sum(", 5 epochs, 0 held out" in line for line in lines) == 2


@pytest.mark.parametrize("more", [["--held-out", "0"], ["--epochs", "2"], ["--seeds", "0,1"]])
def test_options_of_tuning_are_refused_where_nothing_is_tuned(tune, capsys, more):
    run, _ = tune
    with pytest.raises(SystemExit):
        run("--ways", "majority,tfidf", *more)
    assert f"{more[0]} is for ways that tune" in capsys.readouterr().err


@pytest.mark.parametrize("other", [{"epochs": 3}, {"minilm": "another"}, {"fill": "another"}])
def test_a_run_with_changed_copies_counts_for_its_settings_alone(monkeypatch, tmp_path, other):
    monkeypatch.setattr(augment, "prepare", lambda one, folder, data: (tmp_path / "train", tmp_path / "test"))

    def finetune(recipe, run, options):
        run.mkdir(parents=True)
        line = json.dumps({"prediction": "1", "reference": "1"})
        (run / "test.predictions.jsonl").write_text(line, encoding="utf-8")
        return SimpleNamespace(scores={"test": {}})

    monkeypatch.setattr(augment, "finetune", finetune)
    monkeypatch.setattr(augment.TuningRecipe, "parse", lambda values, name: values)
    given = {"work": tmp_path / "work", "data": tmp_path, "minilm": "encoder", "epochs": 6, "rows": 300, "threads": 1}
    for _ in range(2):
        assert augment.right(Namespace(**given, fill="fill"), "trec", "replace", 0) == [True]
    with pytest.raises(SystemExit, match="give another --work"):
        augment.right(Namespace(**{**given, "fill": "fill"} | other), "trec", "replace", 0)


@pytest.mark.parametrize("other", [{"logs": 9}, {"tests": 9}, {"seed": 1}, {"minilm": "another"}, {"epochs": 2}])
def test_the_systems_of_one_table_are_of_the_same_settings(tmp_path, other):
    given = {"work": tmp_path, "logs": 160, "tests": 200, "seed": 0, "minilm": "encoder", "epochs": 4.0}
    for _ in range(2):
        far_labels.settle(Namespace(**given), ["whole"])
    (tmp_path / "whole").mkdir()
    with pytest.raises(SystemExit, match="give another --work"):
        far_labels.settle(Namespace(**given | other), ["cut"])
