"""A run: a model in training, its optimisers, its settings, and everything that its checkpoints hold."""

import json
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from handscroll.base.config import Config
from handscroll.base.errors import CheckpointError, ConfigError
from handscroll.base.runs import latest_checkpoint, remove_after, saved_steps, verify_folder, write_file
from handscroll.models.model import Decoder
from handscroll.models.weights import read_json
from handscroll.nn.adapted import Update
from handscroll.nn.noise import Noise
from handscroll.nn.quantised import quantised
from handscroll.train.checkpoint import (
    as_saved,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    restore_rng,
    rng_state,
    save_checkpoint,
)
from handscroll.train.curriculum import Curriculum
from handscroll.train.optim import Optimizer
from handscroll.train.parallel.shard import assign, gathered, like
from handscroll.train.parallel.world import ALONE, World, check_copies
from handscroll.train.regularise import Regularise, scalar
from handscroll.train.schedule import Schedule
from handscroll.train.spike import Spike, SpikeGuard
from handscroll.train.step import Memory, Step, build_strategy
from handscroll.train.strategies.recurrent import Recurrent

RECIPE = "recipe.json"  # the resolved recipe of a run that has begun
SETTINGS = ("recipe", "tuning", "tune")  # the parts of it that hold the user's settings
SHORT = 80  # most characters of a setting's two values that an error shows
BEST = "best"  # folder of the best validated weights, inside the run folder
_log = logging.getLogger("handscroll.runs")


class Loop(Config):
    """Length and precision of a run, and how often it saves and validates. Steps are updates."""

    steps: int = Field(gt=0)
    precision: Literal["float32", "bfloat16"] = Field(default="float32", description="bfloat16 runs through autocast")
    save_every: int = Field(default=200, gt=0)
    keep: int = Field(default=2, ge=2, description="checkpoints kept")
    evaluate_every: int = Field(default=0, ge=0, description="0: no validation")
    patience: int = Field(
        default=0, ge=0, description="validations without a better loss before stopping; 0: never stop"
    )
    average: float = Field(default=0.0, ge=0, lt=1, description="decay of the moving average of weights; 0: none")
    seed: int = Field(default=0, ge=0, description="seed of dropout")

    @model_validator(mode="after")
    def _counted(self):
        if self.patience and not self.evaluate_every:
            raise ValueError(
                f"patience {self.patience} counts validations, and evaluate_every 0 makes none: give evaluate_every, "
                "or leave patience out"
            )
        return self


@dataclass
class Progress:
    """The progress of a run. It is saved in every checkpoint."""

    step: int = 0
    tokens: int = 0
    skipped: int = 0  # planned updates that were skipped because stages ended early

    best_loss: float | None = None
    best_step: int = 0
    bad: int = 0
    stopped: str = ""
    recent: list[list[float]] = field(default_factory=list)  # recent losses, by which the curriculum ends a stage
    # The record of the last update, if a stop came while its validation ran: the next start validates and writes it.
    # It is kept as pairs of name and value, since a checkpoint sorts names.
    unwritten: list[list[Any]] = field(default_factory=list)

    @property
    def planned(self) -> int:
        """The number (from 0) of the next update in the plan. The schedule and the stages use it."""
        return self.step + self.skipped

    def ended(self, steps: int) -> bool:
        """Whether a run of `steps` planned updates is over; if not, it was stopped, and the same command goes on."""
        return not self.unwritten and (self.planned >= steps or bool(self.stopped))


