"""Vectors of texts by an encoder, by the recipe of its folder and what is given instead."""

from collections.abc import Callable, Sequence
from typing import TypedDict

import torch
from jaxtyping import Float
from torch import Tensor

from handscroll.base.errors import ConfigError
from handscroll.models.model import Model
from handscroll.models.sentence_folder import Sentences
from handscroll.models.sentences import framed
from handscroll.text.tokenizer import Tokenizer


class How(TypedDict, total=False):
    """How texts become vectors; the recipe of the folder decides what is left out.

    `normalise` scales vectors to length 1, so that the product of two is their cosine. `windows` reads texts of any
    length. `prompt` names one of the recipe's prompts, which stands before each text.
    """

    normalise: bool
    windows: bool
    prompt: str | None


def vectors(
    model: Model, tokenizer: Tokenizer, recipe: Sentences | None, texts: Sequence[str], pooling: str | None, how: How
) -> Float[Tensor, "N D"]:
    """One vector a text, in float32 on the CPU. Without a recipe: the mean, scaled to length 1, and nothing is cut.

    Raises:
        ConfigError: one text instead of several, or a prompt, pooling or recipe that is not known.
    """
    if isinstance(texts, str):
        raise ConfigError("expected a list of texts; for one text give [text]")
    recipe, frame, windows = recipe or Sentences(), tokenizer.frame(), how.get("windows", False)
    ids = encoded(tokenizer, recipe, texts, how.get("prompt"))
    ids = ids if windows else recipe.cut(ids, sum(map(len, frame)))
    found = framed(model, ids, frame, pooling or recipe.pooling, windows)
    return torch.nn.functional.normalize(found, dim=1) if how.get("normalise", recipe.normalise) else found


def encoded(
    tokenizer: Tokenizer, recipe: Sentences | None, texts: Sequence[str], prompt: str | None
) -> list[list[int]]:
    """The tokens of texts with a prompt of the recipe before each, without those that frame a text."""
    return [tokenizer.encode(text, special=False) for text in (recipe or Sentences()).prompted(texts, prompt)]


def windowed(
    model: Model,
    tokenizer: Tokenizer,
    recipe: Sentences | None,
    texts: Sequence[Sequence[int]],
    between: Callable[[], None],
) -> Float[Tensor, "N D"]:
    """`vectors` of encoded texts of any length, read in windows; `between` is called after every few windows."""
    recipe = recipe or Sentences()
    found = framed(model, texts, tokenizer.frame(), recipe.pooling, windows=True, between=between)
    return torch.nn.functional.normalize(found, dim=1) if recipe.normalise else found
