"""Recipes with any value at any key: taken, or refused with an error for users, before anything is allocated."""

import tomllib
from pathlib import Path

import pytest

from handscroll.base.errors import ConfigError
from handscroll.models.new import About, new_config
from handscroll.train.recipe import Recipe
from tests.hostile import VALUES, all_answered, places, put, sample
from tests.text.small import trained

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("**/*.toml"))
TOKENIZER = trained("bpe")


def read(values):
    """The recipe, and the configuration of its model with the description of each layer."""
    recipe = Recipe.parse(values, "recipe")
    if recipe.model.family is not None:
        sizes = {"start": 0} | recipe.model.sizes if recipe.model.family == "t5" else recipe.model.sizes
        about = About(TOKENIZER, max(stage.length for stage in recipe.stages))
        return new_config(recipe.model.family, sizes, about).spec
    return None


@pytest.mark.promise("R19")
@pytest.mark.parametrize("count", [pytest.param(100, id="some"), pytest.param(None, marks=pytest.mark.long, id="all")])
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_any_value_at_any_key_of_a_recipe(path, count):
    plain = tomllib.loads(path.read_text(encoding="utf-8"))
    cases = [(place, value) for place in places(plain) for value in VALUES]
    all_answered(sample(cases, count), lambda case: read(put(plain, *case)))


@pytest.mark.parametrize(("size", "value"), [("layers", 10**12), ("width", 10**40), ("context", 2**62)])
def test_sizes_of_a_new_model_are_bounded(size, value):
    plain = tomllib.loads(next(path for path in RECIPES if path.match("tiny/llama.toml")).read_text(encoding="utf-8"))
    with pytest.raises(ConfigError, match=size):
        read(put(plain, ("model", "sizes", size), value))
