"""Whether a model has positions for the rows of a recipe, asked before anything is trained."""

from typing import TYPE_CHECKING, Any

from handscroll.base.errors import CapacityError
from handscroll.train.rows import BlanksData, RowData

if TYPE_CHECKING:
    from handscroll.train.recipe import Recipe


def check_positions(recipe: "Recipe", config: Any, document: int) -> None:
    """Refuse rows that are longer than a learned table, or than the context that a model declares.

    Positions begin anew in each document of a row, of `document` tokens at most, and in each of several pairs; labelled
    documents that are too long the model itself refuses. Where a stage gives new positions, they are made for its rows.

    Raises:
        CapacityError: says what would fit.
    """
    if config.told == "order":
        return
    if config.told == "pairs":
        _check_blanks(recipe, config, document)
        return
    declared = False
    for stage in recipe.stages:
        declared = declared or stage.positions is not None
        longest = max(_positions(recipe.data[name], stage.length, document) for name in stage.mix)
        if longest > config.context and not declared:
            what = "the learned position table" if config.told == "learned" else "the declared context"
            new = f"give model.sizes.context = {longest}"
            ready = f"lengthen the checkpoint first (handscroll extend ... --to {longest})"
            raise CapacityError(
                f"rows of {longest} tokens (stages.length) are longer than {what} of {config.context}: shorten them, "
                f"or {new if recipe.model.path is None else ready}"
            )


def _check_blanks(recipe: "Recipe", config: Any, document: int) -> None:
    asked = [
        data.places(stage.length, document)
        for stage in recipe.stages
        for data in map(recipe.data.__getitem__, stage.mix)
        if isinstance(data, BlanksData)
    ]
    places, inside = (max(both) for both in zip(*asked, strict=True))
    if places > config.context or inside > config.inside:
        raise CapacityError(
            f"the rows ask for {places} places and {inside} inside a blank, and the learned tables have "
            f"{config.context} and {config.inside}: shorten them (stages.length, or `longest` of the blanks), or give "
            f"model.sizes.context = {places} and model.sizes.inside = {inside} at least"
        )


def _positions(data: RowData, length: int, document: int) -> int:
    """Positions that rows of `length` tokens count at most, of documents of `document`; 0: not told."""
    if data.kind == "labelled":
        return 0
    if data.kind == "pairs":
        return length // data.pairs
    return min(length, document) if data.kind == "text" and data.sampling == "packed" else length
