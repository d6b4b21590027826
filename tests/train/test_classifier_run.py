"""BERT as a classifier of documents: begun from a pre-trained encoder, in packed rows, on the exact strategies."""

import json
from typing import Any

import pytest
import torch

from handscroll.base.config import read_recipe
from handscroll.base.errors import CapacityError, ConfigError
from handscroll.base.spec import HeadSpec
from handscroll.data.batch import collate
from handscroll.data.labelled import AtFirst, Labelled
from handscroll.data.sources import TokenSource
from handscroll.lm import load
from handscroll.models.bert import Bert, BertConfig
from handscroll.nn.init import initialise
from handscroll.nn.marks import Marks
from handscroll.objectives.classify import Classify
from handscroll.train.lora import LoRA, add_lora
from handscroll.train.recipe import Recipe
from handscroll.train.start import RunOptions, build_model, run_recipe
from tests.naming import naming
from tests.train.material import TINY

SIZES: dict[str, Any] = {"vocab": 50, "width": 24, "layers": 2, "heads": 4, "mlp_width": 40, "context": 16}


def classifier(**changes):
    config = BertConfig(**SIZES | {"masked": False, "pooler": True, "head": HeadSpec(labels=("a", "b", "c"))} | changes)
    model = Bert(config)
    initialise(model, "xavier", 2, torch.Generator().manual_seed(0))
    return model.double()


def test_packed_documents_are_classified_like_each_alone():
    documents = [torch.arange(size).numpy() + 3 for size in (3, 5, 2, 6)]
    rows = Labelled(TokenSource(documents), [0, 1, 2, 1], length=16, seed=7)
    (row, _), model = next(iter(AtFirst(rows))), classifier()
    assert row.tokens[row.targets >= 0].tolist() == [3] * 4 and sorted(row.targets[row.targets >= 0]) == [0, 1, 1, 2]
    objective, batch = Classify.of(model), collate([row])
    marks = batch.marks()
    hidden = model.hidden(model.embed(batch.tokens, marks), marks, objective.mask(model, marks))
    together = objective.loss(model, hidden, batch)
    alone = 0.0
    for number, label in zip(range(4), (0, 1, 2, 1), strict=True):
        own = AtFirst(Labelled(TokenSource([documents[number]]), [label], len(documents[number]), 0))
        one = collate([next(iter(own))[0]])
        assert one.targets[0, 0] == label and one.counted == 1
        marks = one.marks()
        hidden = model.hidden(model.embed(one.tokens, marks), marks, objective.mask(model, marks))
        alone += objective.loss(model, hidden, one).total.item()
    assert together.count == 4 and together.total.item() == pytest.approx(alone, rel=1e-12)


def test_a_classifier_begins_with_a_pretrained_encoder(tmp_path):
    run_recipe(Recipe.parse(read_recipe(TINY, ["threads=1", "stages.0.steps=4"]), "recipe"), tmp_path / "before")
    lines = [f"{n % 2}\t{'import json' if n % 2 else 'def f(x): return x'} {n}" for n in range(12)]
    (tmp_path / "labelled.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = {  # no text: its rows are labelled documents
        "threads": 1,
        "model": {"path": str(tmp_path / "before" / "model")},
        "objective": "classify",
        "data": {"two": {"kind": "labelled", "file": str(tmp_path / "labelled.tsv"), "labels": ["0", "1"]}},
        "stages": [{"length": 128, "rows": 4, "steps": 12, "mix": {"two": 1.0}}],
        "optimizer": {"name": "adamw", "lr": 0.01},
        "memory": {"strategy": "layer-outer", "chunk": 64},
        "loop": {"save_every": 5},
    }
    recipe, before = Recipe.parse(settings, "recipe"), load(tmp_path / "before" / "model")
    fresh, held = build_model(recipe, before.tokenizer).state_dict(), before.model.state_dict()
    assert all(torch.equal(fresh[name], held[name]) for name in fresh if not name.startswith("classifier."))
    assert "classifier.weight" in fresh and not any(name.startswith(("masked.", "following.")) for name in fresh)
    run_recipe(recipe, tmp_path / "run", RunOptions(certify=True))
    assert json.loads((tmp_path / "run" / "certificate.json").read_text())["float64"] < 1e-12
    records = [json.loads(line) for line in (tmp_path / "run" / "records.jsonl").read_text().splitlines()]
    assert records[-1]["loss"] < 0.5 * records[0]["loss"] and records[-1]["accuracy"] == 1.0
    again = load(tmp_path / "run" / "model")
    assert again.model.spec.labels == ("0", "1") and again.embed(["import json"]).shape == (1, 48)
    texts = [line.partition("\t")[2] for line in lines]
    found = again.classify(texts)
    assert found.argmax(dim=1).tolist() == [0, 1] * 6
    torch.testing.assert_close(found, torch.cat([again.classify([text]) for text in texts]))
    torch.testing.assert_close(found.sum(dim=1), torch.ones(12))
    with pytest.raises(CapacityError, match=naming("text 1", 64)):
        again.classify(["a", texts[0] * 20])
    with pytest.raises(ConfigError, match="classifier"):
        before.classify(texts)
    assert again.labels == ("0", "1") and before.labels == ()
    with pytest.raises(ConfigError, match="list"):
        again.classify("a")
    three = settings | {"data": {"two": settings["data"]["two"] | {"labels": ["0", "1", "2"]}}}
    three["model"] = {"path": str(tmp_path / "run" / "model")}
    with pytest.raises(ConfigError, match="labels"):
        run_recipe(Recipe.parse(three, "recipe"), tmp_path / "three")


def test_wrong_use_is_refused():
    for changes in ({"head": {"labels": ("a",)}}, {"masked": True}, {"pooler": False}, {"head": {"kind": "none"}}):
        two = {"masked": False, "pooler": True, "head": {"labels": ("a", "b")}}
        with pytest.raises(ConfigError, match=r"head|classifier"):
            BertConfig.parse(SIZES | two | changes, "sizes")
    plain = Bert(BertConfig(**SIZES, pooler=True))
    with pytest.raises(ConfigError, match="no head"):
        plain.classify(torch.zeros(1, 1, 24), Marks.run(0, 1), torch.ones(1, 1, dtype=torch.bool))
    with pytest.raises(ConfigError, match="masked-LM"):
        classifier().logits(torch.zeros(1, 1, 24).double())


def test_lora_leaves_the_new_head_to_learn():
    model = classifier()
    add_lora(model, LoRA(rank=2, targets=("query",)))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {
        "classifier.weight",
        "classifier.bias",
        "pooler.weight",
    } <= trained and "layers.0.mlp.up.weight" not in trained
    plain = Bert(BertConfig(**SIZES, pooler=True))
    add_lora(plain, LoRA(rank=2, targets=("query",)))
    assert plain.pooler is not None and not plain.pooler.weight.requires_grad
