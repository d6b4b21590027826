"""Experiments over seeds: no result counts twice, nothing is chosen by what is reported, and a failure is told."""

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from bench import pretraining, recurrent, seeds
from handscroll.text.training import TokenizerConfig


def line(seed, loss, rate=2e-3, chosen=5.0):
    numbers = {"chosen": chosen, "loss": loss, "bits": loss, "blocks": {"16": loss, "64": loss}}
    about = {"family": "lstm", "context": 64, "tokens": 400_000, "rate": rate, "seed": seed}
    return about | numbers | {"parameters": 9, "kept": 9}


def test_a_seed_that_was_run_twice_counts_once(capsys):
    recurrent.table([line(1, 9.0), line(2, 3.0), line(1, 2.0)])
    (row,) = [text for text in capsys.readouterr().out.splitlines() if text.startswith("| lstm")]
    assert row.startswith("| lstm | 2 | ") and "| 2.500 ± 0.707 |" in row


def test_the_rate_is_not_chosen_by_the_accuracy_that_is_reported(capsys):
    about = {"probe": "trec, tuned", "arm": "pre-trained", "updates": 9, "width": 8, "layers": 1, "tokens": 10}
    rows = [(3e-4, 0.9, 0.5), (1e-3, 0.1, 0.8), (5e-4, None, 1.0)]
    found = [
        about | {"seed": seed, "rate": rate, "accuracy": accuracy} | ({"chosen": chosen} if chosen else {})
        for seed in (1, 2, 2)
        for rate, chosen, accuracy in rows
    ]
    pretraining.table(found)
    assert "| trec, tuned | pre-trained | 9 | 0.0003 | 50.0 | 50.0 |  | 50.0 ± 0.0 |" in capsys.readouterr().out


@pytest.fixture
def texts(tmp_path, monkeypatch):
    """Options of `bench.pretraining` for a folder of very small texts."""
    monkeypatch.setattr(pretraining, "BOOKS", ("book",))
    monkeypatch.setattr(pretraining, "HELD_OUT", 10)
    monkeypatch.setattr(pretraining, "CPU", (264, 1000, 8))
    monkeypatch.setattr(pretraining, "GPU", (270, 1000, 8))
    (tmp_path / "text_en/books_train").mkdir(parents=True)
    (tmp_path / "cls_en").mkdir()
    (tmp_path / "text_en/books_train/book.txt").write_text("some words of a book " * 20, encoding="utf-8")
    for name in ("trec_train", "sst2_train", "sst2_dev"):
        rows = "".join(f"{number % 2}\t{name} {number}\n" for number in range(60))
        (tmp_path / "cls_en" / f"{name}.tsv").write_text(rows, encoding="utf-8")
    return argparse.Namespace(work=str(tmp_path / "work"), data=str(tmp_path), device="cpu")


def test_a_fifth_of_the_training_rows_chooses_and_is_not_learned_from(texts):
    pretraining.made(texts)
    folder = pretraining.prepared_folder(texts)
    parts = {path.stem: path.read_text(encoding="utf-8").splitlines() for path in folder.glob("*.tsv")}
    for task in pretraining.TASKS:
        assert parts[f"{task}-choose"] + parts[f"{task}-learn"] == parts[task]
        assert len(parts[f"{task}-choose"]) == len(parts[task]) // 5
    place = seeds.Place(Path("x"), "cpu", 0, 1.0, Path("x"))
    read = pretraining.tuning(texts, 1, place, "trec", 1e-3, None).data["trec"].model_dump()
    assert read["file"].endswith("trec-learn.tsv")


def test_each_device_has_the_tokenizer_of_its_size(texts):
    sizes = []
    for device in ("cpu", "cuda"):
        texts.device = device
        pretraining.made(texts)
        noted = pretraining.prepared_folder(texts) / "text.settings.json"
        sizes.append(json.loads(noted.read_text(encoding="utf-8"))["tokenizer"]["vocab"])
    assert sizes == [264, 270]


def test_tokens_of_another_tokenizer_are_refused(texts):
    files = pretraining.files(texts.data)
    seeds.prepared(Path(texts.work), files, TokenizerConfig(vocab=260))
    seeds.prepared(Path(texts.work), files, TokenizerConfig(vocab=260))
    with pytest.raises(SystemExit, match="give another --work"):
        seeds.prepared(Path(texts.work), files, TokenizerConfig(vocab=270))


