"""LSTM runs: a recipe makes one, the loop resumes it exactly, and a classifier learns labels of real sentences."""

import json

import pytest
import torch

from handscroll.base.errors import ConfigError, DataError
from handscroll.base.records import read_records
from handscroll.data.labelled import Labelled, read_labelled
from handscroll.data.sources import TokenSource
from handscroll.evaluate.perplexity import measure
from handscroll.evaluate.samples import Sample
from handscroll.lm import load
from handscroll.models.lstm import LSTM
from handscroll.plan.workloads import recipe_workloads
from handscroll.train.recipe import Recipe
from handscroll.train.start import RunOptions, run_recipe
from tests.conftest import shared
from tests.naming import naming
from tests.resuming import resumes_to_the_same_bytes

BASE = {
    "seed": 1,
    "threads": 2,
    "text": {"files": ["{stdlib}/json/*.py"]},
    "tokenizer": {"train": {"vocab": 320}},
    "model": {"family": "lstm", "initialise": "xavier", "sizes": {"width": 32, "layers": 2}},
    "data": {"text": {"kind": "text"}},
    "stages": [{"length": 192, "rows": 2, "steps": 6, "mix": {"text": 1.0}}],
    "optimizer": {"name": "adamw", "lr": 0.02},
    "memory": {"strategy": "chunk-outer", "chunk": 64},
    "loop": {"save_every": 2, "evaluate_every": 3},
    "validation": {"files": ["{stdlib}/argparse.py"], "length": 64, "windows": 2},
}


def recipe(**changes) -> Recipe:
    return Recipe.parse(BASE | changes, "recipe")


def test_a_recipe_trains_an_lstm_in_chunks_and_goes_on_exactly(tmp_path):
    settings = recipe(regularise={"dropout": 0.1})
    seen: list[dict] = []
    lm, progress = run_recipe(settings, tmp_path / "straight", RunOptions(certify=True, on_record=seen.append))
    assert isinstance(lm.model, LSTM) and lm.model.config.trained == 192 and progress.step == 6
    assert seen[-1]["loss"] < seen[0]["loss"] - 0.3
    assert json.loads((tmp_path / "straight" / "certificate.json").read_text())["float64"] < 1e-12

    resumes_to_the_same_bytes(settings, tmp_path / "straight", step=5)
    again = load(tmp_path / "straight" / "model")
    ids = torch.arange(4, 300) % again.model.config.vocab
    losses = measure(again, [Sample(ids.tolist(), "made", 0)], "as it is")
    with torch.no_grad():
        logits = again.model(ids[None])[0]
    want = torch.nn.functional.cross_entropy(logits[:-1], ids[1:])
    assert losses.mean() == pytest.approx(float(want), rel=1e-5) and len(losses.blocks(64)["loss"]) == 5
    assert len("".join(again.generate("def ", max_tokens=200, ignore_eos=True))) >= 200  # past the rows it learned from


def test_a_classifier_learns_the_labels_of_sentences(tmp_path):
    lines = shared("cls_en/sst2_dev.tsv").read_text(encoding="utf-8").splitlines()
    short = [line for line in lines if len(line) < 60][:40]
    (tmp_path / "labelled.tsv").write_text("\n".join(short) + "\n", encoding="utf-8")
    (tmp_path / "plain.txt").write_text("\n".join(line[2:] for line in short), encoding="utf-8")
    changes = {
        "text": {"files": [str(tmp_path / "plain.txt")]},
        "objective": "classify",
        "data": {"sst": {"kind": "labelled", "file": str(tmp_path / "labelled.tsv"), "labels": ["0", "1"]}},
        "stages": [{"length": 64, "rows": 8, "steps": 30, "mix": {"sst": 1.0}}],
        "validation": None,
        "loop": {"save_every": 2},
        "memory": {"strategy": "plain"},
        "optimizer": {"name": "adamw", "lr": 0.03},
    }
    changes["model"] = BASE["model"] | {"sizes": {"width": 32, "layers": 1}}
    settings = recipe(**changes)
    lm, _ = run_recipe(settings, tmp_path / "run")
    records = list(read_records(tmp_path / "run" / "records.jsonl"))
    assert records[0]["accuracy"] < 0.8 and records[-1]["accuracy"] > 0.95 and records[-1]["loss"] < 0.3
    assert lm.model.config.labels == ("0", "1") and load(tmp_path / "run" / "model").model.config == lm.model.config
    texts, wanted = [line[2:] for line in short], [int(line[0]) for line in short]
    found = lm.classify(texts)
    assert sum(found.argmax(dim=1) == torch.tensor(wanted)) >= 38
    torch.testing.assert_close(found[:5], torch.cat([lm.classify([text]) for text in texts[:5]]))
    with pytest.raises(ConfigError, match="predicts"):
        lm.nll("some words")
    assert recipe_workloads(settings)[0].packed


def test_labelled_rows_hold_whole_documents_and_resume(tmp_path):
    source = TokenSource([torch.arange(size).numpy() + 1 for size in (3, 5, 2, 6)])
    stream = Labelled(source, [0, 1, 1, 0], length=8, seed=7)
    items = [item for item, _ in zip(stream, range(7), strict=False)]
    for row, _ in items:
        ends = (row.targets >= 0).nonzero()[0]
        segment = torch.zeros(8, dtype=torch.long).numpy() if row.segment is None else row.segment
        sizes = [int((segment == number).sum()) for number in range(len(ends))]
        assert [int(end) for end in ends] == list(torch.tensor(sizes).cumsum(0) - 1)
        assert [int(row.targets[end]) for end in ends] == [{3: 0, 5: 1, 2: 1, 6: 0}[size] for size in sizes]
    following = [row.tokens.tolist() for (row, _), _ in zip(stream.resume(items[2][1]), range(4), strict=False)]
    assert following == [row.tokens.tolist() for row, _ in items[3:]]
    with pytest.raises(DataError, match=naming("2 documents", "row of 4")):
        Labelled(source, [0, 1, 1, 0], length=4, seed=7)
    (tmp_path / "a.jsonl").write_text('{"text": "good", "label": 1}\n\n{"text": "bad", "label": "0"}\n')
    documents, numbers = read_labelled(tmp_path / "a.jsonl", ("0", "1"))
    assert [one.text for one in documents] == ["good", "bad"] and numbers == [1, 0]
    for name, text, told in (
        ("b.tsv", "2\tx\n", "'2'"),
        ("b.tsv", "no tab\n", "b.tsv:1"),
        ("b.jsonl", "[]", "b.jsonl:1"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=told):
            read_labelled(tmp_path / name, ("0", "1"))


def test_objectives_and_data_must_fit(tmp_path):
    with pytest.raises(ConfigError, match=naming("'classify'", "'labelled'")):
        recipe(objective="classify")
    labelled = {"sst": {"kind": "labelled", "file": "x.tsv", "labels": ["0", "1"]}}
    stages = [{"length": 64, "rows": 2, "steps": 1, "mix": {"sst": 1.0}}]
    with pytest.raises(ConfigError, match=naming("'causal'", "'text'")):
        recipe(data=labelled, stages=stages)
    with pytest.raises(ConfigError, match="text"):
        recipe(data=labelled, stages=stages, objective="classify")
    wrong = recipe(model=BASE["model"] | {"sizes": {"width": 8, "layers": 1, "labels": ["a", "b"]}})
    with pytest.raises(ConfigError, match=naming("'causal'", "'lstm'", "'classify'")):
        run_recipe(wrong, tmp_path)
