"""Which weights of a model are trained: all of them, the head, the last layers, or low-rank updates."""

from torch import nn

from handscroll.base.errors import ConfigError
from handscroll.lm import LM
from handscroll.models.model import Model
from handscroll.nn.quantised import quantised
from handscroll.tasks.recipe import Tuning
from handscroll.train.lora import add_lora
from handscroll.train.optim import layer_of


def prepare(lm: LM, tuning: Tuning) -> None:
    """Freeze what `tuning` does not train, in place, and put low-rank updates on the model.

    Raises:
        ConfigError: there is no head to train alone, fewer layers than are asked for, or weights that get no gradient.
    """
    model = lm.model
    if tuning.way == "lora":
        add_lora(model, tuning.adapter, tuning.seed)
        return
    if quantised(model):
        raise ConfigError(
            f"the weights of {lm.source} are quantised and get no gradient: use way 'lora', or dequantise them "
            "(--set weights=float)"
        )
    head = set(_head(model))
    if tuning.way == "head" and not head:
        raise ConfigError(
            "way 'head' trains a head for labels, numbers or answers, and this task has none: use way 'lora'"
        )
    depth = model.config.layers
    if tuning.layers > depth:
        raise ConfigError(f"layers is {tuning.layers}, but the model has {depth}: give fewer, or use way 'full'")
    first = {"full": 0, "last": depth - tuning.layers, "head": depth}[tuning.way]
    for name, parameter in model.named_parameters():
        at = layer_of(name)
        trained = name in head or (at >= first if at is not None else tuning.way == "full" or _last(name, tuning))
        parameter.requires_grad_(trained)


def _last(name: str, tuning: Tuning) -> bool:
    """Whether a parameter outside the layers is trained with the last ones: the final norm is."""
    return tuning.way == "last" and name.startswith("norm.")


def _head(model: Model) -> list[str]:
    if model.spec.head is None:
        return []
    return [name for name, _ in model.named_parameters() if name.startswith(("classifier.", "pooler."))]


def counted(model: nn.Module) -> tuple[int, int]:
    """Numbers that are trained, and all numbers."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)
