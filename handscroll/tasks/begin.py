"""What a tuning run begins with: a model, or an adapter over one, which is tuned further or merged into it."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from handscroll.base.errors import ConfigError
from handscroll.base.spec import HeadSpec
from handscroll.lm import LM, load
from handscroll.models.adapters import Weighted, over_base, weighted
from handscroll.models.locate import locate
from handscroll.models.peft import WEIGHTS, Adapter, read_adapter
from handscroll.models.weights import TASK, read_json
from handscroll.nn.finite import check_weights
from handscroll.nn.quantised import quantised
from handscroll.tasks.recipe import TuningRecipe
from handscroll.tasks.task import Task
from handscroll.tasks.tuned import tuned_folder
from handscroll.train.start import trained_from


@dataclass(frozen=True)
class Beginning:
    """The model of a run. `base` is the checkpoint of its weights, `over` are the adapters that it began with.

    `adapter` is the one that is tuned further; None where there is none, or where they were merged.
    """

    lm: LM
    base: str
    over: tuple[Weighted, ...] = ()
    adapter: Adapter | None = None

    @property
    def path(self) -> Path:
        """Where the base lies."""
        return locate(self.base)

    def in_words(self) -> str:
        """What a person reads of the adapters; nothing where there are none."""
        if not self.over:
            return ""
        how = "merged into" if self.adapter is None else f"{self.adapter.describe()}, tuned further over"
        return f"{_names(self.over)}: {how} {self.base}"

    def record(self) -> dict[str, Any]:
        """What the recipe of a run folder says of it; adapters are known by their weights too."""
        if not self.over:
            return {}
        weights = [hashlib.sha256((one.folder / WEIGHTS).read_bytes()).hexdigest() for one in self.over]
        places = [str(one.folder.resolve()) for one in self.over]
        return {"begins with": {"base": self.base, "adapters": places, "weights": weights}}

    def ready(self, task: Task, seed: int) -> LM:
        """The model with the head that the task needs.

        Raises:
            ConfigError: the model cannot do the task, or an adapter with a head was tuned for another one.
        """
        own = self.lm.model
        head, lm = own.spec.head, task.ready(self.lm, seed)
        if self.over and lm.model is not own and head is not None and head.kind != "none":
            raise ConfigError(
                f"{_names(self.over)} over {self.base} has a head for {_said(head)}, and the task '{task.name}' needs "
                f"one for {_said(lm.model.spec.head)}: give rows that fit the head, name its labels in order "
                "(--set 'task.labels=[...]'), or tune a model without it"
            )
        return lm


def begun(recipe: TuningRecipe) -> Beginning:
    """Load the model of a recipe. An adapter over it stays apart for way "lora", and is merged for the others.

    Raises:
        CheckpointError, ConfigError: it cannot be loaded, or the adapter cannot be tuned further or merged.
    """
    model, given = (str(tuned_folder(one) or one) if one else one for one in (recipe.model, recipe.adapter))
    base, over = over_base(model, weighted(given or None))
    lm = load(base, dtype="float32", weights=recipe.weights, adapter=[(one.folder, one.weight) for one in over])
    adapter = _further(recipe, over, str(base)) if over and recipe.tuning.way == "lora" else None
    if adapter is None and over:
        if quantised(lm.model):
            raise ConfigError(
                f"{_names(over)} is over the quantised weights of {base}, into which no adapter can be merged: use way "
                "'lora', which tunes the adapter further, or dequantise them (--set weights=float)"
            )
        lm.merge()
    lm = replace(lm, adapters=())
    if not quantised(lm.model):
        check_weights(lm.model)
        lm = trained_from(base, lm)
    return Beginning(lm, str(base), over, adapter)


def _further(recipe: TuningRecipe, over: tuple[Weighted, ...], base: str) -> Adapter:
    """The adapter that is tuned further."""
    merged = f"merge first (handscroll export {base} OUT {' '.join(f'--adapter {one}' for one in over)}), and tune that"
    one, *others = over
    if others or one.weight != 1.0:
        raise ConfigError(f"{_names(over)}: one adapter is tuned further, and whole. Otherwise {merged}")
    adapter = read_adapter(one.folder)
    if recipe.task.against_before:
        path = adapter.folder / TASK
        if not path.exists() or read_json(path).get("name") != recipe.task.name or adapter.whole:
            raise ConfigError(
                f"the task '{recipe.task.name}' measures a model against the one before, which is the model without "
                f"its adapter, and {adapter.folder} was tuned otherwise: {merged}"
            )
    return adapter


def _names(over: tuple[Weighted, ...]) -> str:
    return " and ".join(map(str, over))


def _said(head: HeadSpec | None) -> str:
    """What a head is for, in words."""
    if head is None:
        return "tokens"
    return f"{head.name} ({head.problem} of {list(head.labels)})" if head.labels else head.name
