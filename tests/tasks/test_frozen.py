"""Frozen weights in bfloat16: heads above them learn, scores are those of what is saved, and the planner knows it."""

import json

import pytest
import torch

from handscroll.base.errors import ConfigError
from handscroll.models.model import Decoder
from handscroll.nn.adapted import Adapted, Update
from handscroll.tasks.finetune import finetune
from handscroll.tasks.predict import load_tuned, predict
from handscroll.tasks.recipe import TaskData
from tests.tasks.material import recipe, rows, table, tiny

NARROW = {"way": "lora", "precision": "bfloat16", "lora": {"frozen": "bfloat16"}}


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert", "llama"])
def test_a_head_above_narrow_weights_is_trained_and_scored_as_it_is_saved(tmp_path, family, monkeypatch):
    data, read = table(tmp_path / "train.csv"), []
    judge = Decoder.judge
    monkeypatch.setattr(Decoder, "judge", lambda self, states: read.append(states.dtype) or judge(self, states))
    tuned = finetune(recipe(tiny(tmp_path / "model", family), data, NARROW | {"epochs": 8}), tmp_path / "run")
    assert tuned.scores["valid"]["accuracy"].value > 0.9 and torch.bfloat16 in read
    told = rows(tmp_path / "run" / "valid.predictions.jsonl")
    again = tmp_path / "again.csv"
    again.write_text("text,label\n" + "".join(f"{one['text']},{one['reference']}\n" for one in told), encoding="utf-8")
    found = predict(*load_tuned(tmp_path / "run"), TaskData(train=(str(again),))).predictions
    for one, other in zip(found, told, strict=True):
        assert one.more["probabilities"] == pytest.approx(other["probabilities"], abs=1e-6)


def test_updated_heads_are_asked_for_their_width_without_a_merge(tmp_path, monkeypatch):
    how = {"way": "head", "epochs": 1}
    model = finetune(recipe(tiny(tmp_path / "bert"), table(tmp_path / "train.csv"), how), tmp_path / "run").lm.model
    states = torch.randn(3, model.config.width, generator=torch.Generator().manual_seed(0))
    plain = model.judge(states), model.pooled(states)
    monkeypatch.setattr(Update, "merged", lambda self, weight: pytest.fail("the update was merged"))
    for name in ("classifier", "pooler"):
        layer = model.get_submodule(name)
        rows, inner = layer.weight.shape
        model.set_submodule(name, Adapted(layer, Update(torch.ones(1, inner), torch.zeros(rows, 1))))
    with torch.no_grad():
        torch.testing.assert_close((model.judge(states), model.pooled(states)), plain, rtol=0, atol=1e-6)


def test_narrow_frozen_weights_need_narrow_arithmetic():
    with pytest.raises(ConfigError, match=r"lora\.frozen = 'bfloat16' needs precision = 'bfloat16'"):
        recipe("model", "data", NARROW | {"precision": "float32"})


def test_the_plan_counts_frozen_weights_in_their_own_width(tmp_path):
    model, data = tiny(tmp_path / "bert"), table(tmp_path / "train.csv")
    for name, frozen in (("wide", "float32"), ("narrow", "bfloat16")):
        how = NARROW | {"lora": {"frozen": frozen}, "epochs": 1}
        finetune(recipe(model, data, how), tmp_path / name)
    parts = {}
    for name in ("wide", "narrow"):
        plan = json.loads((tmp_path / name / "plan.json").read_text(encoding="utf-8"))["plan"]
        parts[name] = plan["stages"][0]["parts"]["weights"]
    assert 0.5 < parts["narrow"] / parts["wide"] < 0.75  # the head and the updates stay as wide as they are
