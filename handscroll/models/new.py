"""New models: the table of families that a recipe can begin one of, and what each is told besides its sizes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from handscroll.base.tables import resolve
from handscroll.models.model import Decoder
from handscroll.models.table import family
from handscroll.nn.init import initialise
from handscroll.text.tokenizer import Tokenizer

SIZES = "recipe: model.sizes"  # where the sizes come from, for errors
# The configuration of a new model from its sizes: `(sizes, About) -> configuration`.
NEW: dict[str, str] = {
    "llama": "handscroll.models.llama:new",
    "gpt2": "handscroll.models.gpt2:new",
    "glm": "handscroll.models.glm:new",
    "gemma2": "handscroll.models.gemma:new",
    "gemma3_text": "handscroll.models.gemma:new_3",
    "bert": "handscroll.models.bert:new",
    "glm-blank": "handscroll.models.glm_blank:new",
    "lstm": "handscroll.models.lstm:new",
    "t5": "handscroll.models.t5:new",
}


@dataclass(frozen=True)
class About:
    """What a new model is for: its tokens, rows of at most `longest` tokens, `labels` to tell apart."""

    tokenizer: Tokenizer
    longest: int
    labels: tuple[str, ...] = ()


def new_config(name: str, sizes: dict[str, Any], about: About) -> Any:
    """The configuration of a new model of a family and of sizes; vocabulary and ends are the tokenizer's.

    Raises:
        ConfigError: no such family, or sizes that it does not have or that do not fit together.
    """
    tokenizer = about.tokenizer
    ids = {"bos": tokenizer.bos, "eos": () if tokenizer.eos is None else (tokenizer.eos,)}
    make: Callable[[dict[str, Any], About], Any] = resolve(NEW, name, "family of new models")
    return make({"vocab": tokenizer.vocab_size, **ids, **sizes}, about)


def new_model(name: str, sizes: dict[str, Any], about: About) -> Decoder:
    """A model of `new_config`, its weights not yet initialised."""
    return family(name).build(new_config(name, sizes, about))


def as_classifier(model: Decoder, labels: tuple[str, ...], scheme: str, generator: torch.Generator) -> Decoder:
    """A classifier of documents that begins with the weights of `model`; its new head is drawn, the old ones go.

    The model itself where it is a classifier already, or of a family that makes none.
    """
    config = model.config.classifying(labels)
    if config is model.config:
        return model
    made = family(config.family).build(config)
    initialise(made, scheme, model.config.layers, generator)
    kept = model.state_dict()
    made.load_state_dict({name: kept.get(name, value) for name, value in made.state_dict().items()})
    return made
