"""A recipe: everything a training run is made of, read from TOML and resolved into a run folder."""

import hashlib
import json
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BeforeValidator, Field, SerializeAsAny, field_validator, model_validator

import handscroll
from handscroll.base.config import Config
from handscroll.base.errors import ConfigError, nearest
from handscroll.base.runs import write_file
from handscroll.data.batch import Batch, collate
from handscroll.data.row import Row
from handscroll.data.sources import TokenSource
from handscroll.data.stream import Chain, Listed, Mixture, Stream, Take
from handscroll.data.windows import SlidingWindows
from handscroll.lm import LM, load
from handscroll.models.induction import set_induction_heads
from handscroll.models.model import Decoder, Model
from handscroll.models.new import NEW, About, as_classifier, new_model
from handscroll.models.weights import check_device
from handscroll.nn.init import initialise
from handscroll.nn.noise import Noise
from handscroll.objectives.causal import NextToken
from handscroll.objectives.objective import Objective
from handscroll.objectives.task import Task, task_from
from handscroll.plan.workloads import recipe_workloads
from handscroll.text.readers import read
from handscroll.text.tokenizer import Tokenizer
from handscroll.text.training import TokenizerConfig, train_tokenizer
from handscroll.train.assemble import Updates
from handscroll.train.curriculum import Curriculum, Grow, NewPositions
from handscroll.train.ladder.certificate import certify, memory_needed
from handscroll.train.longest import check_positions
from handscroll.train.loop import Callbacks, OnPulse, OnRecord, train
from handscroll.train.lora import LoRA, add_lora, merge_lora, save_adapter, stands_apart
from handscroll.train.optim import Optimizer
from handscroll.train.parallel.shard import shard, unsharded
from handscroll.train.parallel.world import Parallel, World, join_world, same_everywhere
from handscroll.train.planned import afford, planned
from handscroll.train.regularise import Regularise
from handscroll.train.rows import Files, RowData, TextData
from handscroll.train.run import Loop, Progress, Run, write_recipe
from handscroll.train.schedule import Schedule
from handscroll.train.spike import Spike
from handscroll.train.step import Memory


class Stage(Config):
    """`steps` updates of `rows` rows of `length` tokens, `micro` rows at a time, drawn from `mix` by weight."""

    length: int = Field(ge=16)
    rows: int = Field(ge=1)
    micro: int | None = Field(default=None, ge=1)
    steps: int = Field(ge=1)
    mix: dict[str, float]
    positions: NewPositions | None = Field(default=None, description="what the rotary positions become here")
    grow: Grow | None = Field(default=None, description="end early once the loss by position is flat")

    @model_validator(mode="after")
    def _whole(self):
        if self.micro is not None and self.rows % self.micro:
            raise ValueError(f"rows {self.rows} is not a multiple of micro {self.micro}")
        return self


class ModelRecipe(Config):
    """A checkpoint to start from (`path`), or a `family` with its sizes and an initialisation."""

    path: str | None = None
    family: str | None = Field(default=None, description="of a new model (models/new.py)")
    initialise: Literal["normal", "xavier", "he", "mimetic"] = "normal"
    induction: bool = Field(default=False, description="set induction heads by hand (models/induction.py)")
    sizes: dict[str, Any] = Field(default_factory=dict)

    @field_validator("family")
    @classmethod
    def _known(cls, family: str | None) -> str | None:
        if family is not None and family not in NEW:
            raise ValueError(f"no new model of this family is made: {nearest(family, NEW)}")
        return family

    @model_validator(mode="after")
    def _one(self):
        if (self.path is None) == (self.family is None):
            raise ValueError("give either path (start from a checkpoint) or family with sizes (a new model)")
        return self


class TokenizerRecipe(Config):
    """A tokenizer to use (`path`), or settings to train one on the training text."""

    path: str | None = None
    train: TokenizerConfig | None = None


class Validation(Files):
    """Held-out text: `windows` windows of `length` tokens, the same ones every time."""

    length: int = Field(ge=16)
    windows: int = Field(default=8, ge=1)


