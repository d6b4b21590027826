"""A tiny real recipe that trains in a second or two."""

from pathlib import Path

import pytest

from handscroll.base.config import read_recipe
from handscroll.train.recipe import Recipe

RECIPE = Path(__file__).parents[2] / "recipes" / "tiny" / "llama.toml"


@pytest.fixture
def recipe():
    def make(*overrides: str) -> Recipe:
        return Recipe.parse(read_recipe(RECIPE, ["threads=1", *overrides]), "recipe")

    return make