@dataclass
class Run:
    """A model in training and everything its checkpoint holds."""

    folder: Path
    model: Decoder
    optimizer: Optimizer
    schedule: Schedule
    loop: Loop
    memory: Memory = field(default_factory=lambda: Memory(strategy="plain"))
    regularise: Regularise = field(default_factory=Regularise)
    spike: Spike = field(default_factory=Spike)
    world: World = ALONE
    curriculum: Curriculum | None = None
    progress: Progress = field(default_factory=Progress)
    optimizers: dict[str, torch.optim.Optimizer] = field(init=False)
    average: dict[str, Tensor] = field(default_factory=dict)
    step: Step = field(init=False)
    guard: SpikeGuard = field(init=False)

    def __post_init__(self):
        self._check_floats()
        self.optimizers = self.optimizer.build(self.model)
        strategy = build_strategy(self.memory, self.model, self.folder, self.world)
        autocast = torch.bfloat16 if self.loop.precision == "bfloat16" else None
        self.step = Step(strategy, self.world, autocast)
        self.guard = SpikeGuard(self.spike)
        if self.loop.average:
            self.average = {name: p.detach().clone() for name, p in self._trainable()}

    def _check_floats(self) -> None:
        updates = [one for one in self.model.modules() if isinstance(one, Update) and one.b.requires_grad]
        if quantised(self.model) and not updates:
            raise ConfigError(
                "the weights of this model are quantised and get no gradient: load it with weights='float' to train "
                "all of them, or train an adapter over them (handscroll.train.lora.add_lora)"
            )

    def _trainable(self):
        return trainable(self.model)

    def remembered(self) -> dict[str, Tensor]:
        """The segment memory of the recurrent strategy. It is empty for exact strategies."""
        return self.step.strategy.state() if isinstance(self.step.strategy, Recurrent) else {}

    def begin_stage(self) -> None:
        """Begin a new stage: the spike guard starts afresh, and keys with the old positions are forgotten."""
        self.guard = SpikeGuard(self.spike)
        if isinstance(self.step.strategy, Recurrent):
            self.step.strategy.forget()

    def noise(self) -> Noise | None:
        """The dropout noise of the next update. None: no dropout."""
        share = self.regularise.dropout
        return Noise(share, self.loop.seed, self.progress.step) if share else None

    def update(self, lr_factor: float) -> float:
        """Clip the gradient, step and average the weights. Returns the gradient norm before clipping."""
        parameters = [p for _, p in self._trainable()]
        norm = scalar(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
        if not math.isfinite(norm):
            return norm
        if self.optimizer.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.optimizer.clip, torch.tensor(norm))
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * lr_factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, parameter in self._trainable() if self.average else ():
                self.average[name].lerp_(parameter, 1 - self.loop.average)
        return norm

    def compare(self) -> None:
        """Compare what every rank has a copy of: weights, states of the optimisers, averaged weights.

        Raises:
            DataError: it is not the same everywhere.
        """
        if self.world.size > 1 and self.world.compare_every:
            states = [optimizer_tensors(optimizer)[0].values() for optimizer in self.optimizers.values()]
            weights = [parameter for _, parameter in self._trainable()]
            check_copies(self.world, chain(weights, *states, self.average.values()))

    def save(self, data: dict[str, Any], offset: int) -> None:
        """Write a crash-safe checkpoint of this step.

        It holds whole tensors for any number of ranks, and the first rank writes it.
        """
        tensors = {"model": gathered(dict(self._trainable()), self.world)}
        states: dict[str, Any] = {}
        for name, optimizer in self.optimizers.items():
            named, states[name] = optimizer_tensors(optimizer)
            tensors[name] = gathered(named, self.world)
        remembered = self.remembered()
        if remembered:
            tensors["memory"] = remembered
        if self.average:
            tensors["average"] = gathered(self.average, self.world)
        if not self.world.first:
            return
        state = {
            "progress": vars(self.progress) | {"recent": self._recent()},
            "optimizers": states,
            "data": data,
            "offset": offset,
            "rng": rng_state(),
            "spike": self.guard.state(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        save_checkpoint(self.folder, self.progress.step, tensors, state, keep=self.loop.keep)

    def _recent(self) -> list[list[float]]:
        return [] if self.curriculum is None else [list(one) for one in self.curriculum.recent]

    def restore(self) -> dict[str, Any] | None:
        """Load the newest valid checkpoint of the folder. Returns its state, or None if there is no checkpoint yet."""
        folder, state = latest_checkpoint(self.folder), None
        if folder is not None:
            tensors, state = load_checkpoint(folder)
            with as_saved(folder):
                self._take(folder, tensors, state)
        self._restore_best()
        return state

    def _restore_best(self) -> None:
        """Go back to the best weights of the restored step. Later ones are of updates that are made again."""
        if not self.loop.patience:
            return
        if self.world.first:
            remove_after(self.folder / BEST, self.progress.step)
        if self.progress.best_loss is None:
            return
        try:
            verify_folder(self.folder / BEST / f"step-{self.progress.best_step:06d}")
        except CheckpointError as error:
            _log.warning(
                "the best weights, of step %d, are damaged or missing; the next validated ones take their place: %s",
                self.progress.best_step,
                error,
            )
            self.progress.best_loss = None

    def _take(self, folder: Path, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        take_weights(self.model, folder, tensors["model"])
        for name, optimizer in self.optimizers.items():
            restore_optimizer(optimizer, tensors[name], state["optimizers"][name], place=like)
        parameters = dict(self._trainable())
        average = tensors.get("average", {})
        self.average = {name: like(parameters[name], value) for name, value in average.items()}
        self.progress = Progress(**state["progress"])
        if self.curriculum is not None:
            self.curriculum.enter(self.model, max(0, self.progress.planned - 1))
            self.curriculum.recent = [tuple(one) for one in self.progress.recent]
        if isinstance(self.step.strategy, Recurrent):
            self.step.strategy.restore(tensors.get("memory", {}), self.model.device)
        self.guard = SpikeGuard.from_state(self.spike, state.get("spike", []))
        restore_rng(_fitting(state["rng"], folder))


def trainable(model: Decoder) -> list[tuple[str, torch.nn.Parameter]]:
    """The parameters that get a gradient, with their names; a checkpoint holds these alone."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def take_weights(model: Decoder, folder: Path, tensors: dict[str, Tensor]) -> None:
    """Put the weights of the checkpoint in `folder` into the parameters that get a gradient.

    Raises:
        CheckpointError: one is missing or has another shape.
    """
    with torch.no_grad():
        for name, parameter in trainable(model):
            if name not in tensors or tensors[name].shape != parameter.shape:
                raise CheckpointError(f"{folder} is of another model: tensor '{name}' is missing or misshapen")
            assign(parameter, tensors[name])


def _fitting(rng: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Saved generators without those of CUDA, if this machine has another number of GPUs. No update draws from them."""
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    saved = len(rng.get("cuda", []))
    if saved in (0, devices):
        return rng
    _log.warning("%s has the random state of %d GPUs, this machine has %d: it is left out", folder, saved, devices)
    return {name: value for name, value in rng.items() if name != "cuda"}


@contextmanager
def averaged(run: Run):
    """Put the averaged weights in place of the current ones while the block runs."""
    if not run.average:
        yield
        return
    parameters = dict(run.model.named_parameters())
    current = {name: parameters[name].detach().clone() for name in run.average}
    _put(parameters, run.average)
    try:
        yield
    finally:
        _put(parameters, current)


@torch.no_grad()
def _put(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        parameters[name].copy_(value)


def save_best(run: Run) -> None:
    """Save the weights as the best ones, and keep those that were the best at each checkpoint of the run."""
    tensors = {"model": gathered(dict(run._trainable()), run.world)}
    if run.world.first:
        best = saved_steps(run.folder / BEST)
        spare = {max((one for one in best if one <= step), default=0) for step in saved_steps(run.folder)}
        save_checkpoint(run.folder / BEST, run.progress.step, tensors, {}, spare=spare)


def settle(run: Run) -> None:
    """Put the final weights of the run into the model: the best validated, the averaged or the last ones."""
    parameters = dict(run.model.named_parameters())
    chosen = run.average
    if run.loop.patience:
        run.world.agree(True)  # the first rank may still be writing
        best = latest_checkpoint(run.folder / BEST)
        chosen = chosen if best is None else load_checkpoint(best)[0]["model"]
    for name, value in chosen.items():
        assign(parameters[name], value)
    run.model.eval()


def _meant(resolved: dict[str, Any]) -> dict[str, Any]:
    """A resolved configuration without settings of its loop that do nothing: a run of an earlier version may have them,
    and they are refused now."""
    recipe = resolved.get("recipe")
    loop = recipe.get("loop") if isinstance(recipe, dict) else None
    if not (isinstance(recipe, dict) and isinstance(loop, dict)) or loop.get("evaluate_every"):
        return resolved
    kept = {name: value for name, value in loop.items() if name not in ("evaluate_every", "patience")}
    return resolved | {"recipe": recipe | {"loop": kept}}


def check_recipe(folder: Path, resolved: dict[str, Any], whole: bool = True) -> None:
    """Refuse to go on with a run that began with another resolved configuration, or other versions.

    With `whole` false only what `resolved` has is compared: what is known before a run has read its data.

    Raises:
        CheckpointError: they differ. The message says in what.
    """
    if not (folder / RECIPE).exists():
        return
    before, now = (_meant(found) for found in (read_json(folder / RECIPE), json.loads(json.dumps(resolved))))
    if any((part in before) != (part in now) for part in SETTINGS):
        raise CheckpointError(f"{folder} holds a run of another command: choose another run folder")
    before = before if whole else _among(before, now)
    changed: list[str] = []
    for part in sorted({*before, *now}):
        changed += _changed(before.get(part), now.get(part), "" if part in SETTINGS else part)
    if changed:
        raise CheckpointError(
            f"{folder} was started with another recipe (differs in: {'; '.join(changed)}); "
            "resume with the same one or choose another run folder"
        )


def _among(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """The settings of `before` that are in `now` too."""
    both = {name: (one, now[name]) for name, one in before.items() if name in now}
    return {
        name: _among(one, other) if isinstance(one, dict) and isinstance(other, dict) else one
        for name, (one, other) in both.items()
    }


def _changed(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """The settings that differ, as a recipe or `--set` names them, with their values where these are short."""
    old, new = ({} if one is None else one for one in (before, now))
    if isinstance(old, dict) and isinstance(new, dict) and (old or new):
        for key in sorted({*old, *new}):
            yield from _changed(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif before != now:
        both = f"{_told(before)}, now {_told(now)}"
        yield f"{name}: {both}" if len(both) <= SHORT else name


def _told(value: Any) -> str:
    """A setting as a person reads it."""
    if value is None:
        return "not set"
    return "empty" if value in ("", [], {}) else json.dumps(value, ensure_ascii=False)


def write_recipe(folder: Path, resolved: dict[str, Any]) -> None:
    """Save the resolved configuration and versions in the run folder. A later run with different ones is refused."""
    check_recipe(folder, resolved)
    if (folder / RECIPE).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(resolved, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
    write_file(folder / RECIPE, text.encode())