class Recipe(Config):
    """A training run. `text` is the training text, `data` names kinds of rows made of it, `stages` mix them.

    Labelled documents are read from files of their own; where all rows are such, there may be no `text`.
    """

    seed: int = Field(default=0, ge=0)
    threads: int = Field(default=0, ge=0, description="0: as many as there are processors")
    device: Literal["cpu", "cuda"] = "cpu"
    text: Files | None = None
    model: ModelRecipe
    objective: Annotated[SerializeAsAny[Task], BeforeValidator(task_from)] = NextToken()
    tokenizer: TokenizerRecipe = TokenizerRecipe()
    data: dict[str, RowData]
    stages: tuple[Stage, ...] = Field(min_length=1)
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    loop: dict[str, Any] = Field(default_factory=dict)
    memory: Memory = Memory()
    parallel: Parallel = Parallel()
    lora: LoRA | None = None
    regularise: Regularise = Regularise()
    spike: Spike = Spike()
    validation: Validation | None = None

    @model_validator(mode="after")
    def _names(self):
        for stage in self.stages:
            for name in stage.mix:
                if name not in self.data:
                    raise ValueError(f"stages: mix names '{name}': {nearest(name, self.data)}")
            in_order = [name for name in stage.mix if getattr(self.data[name], "order", "") == "reading"]
            if in_order and len(stage.mix) > 1:
                raise ValueError(f"stages: '{in_order[0]}' is read in order; rows mixed in would tear its lanes apart")
        self.objective.check(self.mixed, self.validation is not None)
        made = [name for name, data in self.mixed.items() if data.kind != "labelled"]
        if self.text is None and (made or self.tokenizer.train is not None):
            what = f"rows '{made[0]}' are" if made else "the tokenizer is"
            raise ValueError(f"text: {what} made of it; name its files")
        if self.lora is not None and self.lora.frozen == "bfloat16" and self.loop.get("precision") != "bfloat16":
            raise ValueError("lora.frozen = 'bfloat16' needs loop.precision = 'bfloat16'")
        if self.lora is not None and self.lora.frozen == "bfloat16" and self.model.path is None:
            raise ValueError(
                "lora.frozen = 'bfloat16' is for a checkpoint (model.path); a new model has nothing frozen"
            )
        idle = [name for name in ("evaluate_every", "patience") if self.loop.get(name)]
        if self.validation is None and idle:
            raise ValueError(f"loop.{idle[0]} is of a validation: give [validation] files and length, or leave it out")
        if self.loop.get("steps") not in (None, self.steps):
            raise ValueError(f"loop.steps {self.loop['steps']} contradicts the stages' {self.steps}; leave it out")
        return self

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    @property
    def mixed(self) -> dict[str, Any]:
        """The kinds of rows that its stages use."""
        return {name: self.data[name] for stage in self.stages for name in stage.mix}

    def source(self, tokenizer: Tokenizer) -> TokenSource:
        """The training text as tokens; a single one where none is asked for."""
        return (
            TokenSource([np.zeros(1, dtype=np.int32)], ["no text"])
            if self.text is None
            else self.text.source(tokenizer)
        )

    def learned(self, model: Model, by_position: bool = False) -> Objective:
        """The loss that `model` is trained by; refuses a model that cannot be."""
        return self.objective.objective(model, self.mixed, self.regularise.label_smoothing, by_position)

    def curriculum(self) -> Curriculum:
        stages = self.stages
        return Curriculum(
            lengths=[stage.length for stage in stages],
            steps=[stage.steps for stage in stages],
            positions=[stage.positions for stage in stages],
            grow=[stage.grow for stage in stages],
        )

    def loop_settings(self) -> Loop:
        return Loop.parse({"seed": self.seed, **self.loop, "steps": self.steps}, "recipe: loop")


def updates(recipe: Recipe, text: TokenSource, tokenizer: Tokenizer, model: Model) -> Chain[list[Batch]]:
    """The whole curriculum as one stream of updates; every stage and kind of row has a seed of its own."""
    chain = []
    for number, stage in enumerate(recipe.stages):
        names = sorted(stage.mix)
        seeds = [recipe.seed * 10_007 + number * 101 + at for at in range(len(names) + 2)]
        streams = [
            _rows(recipe.data[name], text, tokenizer, stage, seed) for name, seed in zip(names, seeds, strict=False)
        ]
        rows = Mixture(streams, [stage.mix[name] for name in names], seeds[-2]) if len(streams) > 1 else streams[0]
        rows = recipe.objective.rows(rows, stage.length, seeds[-1], model, tokenizer)
        chain.append(Take(Updates(rows, stage.rows, stage.micro or stage.rows), stage.steps))
    return Chain(chain)


