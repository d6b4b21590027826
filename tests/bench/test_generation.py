"""`bench.generation` tests on meetings that no training row is of, and keeps what systems said by all it depends on."""

import json
import random
from itertools import combinations
from types import SimpleNamespace

import pytest

from bench import generation
from handscroll.data.table.table import Table
from handscroll.tasks.generative import Generative
from handscroll.tasks.summarise import Summarise
from handscroll.tasks.task import Prediction, task_from


def test_no_training_row_is_of_the_meeting_of_a_test_row():
    rows = [{"document": str(number), "origin": number % 30} for number in range(300)]
    random.Random("spans").shuffle(rows)
    before = {row["document"]: row["origin"] for row in rows}
    test, train = generation.parted(rows, 24, 60)
    assert [row["document"] for row in test] == [row["document"] for row in rows[:24]], "the test rows are as before"
    held = {before[row["document"]] for row in test}
    assert len(train) == 60 and not held & {before[row["document"]] for row in train}
    assert {key for row in test + train for key in row} == {"document"}


def test_rows_without_an_origin_are_parted_as_they_stand():
    rows = [{"source": str(number)} for number in range(10)]
    assert generation.parted(rows, 3, 5) == (rows[:3], rows[3:8])
    assert generation.parted(rows, 10, 0) == (rows, [])


def test_rows_of_meetings_say_which_one(monkeypatch, tmp_path):
    query = {"relevant_text_span": [["0", "0"]], "query": "q", "answer": "a"}
    meeting = {"specific_query_list": [query], "meeting_transcripts": [{"speaker": "A", "content": "b"}]}
    monkeypatch.setattr(generation, "_lines", lambda path: iter([meeting, meeting]))
    assert [row["origin"] for row in generation._spans(tmp_path)] == [0, 1]


@pytest.fixture
def keeper(tmp_path):
    """A function: the keeper for given training rows, and how often it asked."""
    task = task_from({"name": "summarise"})
    assert isinstance(task, Generative)

    def made(shots):
        examples = task.read(Table.of([{"document": "d", "summary": "s"}]), {}).examples
        more = task.read(Table.of(shots), {}).examples if shots else ()
        return generation._Keeper(task, examples, more, tmp_path / "job.scores.jsonl", "model")

    return made


def test_what_a_tuned_model_said_counts_only_for_its_recipe_and_rows(keeper):
    asked = []

    def answer():
        asked.append(1)
        return [Prediction("s")]

    rows = [{"document": "x", "summary": "y"}]
    for shots, recipe in ((rows, {"lr": 1}), (rows, {"lr": 1}), (rows, {"lr": 2}), (rows * 2, {"lr": 2})):
        keeper(shots)("tuned", answer, recipe=recipe)
    assert len(asked) == 3


def test_a_run_of_another_recipe_is_not_gone_on_with(tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}", encoding="utf-8")
    (tmp_path / "run-spans").mkdir()
    recipe = {"data": {"train": [str(tmp_path / "rows.jsonl")]}, "tuning": {"lr": 1}}
    noted = {"recipe": recipe | {"tuning": {"lr": 2}}, "rows": generation._hash(b"{}")}
    (tmp_path / "run-spans.settings.json").write_text(json.dumps(noted), encoding="utf-8")
    with pytest.raises(SystemExit, match="take another FOLDER"):
        generation._settle("spans", tmp_path, {"model": "model"}, recipe)


def test_a_stopped_tuning_gives_no_score(keeper, monkeypatch, tmp_path):
    monkeypatch.setattr(generation, "finetune", lambda *given: SimpleNamespace(finished=False))
    monkeypatch.setattr(generation.TuningRecipe, "parse", lambda values, name: values)
    with pytest.raises(SystemExit, match="stopped; the same command goes on"):
        keeper(())("tuned", lambda: generation._tuned("spans", {}, tmp_path, ()))
    assert not list(tmp_path.iterdir())


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """A job of one test row in `tmp_path`, and the models that were asked about it."""
    found = []

    def predict(task, lm, examples):
        found.append(lm)
        return [Prediction("s")] * len(examples)

    monkeypatch.setattr(generation, "load", str)
    monkeypatch.setattr(Summarise, "predict", predict)
    job = generation.Job({"name": "summarise", "perplexity": False}, recipe=False)
    monkeypatch.setattr(generation, "JOBS", {"job": job})
    generation._write(tmp_path / "job.test.jsonl", [{"document": "d", "summary": "s"}])
    return found


@pytest.mark.parametrize("changed", ["model", "rows"])
def test_scores_of_another_model_or_of_other_rows_are_refused_before_anything_is_asked(asked, tmp_path, changed):
    generation.run("job", "one", tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "job.scores.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines and all(line["model"] == "one" and line["rows"] for line in lines)
    if changed == "rows":
        generation._write(tmp_path / "job.test.jsonl", [{"document": "e", "summary": "s"}])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(SystemExit, match=f"{changed}.*take another FOLDER"):
        generation.run("job", "two" if changed == "model" else "one", tmp_path)
    assert asked == ["one"] and before == {path: path.read_bytes() for path in tmp_path.iterdir()}


def test_only_the_ways_that_are_named_are_asked(asked, monkeypatch, tmp_path):
    job = generation.Job({"name": "summarise", "perplexity": False}, ways=generation.SUMMARY, recipe=False)
    monkeypatch.setattr(generation, "JOBS", {"job": job})
    generation.run("job", "one", tmp_path, ["refine"])
    lines = [json.loads(line) for line in (tmp_path / "job.scores.jsonl").read_text(encoding="utf-8").splitlines()]
    assert asked == ["one"] and {line["system"] for line in lines} == {"refine"}
    with pytest.raises(SystemExit, match=r"job is not done by 'refined'.*refine"):
        generation.run("job", "one", tmp_path, ["refined"])


def test_each_system_is_compared_with_all_that_stand_before_it(asked, monkeypatch, tmp_path, capsys):
    job = generation.Job({"name": "summarise", "perplexity": False}, ways=generation.SUMMARY, recipe=False)
    monkeypatch.setattr(generation, "JOBS", {"job": job})
    generation.run("job", "one", tmp_path)
    shown = [line.partition(",")[0] for line in capsys.readouterr().out.splitlines() if " - " in line]
    systems = ["lead", "whole", "map-reduce", "refine"]
    assert shown == [f"job: {one} - {before}" for before, one in combinations(systems, 2)]


@pytest.mark.parametrize("name", ["loogle", "far"])
def test_the_readings_of_a_document_are_settings_of_the_task(name):
    job = generation.JOBS[name]
    read = [task_from({**job.task, **settings}).model_dump()["reading"] for settings in job.ways.values()]
    assert read == ["whole", "blocks", "blocks", "map-rerank"]
