"""A tuning run from a table to predictions: learned, counted, resumed; bad data is said before it starts."""

import json
import re
from datetime import date, timedelta
from decimal import Decimal
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

import handscroll
from handscroll.base.errors import CapacityError, CheckpointError, ConfigError, DataError
from handscroll.base.records import read_records
from handscroll.cli.main import app
from handscroll.data.table.split import split
from handscroll.data.table.table import Table
from handscroll.tasks.classify import Classify
from handscroll.tasks.examples import read_parts
from handscroll.tasks.finetune import Options, finetune, lines_of
from handscroll.tasks.predict import load_tuned, predict
from handscroll.tasks.recipe import TaskData
from handscroll.tasks.report import write_page
from handscroll.tasks.task import Example, Prediction, task_from
from tests.naming import naming
from tests.tasks.material import recipe, rows, table, tiny


def test_a_classifier_is_tuned_saved_scored_and_read_by_the_reference_library(tmp_path):
    data, test = table(tmp_path / "train.csv"), table(tmp_path / "test.csv", 10)
    shown = []
    tuned = finetune(
        recipe(tiny(tmp_path / "bert"), data, test=(str(test),), licence="CC BY 4.0"),
        str(tmp_path / "run"),
        Options(show=shown.append),
    )
    assert tuned.scores["test"]["accuracy"].value == 1.0 and set(tuned.scores) == {"valid", "test"}
    assert tuned.baselines["test"]["always 'bad'"]["accuracy"].value == 0.5
    assert "text <- text, label <- label" in "\n".join(shown) and "left out" in "\n".join(shown)
    told = rows(tmp_path / "run" / "test.predictions.jsonl")
    assert [one["prediction"] for one in told] == [one["reference"] for one in told]
    lm, task = load_tuned(tmp_path / "run")
    again = predict(lm, task, TaskData(train=(str(test),)))
    assert again.scores["accuracy"].value == 1.0 and again.predictions[0].more == {
        "probabilities": told[0]["probabilities"]
    }
    assert len(predict(lm, task, TaskData(train=(str(test),), most_scored=3)).predictions) == 3
    with pytest.raises(ConfigError, match=r"nothing with data\.test, data\.most: give columns, encoding, most_scored"):
        predict(lm, task, TaskData(train=(str(test),), test=(str(test),), most=3))
    reference = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model")
    ids = torch.tensor([lm.encode(told[0]["text"])])
    expected = reference(ids).logits.softmax(-1)[0].tolist()
    assert list(told[0]["probabilities"].values()) == pytest.approx(expected, abs=1e-5)
    card = (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf-8")
    assert "| test | tuned | accuracy | 1 |" in card and "Nothing was cut" in card
    assert "It was not measured how much of its training answers the model gives away" in card
    assert "The licence of the data, as it was given: CC BY 4.0" in card
    account = json.loads((tmp_path / "run" / "result.json").read_text())["rows"]["train"]
    assert account["offered"] == account["trained"] + account["untrained"] + account["left_out"]


@pytest.mark.promise("R1")
def test_a_killed_run_goes_on_where_it_stopped(tmp_path):
    model, data = tiny(tmp_path / "bert"), table(tmp_path / "train.csv")

    class Killed(Exception):
        pass

    def kill(record):
        if record["step"] == 7:
            raise Killed

    whole = finetune(recipe(model, data, {"epochs": 3}), tmp_path / "whole")
    with pytest.raises(Killed):
        finetune(recipe(model, data, {"epochs": 3}), tmp_path / "part", Options(on_record=kill))
    part = finetune(recipe(model, data, {"epochs": 3}, licence="told since"), tmp_path / "part")
    losses = [[r["loss"] for r in read_records(tmp_path / run / "records.jsonl")] for run in ("whole", "part")]
    assert losses[0] == losses[1] and len(losses[0]) == whole.progress.step == part.progress.step
    planned = (tmp_path / "part" / "plan.json").read_bytes()
    with pytest.raises(CheckpointError, match="another recipe"):
        finetune(recipe(model, data, {"epochs": 3, "lr": 1e-3, "batch": 2}), tmp_path / "part")
    assert (tmp_path / "part" / "plan.json").read_bytes() == planned


def test_a_plan_alone_writes_nothing(tmp_path):
    """What a run measured stands in its plan, and a run that goes on takes its strategy from it."""
    model, data, run = tiny(tmp_path / "bert"), table(tmp_path / "train.csv"), tmp_path / "run"
    shown = []
    finetune(recipe(model, data, {"steps": 1}), run, Options(only_plan=True))
    assert not run.exists()
    finetune(recipe(model, data, {"steps": 1}), run)
    before = (run / "plan.json").read_bytes()
    other = recipe(model, data, {"steps": 9, "memory": {"strategy": "checkpoint"}})
    finetune(other, run, Options(only_plan=True, show=shown.append))
    assert "strategy checkpoint" in "".join(map(str, shown)) and b'"actual"' in before
    assert (run / "plan.json").read_bytes() == before


@pytest.mark.parametrize("way", ["head", "last", "lora"])
def test_other_ways_train_only_what_they_say(tmp_path, way):
    model, data = tiny(tmp_path / "bert"), table(tmp_path / "train.csv", 24)
    before = {name: value.clone() for name, value in handscroll.load(model).model.state_dict().items()}
    how = {"way": way, "epochs": 1, "merge": True} | ({"layers": 1} if way == "last" else {})
    lm = finetune(recipe(model, data, how), tmp_path / "run").lm
    changed = {
        name for name, value in lm.model.state_dict().items() if name in before and not value.equal(before[name])
    }
    last = lm.model.config.layers - 1
    inside = {name for name in changed if name.startswith("layers.")}
    if way == "lora":
        assert all(name.split(".")[-2] in ("query", "key", "value", "output") for name in inside)
        assert f"layers.{last}.attention.query.weight" in changed and "layers.0.attention.query.weight" in changed
    else:
        assert inside == set() if way == "head" else all(name.startswith(f"layers.{last}.") for name in inside)
        assert way == "head" or inside


def test_several_labels_and_a_decoder(tmp_path):
    lines = [
        {
            "text": f"w{20 + n % 2} w{30 + n % 3} w{40 + n % 31} w{71 + n % 17}",
            "label": ["odd"] * (n % 2) + ["three"] * (n % 3 == 0),
        }
        for n in range(96)
    ]
    data = tmp_path / "train.jsonl"
    data.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    tuned = finetune(
        recipe(tiny(tmp_path / "llama", "llama"), data, {"epochs": 20}, {"several": True}), tmp_path / "run"
    )
    assert tuned.task.labels == ("odd", "three") and tuned.scores["valid"]["f1-micro"].value > 0.9


def test_the_report_compares_several_labels_without_their_order(tmp_path):
    task = Classify(labels=("odd", "three"), several=True)
    examples = [Example(f"row {n}", {"text": "w20", "label": ["three", "odd"]}) for n in range(3)]
    said = [Prediction(["odd", "three"]), Prediction(["three", "odd"]), Prediction(["odd"])]
    data = {"train": ["a.csv"], "valid": ["a.csv"], "second": []}
    tokens = dict.fromkeys(("offered", "trained", "untrained", "left_out"), 1)
    record = {"model": {"source": "m"}, "recipe": {"data": data}, "tables": {}, "rows": {"train": tokens}}
    (tmp_path / "records.jsonl").write_text("")
    write_page(tmp_path / "report.html", record | {"versions": {}}, task, {}, (examples, said))
    page = re.sub("<[^>]*>", " ", (tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "row 2" in page and "row 0" not in page and "row 1" not in page


def test_what_could_not_be_scored_is_said_or_left_out_before_anything_is_trained(tmp_path):
    data, model = table(tmp_path / "train.csv"), tiny(tmp_path / "bert")
    test = tmp_path / "test.csv"
    test.write_text("text,label\nw20 w30,bad\nw21 w31,\n", encoding="utf-8")
    with pytest.raises(DataError, match=naming("row 2", "no target")):
        finetune(recipe(model, data, test=(str(test),)), tmp_path / "run")
    long = " ".join(f"w{number % 40}" for number in range(100))
    test.write_text(f"text,label\nw20 w30,bad\n{long},good\nw21 w31,good\n", encoding="utf-8")
    with pytest.raises(DataError, match=naming("test", "row 2", "101", "64")):
        finetune(recipe(model, data, test=(str(test),)), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    shown = []
    skipping = recipe(model, data, {"steps": 1}, test=(str(test),), too_long="skip")
    tuned = finetune(skipping, tmp_path / "run", Options(show=shown.append))
    assert tuned.scores["test"]["accuracy"].count == 2
    assert any("examples that exceed the context: 1" in str(line) for line in shown)


def test_the_scores_are_those_of_the_numbers_that_were_saved(tmp_path):
    """A base in bfloat16 is trained in float32, and saved in bfloat16 again."""
    handscroll.load(tiny(tmp_path / "float32"), dtype="bfloat16").save(tmp_path / "bert")
    data = table(tmp_path / "train.csv")
    finetune(recipe(tmp_path / "bert", data, test=(str(data),)), tmp_path / "run")
    lm, task = load_tuned(tmp_path / "run")
    assert lm.model.dtype == torch.bfloat16
    told = [row["probabilities"] for row in rows(tmp_path / "run" / "test.predictions.jsonl")]
    again = predict(lm, task, TaskData(train=(str(data),))).predictions
    assert [one.more["probabilities"] for one in again] == told


def test_rows_with_the_same_text_stay_on_one_side_whatever_else_they_hold(tmp_path):
    data = tmp_path / "train.csv"
    lines = [f"w{20 + n % 2} w{30 + n % 9},{['bad', 'good'][n % 2]},{'w1 ' * 30}{n}" for n in range(72)]
    data.write_text("\n".join(["text,label,url", *lines]) + "\n", encoding="utf-8")
    found = recipe(tiny(tmp_path / "bert"), data)
    parts, shown = read_parts(found.task, found.data, 0), []
    assert not {one["text"] for one in parts["train"].examples} & {one["text"] for one in parts["valid"].examples}
    finetune(recipe(tmp_path / "bert", data, {"steps": 1}), tmp_path / "run", Options(show=shown.append))
    assert any("by 'text'" in str(line) and "they stay together" in str(line) for line in shown)


def test_encodings_and_splits_of_tables_are_named(tmp_path):
    (tmp_path / "data").mkdir()
    for name, count in (("train", 20), ("dev", 6), ("test", 4)):
        file = table(tmp_path / "data" / f"{name}.csv", count)
        file.write_text(
            file.read_text(encoding="utf-8").replace("w40", "caf\u00e9 d\u00e9j\u00e0 vu"), encoding="cp1252"
        )
    folder, model = str(tmp_path / "data"), str(tiny(tmp_path / "bert"))
    with pytest.raises(DataError, match=naming("--split", "data.splits.train")):
        read_parts(Classify(), TaskData(train=(folder,), encoding="cp1252"), 0)
    splits = {"train": "train", "valid": "validation", "test": "test"}
    data = TaskData(train=(folder,), valid=(folder,), test=(folder,), encoding="cp1252", splits=splits)
    parts = read_parts(Classify(), data, 0)
    assert {name: len(part.examples) for name, part in parts.items()} == {"train": 20, "valid": 6, "test": 4}
    assert "caf\u00e9" in parts["test"].examples[0]["text"]
    with pytest.raises(ConfigError, match=naming("splits.test", "names no files")):
        TaskData.parse({"train": (folder,), "splits": {"test": "test"}}, "data")
    given = ["--data", folder, "--set", "data.splits.train=train", "--encoding", "cp1252", "--show", "1"]
    told = CliRunner().invoke(app, ["finetune", "classify", model, *given])
    assert told.exit_code == 0 and "train.csv, row" in told.output, told.output
    given = [folder, "--task", "classify", "--set", 'task.labels=["bad", "good"]', "--split", "test"]
    given += ["--encoding", "cp1252", "--out", str(tmp_path / "said")]
    Classify(labels=("bad", "good")).ready(handscroll.load(model), 0).save(tmp_path / "headed")
    told = CliRunner().invoke(app, ["predict", str(tmp_path / "headed"), *given])
    assert told.exit_code == 0 and len(rows(tmp_path / "said")) == 4, (told.output, told.exception)


@pytest.mark.parametrize(
    "options, words",
    [
        (["tune.toml", "--epochs", "1"], ("epochs", "--set")),
        (["classify", "MODEL", "--data", "FILE", "--way", "head", "--rank", "4"], ("--rank", "head")),
        (["classify", "MODEL", "--data", "FILE", "--set", "tuning.way=full", "--rank", "4"], ("--rank", "full")),
        (["classify", "MODEL", "--data", "FILE", "--set", "tuning.way=full", "--set", "tuning.lora.rank=4"], ("lora",)),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(tmp_path, options, words):
    (tmp_path / "tune.toml").write_text("", encoding="utf-8")
    options = [str(tmp_path / one) if one.endswith(".toml") else one for one in options]
    found = CliRunner().invoke(app, ["finetune", *options])
    assert isinstance(found.exception, ConfigError) and re.search(naming(*words), str(found.exception))


def test_the_way_may_be_set_as_any_setting(tmp_path):
    model, data = tiny(tmp_path / "bert"), table(tmp_path / "train.csv", 24)
    asked = ["finetune", "classify", str(model), "--data", str(data), "--out", str(tmp_path / "run"), "--plan"]
    for more, said in (
        (["--set", "tuning.way=full"], "way 'full'"),
        (["--set", "tuning.lora.rank=4", "--rank", "8"], "way 'lora'"),
    ):
        found = CliRunner().invoke(app, [*asked, *more])
        assert found.exit_code == 0 and said in found.output


def test_a_tuning_plans_the_best_weights_and_the_tables_that_it_trains(tmp_path):
    model, data = tiny(tmp_path / "bert"), table(tmp_path / "train.csv", 24)
    asked = ["finetune", "classify", str(model), "--data", str(data), "--out", str(tmp_path / "run"), "--steps", "1"]
    found = CliRunner().invoke(app, [*asked, "--set", "tuning.lora.tables=true"])
    assert found.exit_code == 0, found.output
    (stage,) = json.loads((tmp_path / "run" / "plan.json").read_text(encoding="utf-8"))["plan"]["stages"]
    assert stage["workload"]["best"] and stage["workload"]["tables"]
    assert re.search(r"\nbaseline, valid: always '(bad|good)', accuracy 0\.\d+ \[", found.output), found.output


def test_held_out_rows_without_any_label_are_refused_before_anything_is_trained(tmp_path):
    data, held = tmp_path / "train.jsonl", tmp_path / "held.jsonl"
    made = [{"text": f"w{20 + n % 2} w{30 + n}", "label": [["a"], ["b"], []][n % 3]} for n in range(24)]
    data.write_text("\n".join(map(json.dumps, made)), encoding="utf-8")
    held.write_text("\n".join(json.dumps({"text": f"w{n}", "label": []}) for n in range(20, 28)), encoding="utf-8")
    with pytest.raises(DataError, match=naming("held.jsonl", "8")):
        finetune(recipe(tiny(tmp_path / "bert"), data, None, {"several": True}, valid=(str(held),)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_does_not_go_on_with_other_held_out_rows(tmp_path):
    model, data = tiny(tmp_path / "bert"), table(tmp_path / "train.csv", 24)
    held = table(tmp_path / "held.csv", 6)
    for count in (6, 8):
        table(held, count)
        given = recipe(model, data, {"epochs": 1}, valid=(str(held),))
        if count == 6:
            finetune(given, tmp_path / "run")
        else:
            with pytest.raises(CheckpointError, match="held-out rows"):
                finetune(given, tmp_path / "run")


def test_a_label_that_is_named_twice_is_one_label():
    task = Classify(several=True, labels=("a", "b"))
    example = Example("row 1", {"text": "x", "label": ["a", "a"]})
    assert task.target(example) == 1 and task.truth(example) == ["a"]


def test_more_labels_than_can_be_learned_at_once_are_refused_before_rows_are_made():
    examples = [Example(f"row {n}", {"text": "x", "label": [f"{n}"]}) for n in range(63)]
    with pytest.raises(ConfigError, match=naming("63", "62")):
        Classify(several=True).settled(examples, SimpleNamespace(labels=()))


@pytest.mark.parametrize("joined", [False, True])
def test_of_several_labels_each_keeps_its_share(joined):
    bits = [[f"l{bit}" for bit in range(9) if number >> bit & 1] for number in range(512)] * 2
    rows = [{"text": f"row {n}", "tags": "; ".join(one) if joined else one} for n, one in enumerate(bits)]
    table, task = Table.of(rows), Classify(several=True)
    parts = split(table, {"valid": 0.1}, by=task.by(table, {"label": "tags"}), near=None)
    assert 80 <= len(parts["valid"]) <= 125
    assert all(40 <= parts.labels["valid"][f"l{bit}"] <= 65 for bit in range(9))


@pytest.mark.parametrize(
    "cells, more, words",
    [
        ([(f"w{n} w{n + 1}", "good") for n in range(20, 60)], {}, "a classifier needs two labels"),
        ([("w20 w30", "good"), ("w21", "bad")] * 10, {"columns": {"text": "nothing"}}, "no column 'nothing'"),
        ([("w20 w30", "good"), ("", "bad")] * 10, {}, "row 2: no text"),
        (
            [(f"w{n} w{n + 1} " * 50, "good" if n % 2 else "bad") for n in range(20, 60)],
            {},
            naming("valid", "101", "64"),
        ),
    ],
)
def test_bad_data_is_said_before_anything_is_trained(tmp_path, cells, more, words):
    data = tmp_path / "train.csv"
    data.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in cells), encoding="utf-8")
    with pytest.raises(DataError, match=words):
        finetune(recipe(tiny(tmp_path / "bert"), data, **more), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_labels_unseen_in_training_are_named_with_their_row(tmp_path):
    data, test = table(tmp_path / "train.csv"), table(tmp_path / "test.csv", 6, ("bad", "neutral"))
    with pytest.raises(DataError, match=r"test\.csv, row 2: the label 'neutral' was not in the training data"):
        finetune(recipe(tiny(tmp_path / "bert"), data, test=(str(test),)), tmp_path / "run")


def test_all_labels_that_are_unseen_are_named(tmp_path):
    data, test = table(tmp_path / "train.csv"), table(tmp_path / "test.csv", 6, ("none", "neutral"))
    with pytest.raises(DataError, match=naming("row 1", "'none'", "1 more ('neutral')", "known are ['bad', 'good']")):
        finetune(recipe(tiny(tmp_path / "bert"), data, test=(str(test),)), tmp_path / "run")
    task = Classify(labels=("bad", "good"))
    with pytest.raises(DataError) as said:
        task.checked([Example(f"row {number}", {"label": f"new {number}"}) for number in range(2000)])
    assert "1,999 more" in str(said.value) and len(str(said.value)) < 300


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("others", ["", ",pair"])
@pytest.mark.parametrize(("task", "field"), [("classify", "label"), ("regress", "number")])
def test_a_table_without_a_column_for_what_is_right_is_refused_with_its_columns(tmp_path, task, field, others, skip):
    data = tmp_path / "train.csv"
    lines = [f"question,kind{others}", *["w20 w30,1,w3", "w21,2,w4"] * 10]
    data.write_text("\n".join(line if others else line.removesuffix(",w3").removesuffix(",w4") for line in lines))
    given = partial(recipe, tiny(tmp_path / "bert"), data, {"steps": 1}, {"name": task}, held_out=0, skip_unfit=skip)
    with pytest.raises(DataError, match=naming("train.csv", f"'{field}'", "question, kind", f"--map {field}=")):
        finetune(given(), tmp_path / "run")
    if not others:
        finetune(given(columns={field: "kind"}), tmp_path / "run")


@pytest.mark.parametrize(
    ("task", "columns", "field"),
    [
        ("summarise", "text,short,query", "summary"),
        ("translate", "text,other,user", "translation"),
        ("answer", "text,question,said", "answer"),
        ("extract", "text,question,said", "answers"),
    ],
)
def test_every_task_names_the_field_that_says_what_is_right(tmp_path, task, columns, field):
    (data := tmp_path / "train.csv").write_text(f"{columns}\n" + "a,b,c\nd,e,f\n", encoding="utf-8")
    with pytest.raises(DataError, match=naming(f"'{field}'", f"--map {field}=COLUMN")):
        read_parts(task_from(task), TaskData(train=(str(data),), held_out=0), 0)


def test_a_row_that_does_not_fit_is_named_also_where_nothing_says_what_is_right(tmp_path):
    (data := tmp_path / "train.csv").write_text("text,label\n,1\n,2\n", encoding="utf-8")
    with pytest.raises(DataError, match="row 1: no text"):
        read_parts(task_from("classify"), TaskData(train=(str(data),), held_out=0), 0)


def test_labels_that_a_model_does_not_know_are_refused_before_it_reads(tmp_path, monkeypatch):
    lm = Classify(labels=("bad", "good")).ready(handscroll.load(tiny(tmp_path / "bert")), 0)
    task = Classify(labels=("bad", "fine"))
    monkeypatch.setattr(Classify, "predict", lambda *given: pytest.fail("read"))
    with pytest.raises(DataError, match="'good' was not in the training data"):
        predict(lm, task, TaskData(train=(str(table(tmp_path / "a.csv")),)))


def test_settings_that_contradict_each_other_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="layers belongs to way 'last'"):
        recipe(tmp_path, tmp_path, {"way": "full", "layers": 2})
    with pytest.raises(ConfigError, match="no head"):
        finetune(recipe(tiny(tmp_path / "t5", "t5"), table(tmp_path / "train.csv")), tmp_path / "run")


def test_a_run_without_rows_to_score_is_finished(tmp_path):
    data = table(tmp_path / "train.csv", 24)
    tuned = finetune(recipe(tiny(tmp_path / "bert"), data, {"epochs": 1}, held_out=0.0), tmp_path / "run")
    assert tuned.finished and not tuned.scores and (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize("name, more", [("classify", {"labels": ("bad", "good")}), ("regress", {}), ("extract", {})])
def test_a_model_without_a_head_for_the_task_predicts_nothing(tmp_path, name, more):
    model = tiny(tmp_path / "bert")
    with pytest.raises(ConfigError, match=naming(name, "finetune", "--shots")):
        load_tuned(model, {"name": name, **more})


def test_a_classifier_whose_labels_nobody_names_predicts_nothing(tmp_path):
    model = tiny(tmp_path / "bert")
    with pytest.raises(ConfigError, match=r"task\.labels"):
        load_tuned(model, "classify")
    lm = handscroll.load(model)
    Classify(labels=("bad", "good")).ready(lm, 0).save(tmp_path / "head")
    with pytest.raises(ConfigError, match=r"\['bad', 'good'\]"):
        load_tuned(tmp_path / "head", "classify")
    named = {"name": "classify", "labels": ("bad", "good")}
    assert load_tuned(tmp_path / "head", named)[0].labels == ("bad", "good")


@pytest.mark.parametrize(
    "count, batch, epochs, steps", [(9, 32, 3, 3), (24, 16, 3, 4), (24, 8, 0.1, 1), (24, 24, 2, 2)]
)
def test_each_row_is_learned_from_as_often_as_the_epochs_say(tmp_path, count, batch, epochs, steps):
    model, data, shown = tiny(tmp_path / "bert"), table(tmp_path / "train.csv", count), []
    how = {"epochs": epochs, "batch": batch}
    tuned = finetune(recipe(model, data, how, held_out=0.0), tmp_path / "run", Options(show=shown.append))
    assert tuned.progress.step == steps
    sizes = len(handscroll.load(model).encode("w20 w30 w40")) * min(count, batch)
    assert tuned.progress.tokens == steps * sizes
    assert any("batch" in str(line) and "9" in str(line) for line in shown) == (batch > count)


@pytest.mark.parametrize("epochs", ["inf", "nan"])
def test_epochs_without_an_end_are_refused(tmp_path, epochs):
    with pytest.raises(ConfigError, match="epochs"):
        recipe(tmp_path, tmp_path, {"epochs": float(epochs)})


def labelled(folder):
    """A model with a head for the labels bad and good, of which nothing was learned."""
    task = Classify(labels=("bad", "good"))
    return task.ready(handscroll.load(tiny(folder / "bert")), 0), task


@pytest.mark.parametrize(
    "line, error", [("w20,neutral", DataError), (" ".join(f"w{n % 40}" for n in range(100)) + ",good", CapacityError)]
)
def test_a_row_that_cannot_be_predicted_or_scored_is_told_before_others_are_predicted(tmp_path, line, error):
    table(data := tmp_path / "rows.csv", 100)
    data.write_text(data.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    done = []
    with pytest.raises(error, match="row 101"):
        predict(*labelled(tmp_path), TaskData(train=(str(data),)), done.append)
    assert not done


def test_rows_of_which_one_has_no_label_are_predicted_and_not_scored_which_is_said(tmp_path):
    lm, task = labelled(tmp_path)
    lm.save(tmp_path / "head")
    table(data := tmp_path / "rows.csv", 4)
    data.write_text(data.read_text(encoding="utf-8") + "w20,\n", encoding="utf-8")
    found = predict(lm, task, TaskData(train=(str(data),)))
    assert len(found.predictions) == 5 and found.untold == 1 and not found.scores
    asked = ["predict", str(tmp_path / "head"), str(data), "--task", "classify", "--set"]
    said = CliRunner().invoke(app, [*asked, 'task.labels=["bad", "good"]', "--out", str(tmp_path / "out.jsonl")])
    assert said.exit_code == 0 and re.search("not scored: 1 of 5", said.output)
    assert len(rows(tmp_path / "out.jsonl")) == 5
    data.write_text("text,kind\nw20,bad\n", encoding="utf-8")
    said = CliRunner().invoke(app, [*asked, 'task.labels=["bad", "good"]', "--out", str(tmp_path / "more.jsonl")])
    assert said.exit_code == 0 and re.search(r"not scored: 1 of 1 .*--map label=COLUMN", said.output.replace("\n", " "))


def test_rows_are_not_drawn_by_a_negative_seed(tmp_path):
    data = TaskData(train=(str(table(tmp_path / "rows.csv", 4)),), most_scored=1)
    with pytest.raises(ConfigError, match="-1"):
        predict(*labelled(tmp_path), data, seed=-1)


def test_values_that_json_does_not_know_are_written_beside_predictions():
    others = {"day": date(2026, 1, 2), "price": Decimal("1.50"), "raw": b"\x00\xff", "took": timedelta(seconds=90)}
    [line] = lines_of(Classify(), [Example("row 1", {"text": "a", **others})], [Prediction("good")])
    told = json.loads(line)
    assert [told[name] for name in others] == ["2026-01-02", "1.50", "AP8=", "0:01:30"]


def test_columns_called_like_those_of_predictions_stand_beside_them():
    values = {"text": "a", "place": "Paris", "prediction": 3, "probabilities": "high"}
    [line] = lines_of(Classify(), [Example("row 1", values)], [Prediction("good", {"probabilities": {"good": 1.0}})])
    told = json.loads(line)
    assert (told["place"], told["prediction"], told["probabilities"]) == ("row 1", "good", {"good": 1.0})
    assert (told["row.place"], told["row.prediction"], told["row.probabilities"]) == ("Paris", 3, "high")


def test_scored_rows_that_stand_in_the_training_rows_are_counted_and_said(tmp_path):
    model, data, shown = tiny(tmp_path / "bert"), table(tmp_path / "train.csv", 24), []
    (other := tmp_path / "other.csv").write_text("text,label\nw50 w51 w52,bad\nW20  w30 w40,bad\n", encoding="utf-8")
    given = recipe(model, data, {"steps": 1}, valid=(str(other),), test=(str(data),), second=(str(other),))
    finetune(given, tmp_path / "run", Options(show=shown.append))
    said = "1 of 2 second rows (50.0%) are in the training rows too: 1 exact"
    assert any(said in str(line) for line in shown), shown
    record = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))["tables"]
    assert said in record["second"]["leakage"] and "1 of 2 valid rows" in record["valid"]["leakage"]
    assert "24 of 24 test rows (100.0%)" in record["test"]["leakage"] and not record["train"]["leakage"]
    card = (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf-8")
    assert said in card and "No licence of the data was given" in card


@pytest.mark.parametrize(
    "task, row",
    [
        ("prefer", {"prompt": "hi you", "chosen": "hello", "rejected": "no"}),
        ("instruct", {"prompt": "hi you", "answer": "hello"}),
        ("extract", {"context": "a dog barks", "question": "who barks", "answers": {"text": ["a dog"]}}),
    ],
)
def test_what_is_given_tells_whether_a_row_is_a_training_row(tmp_path, task, row):
    name = "question" if task == "extract" else "prompt"
    paths = [tmp_path / f"{number}.jsonl" for number in range(2)]
    for path, asked in zip(paths, ("other words", row[name]), strict=True):
        path.write_text("\n".join(map(json.dumps, (row, row | {name: asked}))), encoding="utf-8")
    data = TaskData(train=(str(paths[1]),), test=(str(paths[0]),), held_out=0)
    assert "1 of 2 test rows" in read_parts(task_from(task), data, 0)["test"].leakage
