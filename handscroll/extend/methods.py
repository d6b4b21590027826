"""Extension methods: what a model's positions (`nn/positions/`) offer for a longer context, and how one is applied."""

from typing import Any

import torch

from handscroll.base.errors import ConfigError, nearest
from handscroll.base.spec import Positions
from handscroll.models.model import Model
from handscroll.nn.positions.candidate import Candidate


def candidates(
    model: Model, method: str, to: int, factors: dict[str, Any] | None = None, first: Positions | None = None
) -> list[Candidate]:
    """The candidates of `method` for lengthening `model` to `to` tokens.

    "all": of every method; "auto": of every method whose result other libraries can read too. `first` are the positions
    that the model was trained with (`extend/origin.py`), its own unless it was lengthened before.

    Raises:
        ConfigError: an unknown method, one that does not fit the family, or a target not above the trained length.
    """
    spec, config = model.spec, model.config
    own = spec.positions[0]
    if not own.methods:
        raise ConfigError(f"family '{spec.family}' {own.unlengthened}")
    if to <= config.context:
        raise ConfigError(
            f"--to {to} is not longer than the context of this checkpoint ({config.context} tokens"
            + (f", trained to {config.trained}" if config.trained != config.context else "")
            + "); give a larger number"
        )
    if method not in ("auto", "all", *own.methods):
        valid = nearest(str(method), ["auto", "all", *own.methods])
        raise ConfigError(f"unknown method '{method}' for {own.words}: {valid}")
    if factors is not None and method != "longrope":
        raise ConfigError(f"--factors go with --method longrope, not with '{method}'")
    layer = next(layer for layer in spec.layers if layer.positions == 0)
    return own.candidates(method, to, own if first is None else first, layer, factors)


def apply(model: Model, candidate: Candidate) -> None:
    """Make `model` the lengthened one, in place: a new frozen configuration, and a longer position table if it has
    one."""
    if candidate.longer is not None:
        rows = model.get_parameter("position_embedding.weight").detach()
        embedding = torch.nn.Embedding.from_pretrained(candidate.longer(rows), freeze=False)
        model.set_submodule("position_embedding", embedding)
    model.config = model.config.model_copy(update=candidate.changes)
