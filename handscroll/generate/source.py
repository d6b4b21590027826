"""Encoder-decoders: the prompt is a source that is encoded, and the decoder begins with its own first token."""

from collections.abc import Sequence

import torch

from handscroll.base.errors import CapacityError, ConfigError
from handscroll.models.model import Model
from handscroll.nn.marks import Marks


def check_source(model: Model, number: int, source: int, new: int, beyond: bool) -> None:
    """Refuse prompt `number` of `source` tokens, or `new` of them, past the context; each has the context to itself.

    Raises:
        CapacityError: one of them does not fit, unless `beyond`.
    """
    context = model.config.context
    for what, count in ((f"prompt {number} has", source), ("a new text would have", 1 + new)):
        if count > context and not beyond:
            raise CapacityError(
                f"{what} {count} tokens, but the model's context is {context} for source and target each; shorten it, "
                "or allow it on your own responsibility (beyond): relative positions have no end"
            )


def only_whole(policy: str, **given: object) -> None:
    """Refuse what is made for one text that goes on.

    Raises:
        ConfigError: an approximate or rounded cache, or one of `given` (by the name of its option).
    """
    wrong = [name for name, value in given.items() if value is not None]
    if policy != "full":
        wrong.append(f"policy '{policy}'")
    if wrong:
        raise ConfigError(
            f"{' and '.join(wrong)}: not for an encoder-decoder, which encodes its prompt as a source and keeps the "
            "whole of it; leave it out"
        )


@torch.no_grad()
def under_sources(model: Model, sources: Sequence[Sequence[int]]) -> Model:
    """The decoder under these sources, one a row, each encoded as if it were alone."""
    lengths = torch.tensor([len(source) for source in sources], device=model.device)
    tokens = torch.zeros(len(sources), int(lengths.max()), dtype=torch.long, device=model.device)
    for row, source in enumerate(sources):
        tokens[row, : len(source)] = torch.tensor(source, device=model.device)
    even = bool((lengths == lengths[0]).all())
    marks = Marks.run(0, tokens.shape[1]) if even else Marks.rows(torch.zeros_like(lengths), lengths)
    return model.under(model.encode(tokens, marks))
