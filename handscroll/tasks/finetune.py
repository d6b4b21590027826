"""Tunes a model for a task: reads the tables, plans, trains, scores what was held out, and saves the result."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.text import Text

from handscroll.base.errors import ConfigError
from handscroll.base.runs import write_file
from handscroll.base.workload import MEMORY, Workload
from handscroll.data.table.write import plain
from handscroll.lm import LM, load
from handscroll.metrics.scores import Measured
from handscroll.models.adapters import write_task
from handscroll.nn.quantised import kept_bytes, quantised
from handscroll.tasks.begin import Beginning, begun
from handscroll.tasks.card import card
from handscroll.tasks.examples import TrainingRows, encode, read_parts, to_score
from handscroll.tasks.exposing import exposed
from handscroll.tasks.made import Made
from handscroll.tasks.recipe import TuningRecipe
from handscroll.tasks.report import TUNED, Scores, write_page
from handscroll.tasks.task import Example, Part, Prediction, Task
from handscroll.tasks.ways import counted, prepare
from handscroll.train.loop import Callbacks, OnPulse, OnRecord, train
from handscroll.train.lora import LoRA, merge_lora, save_adapter, stands_apart
from handscroll.train.optim import Optimizer
from handscroll.train.planned import Planned, planned
from handscroll.train.regularise import Regularise
from handscroll.train.run import Loop, Progress, Run, check_recipe, write_recipe
from handscroll.train.schedule import Schedule
from handscroll.train.start import versions

SHORTEST = 512  # tokens of a row, where no example is longer
# Settings that change no result, so that a run goes on under other ones.
ASIDE = {
    "threads": True,
    "adapter": True,
    "tuning": {"memory", "force", "exposure", "checkpoints"},
    "data": {"licence"},
}
SCORED = ("valid", "test", "second")


@dataclass(frozen=True)
class Options:
    """Options of a run that do not change its result. `show` receives what a person reads before and after it."""

    on_record: OnRecord | None = None
    on_pulse: OnPulse | None = None
    on_done: Callable[[str, int, int], None] = lambda what, total, done: None
    show: Callable[[str | Text], None] = lambda text: None
    on_steps: Callable[[int], None] = lambda steps: None
    only_plan: bool = False
    only_show: int = 0  # print so many examples with what is trained, and stop

    @property
    def writes(self) -> bool:
        """Whether the start may write into the run folder; a plan and a look do not."""
        return not (self.only_plan or self.only_show)


@dataclass(frozen=True)
class Tuned:
    """What came of a run: the model, the task, the progress, the scores by table and metric, and those of simple
    baselines on the same examples by table, baseline and metric."""

    lm: LM
    task: Task
    progress: Progress | None
    scores: Mapping[str, Mapping[str, Measured]]
    folder: Path
    finished: bool = False  # trained to its end and saved
    baselines: Mapping[str, Scores] = field(default_factory=dict)


def finetune(recipe: TuningRecipe, folder: str | Path, options: Options = Options()) -> Tuned:
    """Tune a model as the recipe says, in the run folder `folder` (new, or one to go on with).

    The folder holds the settings, the plan, the records, checkpoints, the predictions and scores of what was held out,
    and the result: `adapter/` in PEFT's form or `model/`, an ordinary Hugging Face folder.

    Raises:
        DataError: the data does not fit the task; nothing was trained. CapacityError: the plan does not fit.
        ConfigError: the model cannot do the task, or a setting is impossible.
    """
    folder = Path(folder)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.tuning.seed)
    if options.writes:
        given = {"tuning": _settings(recipe, settled=False), "versions": versions()}
        check_recipe(folder, given, whole=False)  # before a model makes rows
    parts = _read(recipe, folder, options)
    beginning = begun(recipe)
    lm = beginning.lm
    task = recipe.task.settled(parts["train"].examples, lm)
    for part in parts.values():
        task.checked(part.examples)
    lm = beginning.ready(task, recipe.tuning.seed)
    if recipe.tuning.exposure:
        lm.model.spec.require("the exposure of training answers", one_text=True, forward=True, head=True)
    most = recipe.tuning.length or task.room(lm)
    if most > task.room(lm):
        raise ConfigError(
            f"rows of {most:,} tokens exceed the model's context of {lm.context:,}: give a shorter length"
        )
    if options.only_show:
        for example in parts["train"].examples[: options.only_show]:
            for text in task.shown(lm, example):
                options.show(text)
        return Tuned(lm, task, None, {}, folder)
    parts |= _to_score(recipe, options, task, lm, parts)
    encoded = {
        name: encode(task, lm, parts[name].examples, most, recipe.data.too_long)
        for name in ("train", "valid")
        if name in parts
    }
    options.show(f"rows: {encoded['train'].account}")
    if words := task.in_words(encoded["train"].rows):
        options.show(words)
    lora = prepare(lm, recipe.tuning, beginning.adapter)
    if began := beginning.in_words():
        options.show(f"adapter {began}")
    trained, numbers = weights = counted(lm.model)
    beside = ", beside quantised weights that stay as they are" if quantised(lm.model) else ""
    rate = f"{recipe.tuning.rate(lm.model.config.width):.2g}"
    options.show(
        f"trained: {trained:,} of {numbers:,} numbers (way '{recipe.tuning.way}', learning rate {rate}){beside}"
    )
    return _run(recipe, folder, options, _Ready(lm, task, parts, encoded, weights, beginning, lora))


def _read(recipe: TuningRecipe, folder: Path, options: Options) -> dict[str, Part]:
    """The examples of all tables; what was read is told."""
    made = Made(folder, fresh=options.writes, tell=options.show)
    parts = read_parts(recipe.task, recipe.data, recipe.tuning.seed, options.on_done, made)
    for name, part in parts.items():
        options.show(f"{name}: {part.account}")
        for note in part.notes:
            options.show(f"split: {note}")
        if part.leakage:
            options.show(part.leakage)
    options.show(f"columns: {parts['train'].columns}")
    return parts


def _settings(recipe: TuningRecipe, settled: bool = True) -> dict[str, Any]:
    """The settings that decide what comes of a run; with `settled` false without what the model and data settle."""
    found = recipe.model_dump(mode="json", exclude=ASIDE)
    if not settled:
        del found["task"], found["tuning"]["lora"], found["tuning"]["lr"]
    return found


def _to_score(recipe: TuningRecipe, options: Options, task: Task, lm: LM, parts: Mapping[str, Part]) -> dict[str, Part]:
    """The parts that will be scored, without what is too long for it."""
    found = {name: to_score(task, lm, name, parts[name], recipe.data.too_long) for name in SCORED if name in parts}
    for name, part in found.items():
        if len(part.examples) < len(parts[name].examples):
            options.show(f"{name}: {part.account}")
    return found


@dataclass(frozen=True)
class _Ready:
    """What a run begins with."""

    lm: LM
    task: Task
    parts: Mapping[str, Part]
    encoded: Mapping[str, TrainingRows]
    weights: tuple[int, int]  # numbers that are trained, and all
    beginning: Beginning
    lora: LoRA | None  # of way "lora"


def _run(recipe: TuningRecipe, folder: Path, options: Options, ready: _Ready) -> Tuned:
    tuning, task, lm, rows = recipe.tuning, ready.task, ready.lm, ready.encoded["train"]
    length = tuning.length or min(task.room(lm), max(SHORTEST, rows.longest))
    there = len(rows.rows) // task.rows_each
    batch = min(tuning.batch, there)
    if batch < tuning.batch:
        options.show(f"batch: {batch:,} in place of {tuning.batch:,}, since there are no more training rows")
    each = max(1, round(there / batch))  # updates of an epoch
    steps = tuning.steps or max(1, round(tuning.epochs * there / batch))
    stream = task.updates(rows.rows, batch, length, tuning.seed, rows.fingerprint)
    workload = _workload(recipe, ready, length, steps, batch)
    resolved = _settings(recipe) | {"task": task.model_dump(mode="json")}
    if ready.lora is not None:
        resolved["tuning"]["lora"] = ready.lora.model_dump(mode="json")
    resolved["tuning"]["lr"] = rate = tuning.rate(lm.model.config.width)
    told: dict[str, Any] = {"tuning": resolved, "versions": versions()}
    told |= ready.beginning.record()
    if "valid" in ready.encoded:  # they choose the weights that are kept; the training rows are known by their stream
        told["held-out rows"] = ready.encoded["valid"].fingerprint
    if begins := not options.only_plan:
        check_recipe(folder, told)  # before the plan of this run replaces that of another one
    plan = planned(tuning.memory, [workload], folder, force=tuning.force, tell=options.show, keep=begins)
    options.show(str(plan) if tuning.way in ("full", "lora") else f"{plan}, at most: only a part is trained")
    if not begins:
        return Tuned(lm, task, None, {}, folder)
    write_recipe(folder, told)
    settings: dict[str, Any] = {"steps": steps, "precision": tuning.precision, "seed": tuning.seed}
    settings |= {"save_every": max(1, min(200, each)), "keep": tuning.checkpoints}
    if "valid" in ready.encoded:
        every = max(1, min(steps, each // tuning.validations))
        settings["evaluate_every"] = every
        if tuning.result == "best":
            settings["patience"] = tuning.patience or steps + 1  # with a patience a run keeps its best weights
    run = Run(
        folder,
        lm.model,
        Optimizer(lr=rate, weight_decay=tuning.weight_decay, layer_decay=tuning.layer_decay),
        Schedule(name="cosine", warmup=round(tuning.warmup * steps), final=0.0),
        Loop.parse(settings, "tuning"),
        plan.memory,
        Regularise(dropout=tuning.dropout),
    )
    validate = None
    if "valid" in ready.encoded:
        validate = task.validator(lm.model, ready.encoded["valid"].rows, length, run)
    task.begin(run, rows.rows)
    options.on_steps(steps)
    progress = train(run, stream, task.objective(lm.model), Callbacks(validate, options.on_record, options.on_pulse))
    if not progress.ended(steps):
        return Tuned(lm, task, progress, {}, folder)
    plan.compare()
    return _finished(recipe, folder, options, ready, plan, progress)


def _finished(
    recipe: TuningRecipe, folder: Path, options: Options, ready: _Ready, plan: Planned, progress: Progress
) -> Tuned:
    """Save the model, then score it on what was held out, and write what a person reads."""
    task = ready.task.finished(ready.lm)
    settings = json.dumps(task.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
    lm = replace(ready.lm, task=settings.encode())
    ready = replace(ready, lm=lm, task=task)
    apart = not recipe.tuning.merge and (stands_apart(lm.model) or quantised(lm.model))
    lora = ready.lora if apart else None
    saved = folder / ("model" if lora is None else "adapter")
    if lora is not None:
        save_adapter(lm.model, lora, saved, str(ready.beginning.path.resolve()))
        write_task(lm.task, saved)
    else:
        if recipe.tuning.way == "lora":
            merge_lora(lm.model)
        lm.save(saved)
    if lm.stored not in (None, lm.model.dtype):  # the scores are those of the numbers that were written
        lm = task.ready(load(saved), recipe.tuning.seed)
    scored: dict[str, dict[str, Mapping[str, Measured]]] = {}
    told: tuple[Sequence[Example], Sequence[Prediction]] = ((), ())
    for name in SCORED:
        if name in ready.parts:
            examples = ready.parts[name].examples
            found = task.predict(lm, examples, partial(options.on_done, f"scoring {name}", len(examples)))
            write_predictions(folder / f"{name}.predictions.jsonl", task, examples, found)
            plain = task.baselines(ready.parts["train"].examples, examples)
            systems = {TUNED: found, **plain}
            scored[name] = {system: task.score(examples, said) for system, said in systems.items()}
            told = (examples, found) if name != "second" else told
    scores = {name: systems[TUNED] for name, systems in scored.items()}
    record = _record(recipe, ready, plan, progress, scored)
    if recipe.tuning.exposure:
        answers = ready.encoded["train"].rows[:: task.rows_each]
        record["exposure"] = exposed(lm, answers, recipe.tuning.exposure, recipe.tuning.seed)
    write_page(folder / "report.html", record, task, scored, told)
    write_file(folder / "result.json", (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())
    write_file(saved / "README.md", card(record).encode())
    plain = {name: {one: by[one] for one in by if one != TUNED} for name, by in scored.items()}
    return Tuned(replace(lm, source=str(saved)), task, progress, scores, folder, finished=True, baselines=plain)


def _record(
    recipe: TuningRecipe,
    ready: _Ready,
    plan: Planned,
    progress: Progress,
    scored: Mapping[str, Scores],
) -> dict[str, Any]:
    """Everything that the card and the report are made of, as plain JSON."""
    trained, numbers = ready.weights
    best = {"loss": progress.best_loss, "step": progress.best_step}
    return {
        "recipe": recipe.model_dump(mode="json") | {"task": ready.task.model_dump(mode="json")},
        "versions": versions(),
        "model": {
            "source": ready.beginning.base,
            "adapter": ready.beginning.in_words(),
            "family": ready.lm.model.config.family,
            "context": ready.lm.context,
        },
        "weights": {"trained": trained, "all": numbers},
        "reach": ready.task.reach(ready.lm.context),
        "tables": {
            name: part.account.record() | {"columns": part.columns, "split": [*part.notes], "leakage": part.leakage}
            for name, part in ready.parts.items()
        },
        "rows": {
            name: encoded.account.as_record() | {"words": ready.task.in_words(encoded.rows)}
            for name, encoded in ready.encoded.items()
        },
        "plan": plan.plan.record(),
        "steps": progress.step,
        "tokens": progress.tokens,
        "best": best if recipe.tuning.result == "best" else {"loss": None, "step": 0},
        "scores": {
            name: {system: {metric: vars(one) for metric, one in by.items()} for system, by in systems.items()}
            for name, systems in scored.items()
        },
    }


def lines_of(task: Task, examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[str]:
    """One JSON line an example: place, fields, truth, and what the model says.

    A column of the data that has one of these names is called `row.` and its name.
    """
    lines = []
    for example, prediction in zip(examples, predictions, strict=True):
        told = {"reference": task.truth(example), "prediction": prediction.output, **prediction.more}
        values = {f"row.{name}" if name in ("place", *told) else name: one for name, one in example.values.items()}
        row = {"place": example.place, **values, **told}
        lines.append(json.dumps(row, ensure_ascii=False, default=plain))
    return lines


def write_predictions(path: Path, task: Task, examples: Sequence[Example], predictions: Sequence[Prediction]) -> None:
    """A file of `lines_of`, whole or not at all."""
    write_file(path, ("\n".join(lines_of(task, examples, predictions)) + "\n").encode())


def _workload(recipe: TuningRecipe, ready: _Ready, length: int, steps: int, batch: int) -> Workload:
    """The run for the planner: a typical update is the mean number of packed rows of the mean length."""
    tuning, rows = recipe.tuning, ready.encoded["train"]
    sizes = [len(row.tokens) for row in rows.rows]
    tokens = sum(sizes) / len(sizes) * batch * ready.task.rows_each
    longest = min(length, max(max(sizes), math.ceil(tokens)))
    changes: dict[str, Any] = {}
    if (lora := ready.lora) is not None:
        changes = {"lora": lora.rank, "lora_targets": len(lora.targets), "tables": lora.tables, "frozen": lora.frozen}
    return Workload.parse(
        {
            "kind": "train",
            "spec": ready.lm.model.spec,
            "length": longest,
            "micro": max(1, round(tokens / longest)),
            "steps": steps,
            "packed": True,
            "targets": sum(row.counted for row in rows.rows) / sum(sizes),
            "precision": tuning.precision,
            "dropout": bool(tuning.dropout),
            "data_bytes": 2 * sum(row.tokens.nbytes for row in rows.rows),
            "threads": recipe.threads,
            "stored": kept_bytes(ready.lm.model) if quantised(ready.lm.model) else 0,
            "best": "valid" in ready.encoded and tuning.result == "best",
            "keep": tuning.checkpoints,
            **changes,
            **{name: getattr(tuning.memory, name) for name in MEMORY},
        },
        "plan",
    )
