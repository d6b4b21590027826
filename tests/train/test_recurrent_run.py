"""The recurrent form from a recipe: it says what it is, and a killed run resumes to the same bytes."""

from pathlib import Path

import pytest

from handscroll.base.config import read_recipe
from handscroll.base.errors import CheckpointError, ConfigError
from handscroll.train.recipe import Recipe
from handscroll.train.start import RunOptions, run_recipe
from handscroll.train.step import Memory
from tests.resuming import resumes_to_the_same_bytes

RECIPE = Path(__file__).parents[2] / "recipes" / "tiny" / "llama.toml"


@pytest.mark.parametrize("sampling", ["sliding", "cyclic"])
def test_a_recurrent_run_resumes_to_the_same_bytes(sampling, tmp_path):
    settings = [
        "threads=1",
        "loop.save_every=1",
        "loop.evaluate_every=0",
        f"data={{text={{kind='text',sampling='{sampling}',order='reading'}}}}",
        "stages=[{length=256,rows=4,micro=2,steps=6,mix={text=1.0}}]",
        "memory={strategy='recurrent',chunk=64,remembered=64}",
        "model.sizes.context=128",  # enough for chunk and remembered; the rows are longer
        "regularise.dropout=0.1",
    ]
    recipe = Recipe.parse(read_recipe(RECIPE, settings), "recipe")
    shown = []
    run_recipe(recipe, tmp_path / "straight", RunOptions(show=shown.append))
    assert "truncated" in shown[0]

    resumes_to_the_same_bytes(recipe, tmp_path / "straight", step=4)
    other = Recipe.parse(read_recipe(RECIPE, [*settings, "memory.remembered=32"]), "recipe")
    with pytest.raises(CheckpointError, match="another recipe"):
        run_recipe(other, tmp_path / "straight")
    with pytest.raises(ConfigError, match="certify"):
        run_recipe(recipe, tmp_path / "certified", RunOptions(certify=True))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"strategy": "recurrent", "chunk": 64}, "chunk|remembered"),
        ({"strategy": "recurrent", "remembered": 64}, "chunk"),
        ({"strategy": "plain", "remembered": 64}, "remembered"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        Memory.parse(settings, "memory")
