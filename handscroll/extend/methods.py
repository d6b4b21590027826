"""Extension methods: lists the candidates that a model's positions (`nn/positions/`) offer, and applies one of them."""

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

    "all" means every method; "auto" means every method whose result other libraries can read too. `first` are the
    positions that the model was trained with (`extend/origin.py`). They are the model's own unless it was lengthened
    before.

    Raises:
        ConfigError: the method is unknown or does not fit the family, or the target is not above the context.
    """
    return of_config(model.config, method, to, factors, first)


def of_config(
    config: Any, method: str, to: int, factors: dict[str, Any] | None = None, first: Positions | None = None
) -> list[Candidate]:
    """`candidates` of a model's configuration, without its weights."""
    spec = config.spec
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
        raise ConfigError(f"--factors can only be used with --method longrope, not with '{method}'")
    layer = next(layer for layer in spec.layers if layer.positions == 0)
    found = own.candidates(method, to, own if first is None else first, layer, factors)
    return _fitting(config, found) if method in ("auto", "all") else [one for one in found if _checked(config, one)]


def _fitting(config: Any, found: list[Candidate]) -> list[Candidate]:
    """The candidates that the family allows: the files of some know few ways of scaling (Phi-3)."""
    kept = []
    for candidate in found:
        try:
            kept.append(_checked(config, candidate))
        except ConfigError:
            continue
    return kept


def _checked(config: Any, candidate: Candidate) -> Candidate:
    config.changed(candidate.changes, f"method '{candidate.method}'")
    return candidate


def apply(model: Model, candidate: Candidate) -> None:
    """Lengthen `model` in place: it gets a new frozen configuration, and a longer position table if it has one."""
    if candidate.longer is not None:
        rows = model.get_parameter("position_embedding.weight").detach()
        embedding = torch.nn.Embedding.from_pretrained(candidate.longer(rows), freeze=False)
        model.set_submodule("position_embedding", embedding)
    model.config = model.config.model_copy(update=candidate.changes)
