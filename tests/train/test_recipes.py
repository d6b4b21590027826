"""The recipes that ship: each pre-trains at toy size on text that its user names."""

import json
from pathlib import Path

import pytest

from handscroll.base.config import read_recipe
from handscroll.lm import load
from handscroll.train.recipe import Recipe
from handscroll.train.start import run_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
SMALL = ["threads=1", "text.files=['{stdlib}/json/*.py']", "tokenizer.train.vocab=400", "stages.0.steps=3"]
SMALL += ["stages.0.rows=2", "model.sizes.width=16", "model.sizes.mlp_width=16", "model.sizes.heads=2"]
VALID = ["validation.files=['{stdlib}/argparse.py']", "validation.windows=2", "loop.evaluate_every=3"]


@pytest.mark.parametrize("name", ["bert", "bert-chinese", "t5", "glm"])
def test_a_recipe_runs_on_text_that_is_named(name, tmp_path):
    if name == "bert-chinese":
        pytest.importorskip("jieba")
    own = [] if name == "glm" else VALID
    recipe = Recipe.parse(read_recipe(RECIPES / f"{name}.toml", [*SMALL, *own]), name)
    _, progress = run_recipe(recipe, tmp_path)
    records = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text(encoding="utf-8").splitlines()]
    assert progress.step == len(records) == 3 and ("validation_loss" in records[-1]) == (name != "glm")
    assert load(tmp_path / "model").model.config.vocab == 400


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_is_valid_as_it_stands(path):
    recipe = Recipe.parse(read_recipe(path), path.name)
    assert (recipe.stages and f"recipes/{path.name}" in path.read_text(encoding="utf-8")) or path.stem == "starter"
