"""`--device`: a device that is not there is refused by every verb that loads a model, before anything is read."""

import pytest
import torch

from handscroll.base.errors import ConfigError
from handscroll.cli.main import app
from handscroll.lm import load
from handscroll.train.recipe import Recipe
from handscroll.train.start import run_recipe
from tests.naming import naming

VERBS = {
    "generate": ["--prompt", "x"],
    "chat": [],
    "evaluate perplexity": ["TEXT", "--length", "32"],
    "evaluate needle": ["--lengths", "32"],
    "evaluate policies": ["TEXT", "--length", "32"],
    "read": ["TEXT", "--save", "name"],
    "extend": ["--to", "256", "--out", "OUT"],
    "batch": ["REQUESTS", "--out", "OUT"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_unknown_devices_are_refused(verb, tiny_folder, tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text("word " * 200)
    (tmp_path / "requests.jsonl").write_text('{"prompt": "x"}\n')
    names = {"TEXT": tmp_path / "text.txt", "OUT": tmp_path / "out", "REQUESTS": tmp_path / "requests.jsonl"}
    arguments = [str(names.get(word, word)) for word in VERBS[verb]]
    with pytest.raises(ConfigError, match=naming("'gpu'", "cuda")):
        app([*verb.split(), str(tiny_folder), *arguments, "--device", "gpu"], standalone_mode=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused(tiny_folder, tmp_path):
    with pytest.raises(ConfigError, match="0 GPUs"):
        load(tiny_folder, device="cuda")
    values = {"text": {"files": ["x"]}, "model": {"path": str(tiny_folder)}, "data": {"text": {"kind": "text"}}}
    stage = {"length": 32, "rows": 1, "steps": 1, "mix": {"text": 1.0}}
    recipe = Recipe.parse(values | {"stages": [stage], "device": "cuda"}, "recipe")
    with pytest.raises(ConfigError, match="0 GPUs"):
        run_recipe(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_frozen_weights_may_be(tiny_folder):
    values = {"text": {"files": ["x"]}, "model": {"path": str(tiny_folder)}, "data": {"text": {"kind": "text"}}}
    values["stages"] = [{"length": 32, "rows": 1, "steps": 1, "mix": {"text": 1.0}}]
    with pytest.raises(ConfigError, match=r"loop\.precision = 'bfloat16'"):
        Recipe.parse(values | {"lora": {"frozen": "bfloat16"}}, "recipe")
    with pytest.raises(ConfigError, match="coarse"):
        Recipe.parse(values | {"lora": {"frozen": "bfloat16", "tables": True}}, "recipe")
    new = {"model": {"family": "llama"}, "loop": {"precision": "bfloat16"}, "tokenizer": {"path": "x"}}
    with pytest.raises(ConfigError, match="nothing frozen"):
        Recipe.parse(values | new | {"lora": {"frozen": "bfloat16"}}, "recipe")
