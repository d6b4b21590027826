"""Reads a recipe's text as its run would, so that a plan refuses what the run would refuse."""

import tempfile
from pathlib import Path
from typing import Any

from handscroll.models.locate import locate
from handscroll.models.new import About, new_config
from handscroll.models.weights import settled_config
from handscroll.text.tokenizer import Tokenizer
from handscroll.train.longest import check_positions
from handscroll.train.recipe import Recipe
from handscroll.train.start import held_out, row_stream, trained_tokenizer


def rehearse(recipe: Recipe) -> tuple[Any, int]:
    """The configuration of the recipe's model, and the bytes of its text as tokens; every kind of row was made once.

    No weights are made or read. A tokenizer that is to be trained is trained, and thrown away.

    Raises:
        ConfigError, DataError, CapacityError: what the run would raise about tokenizer, text, rows and validation.
    """
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = trained_tokenizer(recipe, Path(folder))
    config = _config(recipe, tokenizer)
    text = recipe.source(tokenizer, config)
    check_positions(recipe, config, int(text.lengths.max()))
    for stage in recipe.stages:
        for name in stage.mix:
            next(iter(row_stream(recipe.data[name], text, tokenizer, stage, recipe.seed)))
    if recipe.validation is not None:
        held_out(recipe.validation, tokenizer, config)
    return config, sum(document.nbytes for document in text.tokens)


def _config(recipe: Recipe, tokenizer: Tokenizer) -> Any:
    labels = recipe.objective.labels(recipe.mixed)
    if recipe.model.path is None:
        about = About(tokenizer, max(stage.length for stage in recipe.stages), labels)
        return new_config(str(recipe.model.family), recipe.model.sizes, about)
    _, config = settled_config(locate(recipe.model.path))
    return config.classifying(labels) if labels else config
