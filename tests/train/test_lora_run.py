"""Runs with LoRA over checkpoints of every dtype: written as the checkpoint is stored, changed by the update alone."""

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from handscroll.base.config import read_recipe
from handscroll.extend.extend import extension
from handscroll.extend.tune import TuneSettings
from handscroll.lm import LM, load
from handscroll.train.lora import add_lora
from handscroll.train.recipe import Recipe
from handscroll.train.start import RunOptions, build_model, run_recipe, trained_from
from tests.conformance.families import FORMS
from tests.text.small import LINES, trained

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
RECIPE = """
threads = 1
[text]
files = ["FOLDER/text.txt"]
[model]
path = "FOLDER/base"
[data.text]
kind = "text"
[[stages]]
length = 32
rows = 2
steps = 4
mix = { text = 1.0 }
[optimizer]
name = "adamw"
lr = 0.05
[lora]
rank = 4
targets = ["query", "down"]
"""


@pytest.fixture
def base(tmp_path):
    """A function that writes a small checkpoint in a dtype, and text beside it."""

    def made(dtype):
        tokenizer, form = trained("bpe"), FORMS["llama"]
        changes = {"vocab_size": tokenizer.vocab_size, "bos_token_id": None, "eos_token_id": 1}
        model = form.build(torch.float32, foreign=form.foreign | changes).to(dtype)
        (tmp_path / "text.txt").write_text("".join(LINES) * 60, encoding="utf-8")
        (tmp_path / "recipe.toml").write_text(RECIPE.replace("FOLDER", str(tmp_path)))
        return LM(model, tokenizer, "base").save(tmp_path / "base")

    return made


def written(folder):
    return {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("frozen", ["float32", "bfloat16"])
def test_a_run_writes_the_dtype_of_its_base(base, tmp_path, dtype, frozen):
    folder = base(dtype)
    assert written(folder) == {dtype}
    more = ["lora.frozen='bfloat16'", "loop.precision='bfloat16'"] if frozen == "bfloat16" else []
    run_recipe(Recipe.parse(read_recipe(tmp_path / "recipe.toml", more), "recipe"), tmp_path / "run")
    assert written(tmp_path / "run" / "model") == {dtype}
    assert {tensor.dtype for tensor in load_file(tmp_path / "run/adapter/adapter_model.safetensors").values()} == {
        torch.float32
    }
    before, after = (load_file(one / "model.safetensors") for one in (folder, tmp_path / "run" / "model"))
    exact = frozen == "float32" or dtype == torch.bfloat16
    changed = {name for name in before if not torch.allclose(before[name], after[name], rtol=0 if exact else 1e-2)}
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "down_proj"}
    lm, apart = load(tmp_path / "run" / "model"), load(folder, dtype="float32", adapter=str(tmp_path / "run/adapter"))
    ids = apart.encode(LINES[0])
    with torch.no_grad():
        far = (lm.logits(ids).float() - apart.logits(ids)).norm() / apart.logits(ids).norm()
        moved = (load(folder, dtype="float32").logits(ids) - apart.logits(ids)).norm() / apart.logits(ids).norm()
    assert far < (1e-4 if dtype == torch.float32 and exact else 0.02) < moved


def test_a_stopped_run_writes_nothing_as_if_it_had_ended(base, tmp_path):
    base(torch.float32)
    recipe = Recipe.parse(read_recipe(tmp_path / "recipe.toml", []), "recipe")
    stop = RunOptions(on_record=lambda record: os.kill(os.getpid(), signal.SIGINT))
    _, progress = run_recipe(recipe, tmp_path / "run", stop)
    assert progress.step == 1 and not (tmp_path / "run" / "adapter").exists()
    assert "actual" not in json.loads((tmp_path / "run" / "plan.json").read_text())
    _, progress = run_recipe(recipe, tmp_path / "run")
    assert progress.step == 4 and (tmp_path / "run" / "adapter").exists() and (tmp_path / "run" / "model").exists()


def test_frozen_weights_are_held_in_the_dtype_that_the_recipe_names(base, tmp_path):
    base(torch.float32)
    more = ["lora.frozen='bfloat16'", "loop.precision='bfloat16'"]
    recipe = Recipe.parse(read_recipe(tmp_path / "recipe.toml", more), "recipe")
    model = build_model(recipe, trained("bpe"))
    add_lora(model, recipe.lora)
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lora", [None, {"rank": 4}], ids=["all weights", "lora"])
def test_a_tuning_writes_the_dtype_of_its_base(base, tmp_path, dtype, lora):
    folder = base(dtype)
    values = {"files": (str(tmp_path / "text.txt"),), "steps": 3, "rows": 1, "lora": lora, "lr": 0.02}
    lm = trained_from(str(folder), load(folder, dtype="float32"))
    result = extension(lm, 128, "pi", tune=TuneSettings.parse(values, "test"), folder=tmp_path / "tuning")
    result.lm.save(tmp_path / "longer")
    assert written(tmp_path / "longer") == {dtype}
    before, after = (load_file(one / "model.safetensors") for one in (folder, tmp_path / "longer"))
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_no_adapter_is_written_over_a_new_model_whose_first_weights_are_saved_nowhere(tmp_path):
    (tmp_path / "text.txt").write_text("".join(LINES) * 60, encoding="utf-8")
    sizes = "width = 32\nlayers = 1\nheads = 2\nhead_size = 16\nkv_heads = 1\nmlp_width = 32\ncontext = 64"
    new = f'family = "llama"\n[model.sizes]\n{sizes}\n[tokenizer.train]\nvocab = 300'
    (tmp_path / "recipe.toml").write_text(RECIPE.replace('path = "FOLDER/base"', new).replace("FOLDER", str(tmp_path)))
    run_recipe(Recipe.parse(read_recipe(tmp_path / "recipe.toml"), "recipe"), tmp_path / "run")
    assert (tmp_path / "run" / "model").exists() and not (tmp_path / "run" / "adapter").exists()
