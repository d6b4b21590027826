"""Which weights of a model are trained: all of them, the head, the last layers, or low-rank updates."""

import math

from torch import nn

from handscroll.base.errors import ConfigError
from handscroll.lm import LM
from handscroll.models.model import Model
from handscroll.models.peft import Adapter
from handscroll.nn.quantised import quantised
from handscroll.tasks.recipe import Tuning
from handscroll.train.lora import LoRA, add_lora, can_save, continue_lora
from handscroll.train.optim import layer_of


def prepare(lm: LM, tuning: Tuning, adapter: Adapter | None = None) -> LoRA | None:
    """Freeze what `tuning` does not train, in place, and put low-rank updates on the model.

    `adapter` is over the model already and tuned further. Returns the settings of the updates, if there are any.

    Raises:
        ConfigError: there is no head to train alone, fewer layers than are asked for, or weights that get no gradient;
            `tuning.lora` contradicts the adapter; or the updates could not be saved.
    """
    model = lm.model
    if tuning.way == "lora":
        if adapter is None:
            add_lora(model, settings := tuning.adapter, tuning.seed)
        else:
            settings = _continued(model, tuning, adapter)
        _check_saved(lm, tuning)
        return settings
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
    return None


def _continued(model: Model, tuning: Tuning, adapter: Adapter) -> LoRA:
    """Train on an adapter, whose own settings are kept."""
    asked = tuning.lora or LoRA()
    settings = continue_lora(model, adapter, asked.frozen)
    wanted, own = asked.model_dump(exclude_unset=True), settings.model_dump()
    if "targets" in wanted:
        wanted["targets"] = tuple(sorted(wanted["targets"]))
    wrong = [
        f"{name} = {value} (the adapter: {own[name]})"
        for name, value in wanted.items()
        if value != own[name] and not (name == "alpha" and math.isclose(value, own[name]))
    ]
    if wrong:
        raise ConfigError(
            f"tuning.lora: {', '.join(wrong)}. {adapter.folder} is tuned further in its own form: leave tuning.lora "
            "(--rank) out, or tune the base with a new one"
        )
    return settings


def _check_saved(lm: LM, tuning: Tuning) -> None:
    """Refuse, before anything is trained, updates over quantised weights that could not be saved."""
    if not quantised(lm.model):
        return
    if tuning.merge:
        raise ConfigError(
            f"tuning.merge adds the updates to the weights, and those of {lm.source} are quantised: leave merge out, "
            "or dequantise them (--set weights=float)"
        )
    if not can_save(lm.model):
        raise ConfigError(
            f"an adapter of {lm.source} could neither be saved by itself, since family '{lm.model.config.family}' "
            "stores what it changes fused or reordered, nor merged into quantised weights: dequantise them "
            "(--set weights=float)"
        )


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