def _rows(data: RowData, text: TokenSource, tokenizer: Tokenizer, stage: Stage, seed: int) -> Stream[Row]:
    if isinstance(data, TextData) and data.order == "reading":
        return data.lanes(text, stage.length, seed, stage.rows)
    return data.stream(text, tokenizer, stage.length, seed)


@dataclass(frozen=True)
class Ways:
    """How a recipe is run, which is no part of the recipe. `show` gets what a person should read before the run."""

    certify: bool = False
    force: bool = False
    on_record: OnRecord | None = None
    on_pulse: OnPulse | None = None
    show: Callable[[str], None] = lambda text: None


def run_recipe(recipe: Recipe, folder: Path, ways: Ways = Ways()) -> tuple[LM, Progress]:
    """Train by the recipe in `folder` (new, or one to resume) and save the result to `folder/model`.

    Under torchrun every rank calls this with the same arguments; the first one writes.

    Raises:
        ConfigError, DataError, CheckpointError: as the parts do; nothing is half-written.
    """
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    check_device(recipe.device)
    torch.manual_seed(recipe.seed)
    world = join_world(recipe.parallel, recipe.device)
    made = _run(recipe, folder, world, ways)
    world.close()  # not after an error: the other ranks may never come to say goodbye, and torchrun ends them
    return made


def _run(recipe: Recipe, folder: Path, world: World, ways: Ways) -> tuple[LM, Progress]:
    tokenizer = _tokenizer(recipe, folder, world)
    text = recipe.source(tokenizer)
    model = build_model(recipe, tokenizer)
    objective = recipe.learned(model, by_position=True)
    _check_source(recipe, model, world)
    check_positions(recipe, model.config, int(text.lengths.max()))
    stream = updates(recipe, text, tokenizer, model)
    # How the work is done may change when a run goes on elsewhere; what is done may not.
    what = recipe.model_dump(mode="json", exclude={"memory", "parallel", "device"})
    if recipe.memory.rung == "recurrent":  # but this rung is no exact one: its settings are part of what is done
        what["memory"] = recipe.memory.model_dump(mode="json", include={"rung", "chunk", "remembered"})
    resolved = {"recipe": what, "versions": versions(), "text": text.fingerprint}
    if world.first:
        write_recipe(folder, resolved | {"threads": torch.get_num_threads()})
    same_everywhere(world, "the recipe, text or version", _digest(resolved))
    workloads = recipe_workloads(recipe, model.config, sum(document.nbytes for document in text.tokens))
    plan = planned(recipe.memory, workloads, folder, world, ways.force)
    memory = plan.memory
    if world.first:
        ways.show(str(plan))
    if recipe.lora is not None:
        add_lora(model, recipe.lora, recipe.seed)
    if ways.certify and world.first:
        _certify(recipe, memory, model, stream, ways, folder)
    if world.size > 1 and recipe.parallel.shard:
        shard(model, world)
    run = Run(
        folder,
        model,
        recipe.optimizer,
        recipe.schedule,
        recipe.loop_settings(),
        memory,
        recipe.regularise,
        recipe.spike,
        world,
        recipe.curriculum(),
    )
    validate = None
    if recipe.validation is not None:
        validate = validator(recipe.validation, tokenizer, model, recipe.objective)
    callbacks = Callbacks(validate, ways.on_record if world.first else None, ways.on_pulse if world.first else None)
    progress = train(run, stream, objective, callbacks)
    model = unsharded(model, world, lambda fresh: recipe.lora and add_lora(fresh, recipe.lora, recipe.seed))
    if recipe.lora is not None and world.first:
        if stands_apart(model):
            save_adapter(model, recipe.lora, folder / "adapter", str(recipe.model.path))
        merge_lora(model)
    lm = LM(model, tokenizer, str(folder / "model"))
    if world.first:
        plan.compare()
    if world.first and (progress.planned >= recipe.steps or progress.stopped):
        lm.save(folder / "model")
    return lm, progress


