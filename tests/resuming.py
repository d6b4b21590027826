"""A run that is killed and gone on with ends as one that ran through."""

from pathlib import Path

import pytest

from handscroll.lm import LM
from handscroll.train.recipe import Recipe
from handscroll.train.start import RunOptions, run_recipe


class Killed(Exception):
    """As good as a signal, from inside of the run."""


def dies_after(step: int) -> RunOptions:
    """Options of a run that is killed once it has made so many updates."""

    def die(record):
        if record["step"] == step:
            raise Killed

    return RunOptions(on_record=die)


def resumes_to_the_same_bytes(recipe: Recipe, whole: Path, step: int) -> LM:
    """Run `recipe` again, killed at `step`, and go on with it: records and weights are those of the run in `whole`."""
    folder = whole.with_name("killed")
    with pytest.raises(Killed):
        run_recipe(recipe, folder, dies_after(step))
    lm, _ = run_recipe(recipe, folder)
    for name in ("records.jsonl", "model/model.safetensors"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    return lm
