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
from handscroll.train.start import trained_tokenizer
from handscroll.train.streams import Account, held_out, row_streams


def rehearse(recipe: Recipe) -> tuple[Any, int, Account]:
    """The configuration of the recipe's model, the bytes of its text as tokens, and what is in no row.

    Every kind of row is made once. No weights are made or read. A tokenizer that is to be trained is trained, and
    thrown away.

    Raises:
        ConfigError, DataError, CapacityError: what the run would raise about tokenizer, text, rows and validation.
    """
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = trained_tokenizer(recipe, Path(folder))
    config = _config(recipe, tokenizer)
    text = recipe.source(tokenizer, config)
    check_positions(recipe, config, int(text.lengths.max()))
    rows = row_streams(recipe, text, tokenizer)
    for kinds in rows:
        for stream in kinds.values():
            next(iter(stream))
    held = None if recipe.validated is None else held_out(recipe.validated, tokenizer, config)
    return config, sum(document.nbytes for document in text.tokens), Account.of(rows, held)


def _config(recipe: Recipe, tokenizer: Tokenizer) -> Any:
    labels = recipe.objective.labels(recipe.mixed)
    if recipe.model.path is None:
        about = About(tokenizer, max(stage.length for stage in recipe.stages), labels)
        return new_config(str(recipe.model.family), recipe.model.sizes, about)
    _, config = settled_config(locate(recipe.model.path))
    return config.classifying(labels) if labels else config