def _certify(recipe: Recipe, memory: Memory, model: Decoder, stream: Chain, ways: Ways, folder: Path) -> None:
    """Hold the rung to the plain step on a row of the run's longest stage; the result is shown and kept."""
    longest = max(range(len(recipe.stages)), key=lambda stage: recipe.stages[stage].length)
    (first, *_), _ = next(stream.resume(stream.beginning(longest)))
    noise = Noise(recipe.regularise.dropout, recipe.seed, 0) if recipe.regularise.dropout else None
    objective = recipe.learned(model)
    if not ways.force:
        afford(memory_needed(model, memory), "the gradient certificate", "leave --certify out, or use --force")
    certificate = certify(model, memory, first, objective, folder, noise)
    write_file(folder / "certificate.json", (json.dumps(certificate.as_record(), indent=2) + "\n").encode())
    ways.show(str(certificate))


def _digest(value: Any) -> int:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def build_model(recipe: Recipe, tokenizer: Tokenizer) -> Decoder:
    """A new model of the recipe's family and sizes, or the checkpoint it starts from, in float32."""
    labels = recipe.objective.labels(recipe.mixed)
    if recipe.model.path is not None:
        loaded = load(recipe.model.path, dtype="float32", weights="float").model
        if labels:
            seeded = torch.Generator().manual_seed(recipe.seed)
            loaded = as_classifier(loaded, labels, recipe.model.initialise, seeded)
        return loaded
    about = About(tokenizer, max(stage.length for stage in recipe.stages), labels)
    model = new_model(str(recipe.model.family), recipe.model.sizes, about)
    generator = torch.Generator().manual_seed(recipe.seed)
    initialise(model, recipe.model.initialise, model.config.layers, generator)
    if recipe.model.induction:
        set_induction_heads(model, generator)
    return model.to(recipe.device)


def validator(settings: Validation, tokenizer: Tokenizer, model: Model, task: Task) -> Callable[[Model], float]:
    """Mean loss on fixed windows of held-out text, spread evenly over it; made into the task's rows once for all."""
    windows = [row for row, _ in SlidingWindows(settings.source(tokenizer), settings.length, tails="drop")]
    step = max(1, len(windows) // settings.windows)
    rows = task.rows(Listed(windows[::step][: settings.windows]), settings.length, 0, model, tokenizer)
    batches, objective = [collate([row]) for row, _ in rows], task.objective(model)

    @torch.no_grad()
    def validate(model: Model) -> float:
        total, count = 0.0, 0
        for one in batches:
            batch = one.to(model.device)
            marks, here = batch.marks(), model
            if batch.source is not None:
                here = model.under(model.encode(batch.source.tokens, batch.source.marks()))
            mask = objective.mask(here, marks)
            hidden = here.hidden(here.embed(batch.tokens, marks), marks, mask, length=settings.length)
            loss = objective.loss(model, hidden, batch)
            total, count = total + float(loss.total), count + loss.count
        return total / count

    return validate


def _check_source(recipe: Recipe, model: Decoder, world: World) -> None:
    """Refuse what an encoder-decoder cannot do."""
    if model.spec.encoder and world.size > 1 and recipe.parallel.shard:
        raise ConfigError(f"parallel.shard is for decoders, not for family '{model.config.family}': leave it out")


def _tokenizer(recipe: Recipe, folder: Path, world: World) -> Tokenizer:
    """The named tokenizer, the checkpoint's, or one trained once and kept in the run folder."""
    settings = recipe.tokenizer
    if settings.path is not None:
        return Tokenizer.load(settings.path)
    if settings.train is None:
        if recipe.model.path is None:
            raise ConfigError("recipe: tokenizer needs a path or settings to train one, since the model is new")
        return Tokenizer.load(recipe.model.path)
    kept = folder / "tokenizer"
    if world.first and not (kept / "tokenizer.json").exists():
        assert recipe.text is not None, "the recipe's own check"
        documents = (document.text for document in read(recipe.text.paths()))
        train_tokenizer(documents, settings.train).save(kept)
    world.agree(True)  # the others wait until it is there
    return Tokenizer.load(kept)


def versions() -> dict[str, str]:
    """What the numbers of a run depend on besides the recipe."""
    return {"handscroll": handscroll.__version__, "torch": torch.__version__, "python": platform.python_version()}
