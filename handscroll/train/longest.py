"""Checks, before training starts, that a model has positions for the rows of a recipe."""

from typing import TYPE_CHECKING, Any

from handscroll.base.errors import CapacityError
from handscroll.train.rows import BlanksData, RowData

if TYPE_CHECKING:
    from handscroll.train.recipe import Recipe


def check_positions(recipe: "Recipe", config: Any, document: int) -> None:
    """Refuse rows that are longer than a learned position table, or than the context that a model declares.

    Positions restart in each document of a row (of at most `document` tokens), and in each of several pairs. The model
    itself refuses labelled documents that are too long. A stage with new rotary positions makes them for the length of
    its rows. The recurrent strategy checks its chunks itself (`train/strategies/recurrent.py`). Held-out text may be
    longer than the context of a model without a table.

    Raises:
        CapacityError: rows are too long; the message says what would fit.
    """
    if config.spec.recurrent or recipe.memory.strategy == "recurrent":
        return
    if config.spec.reads == "blanks":
        _check_blanks(recipe, config, document)
        return
    context = config.context
    for stage in recipe.stages:
        if stage.positions is not None and config.spec.rotates:
            context = max(stage.length, config.trained)
        longest = max(_positions(recipe.data[name], stage.length, document) for name in stage.mix)
        if longest > context:
            raise CapacityError(
                _too_long(recipe, config, f"rows of {longest} tokens (stages.length)", longest, context)
            )
    held_out = 0 if recipe.validation is None else recipe.validation.length
    if config.spec.limit is not None and held_out > config.spec.limit:
        what = f"windows of {held_out} tokens (validation.length)"
        raise CapacityError(_too_long(recipe, config, what, held_out, config.context))


def _too_long(recipe: "Recipe", config: Any, what: str, longest: int, context: int) -> str:
    than = "the learned position table" if config.spec.limit is not None else "the declared context"
    new = f"give model.sizes.context = {longest}"
    ready = f"lengthen the checkpoint first (handscroll extend ... --to {longest})"
    instead = new if recipe.model.path is None else ready
    return f"{what} are longer than {than} of {context}: shorten them, or {instead}"


def _check_blanks(recipe: "Recipe", config: Any, document: int) -> None:
    asked = [
        data.places(stage.length, document)
        for stage in recipe.stages
        for data in map(recipe.data.__getitem__, stage.mix)
        if isinstance(data, BlanksData)
    ]
    places, inside = (max(both) for both in zip(*asked, strict=True))
    if places > config.context or inside > config.inside:
        sizes = f", or give model.sizes.context = {places} and model.sizes.inside = {inside} at least"
        raise CapacityError(
            f"the rows need {places} places and {inside} inside a blank, but the learned tables have "
            f"{config.context} and {config.inside}: shorten them (stages.length, or `longest` of the blanks)"
            + (sizes if recipe.model.path is None else "")
        )


def _positions(data: RowData, length: int, document: int) -> int:
    """The most positions in a row of `length` tokens with documents of at most `document` tokens. 0: not known."""
    if data.kind == "labelled":
        return 0
    if data.kind == "pairs":
        return length // data.pairs
    return min(length, document) if data.kind == "text" and data.sampling == "packed" else length
