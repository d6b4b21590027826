"""Encoder-decoders: the prompt is encoded as a source, and the new text begins with the decoder's start token."""

from collections.abc import Sequence

import torch

from handscroll.base.errors import CapacityError, ConfigError
from handscroll.cache.table import kind_of, listed
from handscroll.models.model import Model
from handscroll.nn.marks import Marks


def check_source(model: Model, number: int, source: int, new: int, beyond: bool) -> None:
    """Refuse prompt `number` if its `source` tokens, or the `new` tokens, exceed the context.

    Source and target may each fill the context.

    Raises:
        CapacityError: one of them does not fit, and `beyond` is not set.
    """
    context = model.config.context
    for what, count in ((f"prompt {number} has", source), ("a new text would have", 1 + new)):
        if count > context and not beyond:
            raise CapacityError(
                f"{what} {count} tokens, but the model's context is {context} for source and target each; shorten it, "
                "or allow it on your own responsibility (beyond): relative positions have no limit"
            )


def only_whole(policy: str, **given: object) -> None:
    """Refuse settings that an encoder-decoder does not support.

    Raises:
        ConfigError: the cache is approximate, or one of `given` (named by its option) is set.
    """
    wrong = [name for name, value in given.items() if value is not None]
    if wrong:
        raise ConfigError(
            f"{' and '.join(wrong)}: not possible with an encoder-decoder, which encodes its prompt as a source and "
            "keeps all of it; leave it out"
        )
    if not kind_of(policy).exact:
        raise ConfigError(
            f"the cache '{policy}' is approximate, and an encoder-decoder, whose cache holds only the new text, takes "
            f"exact ones: {listed('exact')}"
        )


@torch.no_grad()
def under_sources(model: Model, sources: Sequence[Sequence[int]]) -> Model:
    """The decoder with the memory of these sources, one source a row; each is encoded as if it were alone."""
    lengths = torch.tensor([len(source) for source in sources], device=model.device)
    tokens = torch.zeros(len(sources), int(lengths.max()), dtype=torch.long, device=model.device)
    for row, source in enumerate(sources):
        tokens[row, : len(source)] = torch.tensor(source, device=model.device)
    even = bool((lengths == lengths[0]).all())
    marks = Marks.run(0, tokens.shape[1]) if even else Marks.rows(torch.zeros_like(lengths), lengths)
    return model.under(model.encode(tokens, marks))
