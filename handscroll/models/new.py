"""New models: the table of families that a recipe can start from sizes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from handscroll.base.spec import HeadSpec
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
    """The purpose of a new model: its tokenizer, rows of at most `longest` tokens, and the `labels` of a classifier."""

    tokenizer: Tokenizer
    longest: int
    labels: tuple[str, ...] = ()


def new_config(name: str, sizes: dict[str, Any], about: About) -> Any:
    """The configuration of a new model of a family with these sizes; the tokenizer gives vocabulary and end tokens.

    Raises:
        ConfigError: the family is unknown, does not have these sizes, or they do not fit together.
    """
    tokenizer = about.tokenizer
    ids = {"bos": tokenizer.bos, "eos": () if tokenizer.eos is None else (tokenizer.eos,)}
    make: Callable[[dict[str, Any], About], Any] = resolve(NEW, name, "family of new models")
    return make({"vocab": tokenizer.vocab_size, **ids, **sizes}, about)


def new_model(name: str, sizes: dict[str, Any], about: About) -> Decoder:
    """A model of `new_config` whose weights are not initialised yet."""
    return family(name).build(new_config(name, sizes, about))


def with_head(model: Decoder, head: HeadSpec, generator: torch.Generator, scheme: str = "normal") -> Decoder:
    """A model of the layers of `model`, which are shared and not copied, with this head, which is drawn.

    The layers keep their number formats. Other heads of `model` are dropped.

    Returns the model itself if it has a head that says the same.

    Raises:
        ConfigError: the family has no head of this kind.
    """
    own = model.spec.head
    if own is not None and (own.kind, own.labels, own.problem) == (head.kind, head.labels, head.problem):
        return model
    config = model.config.carrying(head)
    with torch.device("meta"):
        made = family(config.family).build(config)
    held = {name: part for name, part in model.named_children() if name != "classifier"}
    for name, part in list(made.named_children()):
        if name in held:
            setattr(made, name, held[name])
        else:
            part.to(model.dtype).to_empty(device="cpu")  # where the generator is
            initialise(part, scheme, model.config.layers, generator)
            part.to(model.device)
    for name, tensor in (*model.named_parameters(recurse=False), *model.named_buffers(recurse=False)):
        if hasattr(made, name):
            setattr(made, name, tensor)
    lost = [name for name, tensor in (*made.named_parameters(), *made.named_buffers()) if tensor.device != model.device]
    assert not lost, f"{lost} are neither in the model nor in its new head"
    return made


def as_classifier(model: Decoder, labels: tuple[str, ...], scheme: str, generator: torch.Generator) -> Decoder:
    """`model` with a head for these labels of texts.

    Returns the model itself if it is a classifier already, or if its family has none.
    """
    config = model.config.classifying(labels)
    return model if config is model.config else with_head(model, HeadSpec(labels=labels), generator, scheme)