def test_tokens_that_were_half_written_are_made_again(texts, monkeypatch):
    def killed(source, folder):
        folder.mkdir()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(seeds.TokenSource, "save", killed)
        seeds.prepared(Path(texts.work), pretraining.files(texts.data), TokenizerConfig(vocab=260))
    _, source = seeds.prepared(Path(texts.work), pretraining.files(texts.data), TokenizerConfig(vocab=260))
    assert source.total > 0


@pytest.fixture
def fit(monkeypatch, tmp_path):
    """A function: `Place.fit` of a recipe with given values, where nothing is really trained."""
    model = SimpleNamespace(to=lambda device: model, eval=lambda: model)
    monkeypatch.setattr(seeds, "build_model", lambda recipe, tokenizer: model)
    monkeypatch.setattr(seeds, "Run", lambda folder, *given: folder.mkdir(parents=True, exist_ok=True))
    monkeypatch.setattr(seeds, "train", lambda *given: SimpleNamespace(step=1))
    for name in ("updates", "row_streams"):
        monkeypatch.setattr(seeds, name, lambda *given: None)

    def begun(**values):
        recipe = MagicMock(seed=0, steps=1)
        recipe.model_dump.return_value = values
        about = {"device": "cpu", "data": "texts"}
        place = seeds.Place(tmp_path, "cpu", float("inf"), 1.0, tmp_path / "out.jsonl", about)
        return place.fit(recipe, MagicMock(), MagicMock(), "run")

    return begun


def test_a_run_of_other_rows_is_not_gone_on_with(fit):
    """The texts of an experiment and the rows of a recipe are both called `data`."""
    with pytest.raises(KeyboardInterrupt), fit(data={"kind": "text"}):
        raise KeyboardInterrupt
    with pytest.raises(SystemExit, match=r"recipe\.data\.kind"), fit(data={"kind": "copies"}):
        pass


def test_a_checkpoint_stays_until_its_result_is_kept(fit, tmp_path):
    with pytest.raises(KeyboardInterrupt), fit():
        raise KeyboardInterrupt
    assert (tmp_path / "run").exists()
    with fit():
        assert (tmp_path / "run").exists()
    assert not list(tmp_path.iterdir())


def test_what_stands_in_the_results_is_known_for_its_device_and_texts(tmp_path):
    here, there = (
        seeds.Place(tmp_path, device, 0, 1.0, tmp_path / "out.jsonl", {"device": device}) for device in ("cpu", "cuda")
    )
    assert not here.known({"seed": 1})
    here.say({"seed": 1, "loss": 2.0})
    assert here.known({"seed": 1}) and not here.known({"seed": 2}) and not there.known({"seed": 1})


@pytest.fixture
def started(monkeypatch):
    """The commands that `--all` started; those of seed 2 fail."""
    commands = []

    class Process:
        def __init__(self, command, env):
            commands.append(command)
            self.returncode = int(command[-1] == "2")

        def poll(self):
            return self.returncode

    monkeypatch.setattr(seeds.subprocess, "Popen", Process)
    monkeypatch.setattr(seeds.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(seeds.sys.modules["__main__"], "__spec__", argparse.Namespace(name="bench.pretraining"))
    return commands


def test_all_ends_with_the_failure_of_its_processes_and_without_a_limit_of_time(started, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("sys.argv", ["seeds", "--all", "--work", str(tmp_path), "--out", str(tmp_path / "out.jsonl")])
    with pytest.raises(SystemExit, match=r"not finished: probe 2 \(status 1\); the same command goes on"):
        seeds.main("", ("probe",), lambda options: None, lambda *given: None, lambda found: None)
    assert len(started) == 3 and all(command[command.index("--end") + 1] == "inf" for command in started)


def test_a_process_that_has_no_time_left_says_that_it_can_go_on(monkeypatch, tmp_path):
    folders = []

    def work(options, part, seed, place):
        folders.append(place.folder)
        raise seeds.OutOfTime("before: after 3 of 9 updates")

    for _ in range(2):
        monkeypatch.setattr("sys.argv", ["seeds", "--seed", "3", "--work", str(tmp_path), "--minutes", "1"])
        with pytest.raises(SystemExit, match="after 3 of 9 updates; the same command goes on"):
            seeds.main("", ("probe",), lambda options: None, work, lambda found: None)
    assert folders == [tmp_path / "probe-3-cpu"] * 2
