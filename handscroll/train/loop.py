"""The one training loop: takes batches and an objective, keeps a run folder, resumes exactly.

What is written to `records.jsonl` is deterministic: an interrupted and resumed run leaves the same bytes as
an undisturbed one with the same seed and number of threads. The clock goes to `timing.jsonl`.
"""

import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from handscroll.base.config import Config
from handscroll.base.errors import CheckpointError, DataError
from handscroll.base.records import RecordWriter
from handscroll.base.runs import RunLock, latest_checkpoint
from handscroll.data.batch import Batch
from handscroll.data.stream import Stream
from handscroll.models.model import Model
from handscroll.nn.noise import Noise
from handscroll.objectives.objective import Objective
from handscroll.train.checkpoint import (
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    restore_rng,
    rng_state,
    save_checkpoint,
)
from handscroll.train.optim import Optimizer
from handscroll.train.parallel.shard import assign, gathered, like
from handscroll.train.parallel.watch import watched
from handscroll.train.parallel.world import ALONE, World
from handscroll.train.regularise import Regularise, add_penalty, scalar
from handscroll.train.schedule import Schedule
from handscroll.train.spike import Spike, SpikeGuard, culprits
from handscroll.train.step import Abandoned, Memory, Step, build_rung

BEST = "best"  # folder of the best validated weights, inside the run folder

Validate = Callable[[Model], float]
OnRecord = Callable[[dict[str, Any]], None]
OnPulse = Callable[[float], None]  # share of the current update that is done
Updates = Stream[list[Batch]]  # micro-batches of one update after another


class Loop(Config):
    """Length, precision and rhythm of a run. Steps are updates."""

    steps: int = Field(gt=0)
    precision: Literal["float32", "bfloat16"] = Field(default="float32", description="bfloat16 runs through autocast")
    save_every: int = Field(default=200, gt=0)
    keep: int = Field(default=2, ge=2, description="checkpoints kept")
    evaluate_every: int = Field(default=0, ge=0, description="0: no validation")
    patience: int = Field(
        default=0, ge=0, description="validations without a better loss before stopping; 0: never stop"
    )
    average: float = Field(default=0.0, ge=0, lt=1, description="decay of the moving average of weights; 0: none")
    seed: int = Field(default=0, ge=0, description="of dropout")


@dataclass
class Progress:
    """Where a run stands; saved in every checkpoint."""

    step: int = 0
    tokens: int = 0
    best_loss: float | None = None
    best_step: int = 0
    bad: int = 0
    stopped: str = ""


@dataclass
class Run:
    """A model in training and everything its checkpoint holds."""

    folder: Path
    model: Model
    optimizer: Optimizer
    schedule: Schedule
    loop: Loop
    memory: Memory = field(default_factory=lambda: Memory(rung="plain"))
    regularise: Regularise = field(default_factory=Regularise)
    spike: Spike = field(default_factory=Spike)
    world: World = ALONE
    progress: Progress = field(default_factory=Progress)
    optimizers: dict[str, torch.optim.Optimizer] = field(init=False)
    average: dict[str, Tensor] = field(default_factory=dict)
    step: Step = field(init=False)
    guard: SpikeGuard = field(init=False)

    def __post_init__(self):
        self.optimizers = self.optimizer.build(self.model)
        rung = build_rung(self.memory, self.model, self.folder, self.world)
        autocast = torch.bfloat16 if self.loop.precision == "bfloat16" else None
        self.step = Step(rung, self.world, autocast)
        self.guard = SpikeGuard(self.spike)
        if self.loop.average:
            self.average = {name: p.detach().clone() for name, p in self._trainable()}

    def _trainable(self):
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]

    def noise(self) -> Noise | None:
        """The dropout of the coming update; None when there is none."""
        share = self.regularise.dropout
        return Noise(share, self.loop.seed, self.progress.step) if share else None

    def update(self, lr_factor: float) -> float:
        """Clip, step, average; returns the gradient norm before clipping."""
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

    def save(self, data: dict[str, Any], offset: int) -> None:
        """Write a crash-safe checkpoint of this step: whole tensors, whatever the number of ranks; the first writes."""
        tensors = {"model": gathered(dict(self._trainable()), self.world)}
        states: dict[str, Any] = {}
        for name, optimizer in self.optimizers.items():
            named, states[name] = optimizer_tensors(optimizer)
            tensors[name] = gathered(named, self.world)
        if self.average:
            tensors["average"] = gathered(self.average, self.world)
        if not self.world.first:
            return
        state = {
            "progress": vars(self.progress),
            "optimizers": states,
            "data": data,
            "offset": offset,
            "rng": rng_state(),
            "spike": self.guard.state(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        save_checkpoint(self.folder, self.progress.step, tensors, state, keep=self.loop.keep)

    def restore(self) -> dict[str, Any] | None:
        """Load the newest valid checkpoint of the folder; its state, or None when there is none yet."""
        folder = latest_checkpoint(self.folder)
        if folder is None:
            return None
        tensors, state = load_checkpoint(folder)
        with torch.no_grad():
            for name, parameter in self._trainable():
                if name not in tensors["model"] or tensors["model"][name].shape != parameter.shape:
                    raise CheckpointError(f"{folder} is of another model: tensor '{name}' is missing or misshapen")
                assign(parameter, tensors["model"][name])
        for name, optimizer in self.optimizers.items():
            restore_optimizer(optimizer, tensors[name], state["optimizers"][name], place=like)
        parameters = dict(self._trainable())
        average = tensors.get("average", {})
        self.average = {name: like(parameters[name], value) for name, value in average.items()}
        self.progress = Progress(**state["progress"])
        self.guard = SpikeGuard.from_state(self.spike, state.get("spike", []))
        restore_rng(state["rng"])
        return state


def train(
    run: Run,
    updates: Updates,
    objective: Objective,
    validate: Validate | None = None,
    on_record: OnRecord | None = None,
    on_pulse: OnPulse | None = None,
) -> Progress:
    """Train to `run.loop.steps` updates, or until validation stops improving, or until asked to stop.

    SIGTERM and SIGINT finish the chunk, give up an update that has more chunks, save and return; calling again with
    the same folder resumes.
    On return the model holds the averaged weights if `average` is on, else the best validated ones if
    `patience` is on, else the last.

    Raises:
        DataError: the loss or the gradient is not finite, or a spike; raised before the update, which is not applied.
        CheckpointError: another process writes the run, or a checkpoint cannot be saved or read.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    lock = RunLock(run.folder) if run.world.first else nullcontext()
    watch = watched(run.folder, run.world.rank, run.world.size)
    with lock, watch, _asked_to_stop() as asked:
        state = run.restore()
        offset = 0 if state is None else state["offset"]
        with (
            _writer(run, "records.jsonl", offset) as records,
            _writer(run, "timing.jsonl", None) as timing,
        ):
            stream = updates.resume(None if state is None else state["data"])
            behind = {} if state is None else state["data"]
            _steps(
                run,
                stream,
                objective,
                _Writers(records, timing, validate, on_record, asked, behind, on_pulse, run.world.size == 1),
            )
        _settle(run)
    return run.progress


class _Silent(nullcontext):
    """The writer of every rank but the first."""

    offset = 0

    def __enter__(self) -> "_Silent":
        return self

    def append(self, record: Mapping[str, Any]) -> None:
        """Another rank writes it."""

    def sync(self) -> int:
        return 0


def _writer(run: Run, name: str, offset: int | None) -> RecordWriter | _Silent:
    return RecordWriter(run.folder / name, offset=offset) if run.world.first else _Silent()


@dataclass
class _Writers:
    records: RecordWriter | _Silent
    timing: RecordWriter | _Silent
    validate: Validate | None
    on_record: OnRecord | None
    asked: list[str]
    data: dict[str, Any]
    on_pulse: OnPulse | None
    alone: bool

    def pulse(self, done: float) -> None:
        """Between the chunks of a long step: a stop signal gives it up, since its end may be half an hour away."""
        if self.on_pulse is not None:
            self.on_pulse(done)
        if self.asked and done < 1 and self.alone:
            raise Abandoned  # ranks would have to agree; together they finish the update


def _steps(run: Run, stream: Iterator, objective: Objective, out: _Writers) -> None:
    loop, progress = run.loop, run.progress
    saved, behind = progress.step, out.data
    while progress.step < loop.steps and not progress.stopped:
        started = time.monotonic()
        micro, data = _next(stream, progress.step, loop.steps)
        run.model.train()
        try:
            loss = run.step(run.model, micro, objective, run.noise(), out.pulse)
        except Abandoned:
            run.model.zero_grad(set_to_none=True)
            if progress.step > saved:
                out.records.sync()
                run.save(behind, out.records.offset)
            return
        mean = float(loss.total) / max(1, loss.count)
        _refuse_spike(run, mean)
        penalty = add_penalty(run.model, run.regularise)
        factor = run.schedule.factor(progress.step, loop.steps)
        norm = run.update(factor) if math.isfinite(mean) else math.nan
        if not math.isfinite(norm):
            raise DataError(_not_applied(run, f"loss {mean}, gradient norm {norm}"))
        run.guard.add(mean)
        progress.step += 1
        progress.tokens += sum(batch.tokens.numel() for batch in micro)
        record = {"step": progress.step, "tokens": progress.tokens, "loss": mean, "count": loss.count}
        record |= {"gradient_norm": norm, "lr_factor": factor}
        record |= {"penalty": penalty} if penalty else {}
        record |= {name: value / max(1, number) for name, (value, number) in loss.metrics.items()}
        last = progress.step == loop.steps
        if out.validate is not None and loop.evaluate_every and (last or progress.step % loop.evaluate_every == 0):
            record["validation_loss"] = _validated(run, out.validate)
        out.records.append(record)
        seconds = time.monotonic() - started
        out.timing.append({"step": progress.step, "seconds": round(seconds, 4)})
        if out.on_record is not None:
            out.on_record(record | {"seconds": seconds})
        asked = run.world.agree(bool(out.asked))
        if last or asked or progress.stopped or progress.step % loop.save_every == 0:
            out.records.sync()
            run.save(data, out.records.offset)
            saved = progress.step
        behind = data
        if asked:
            return


def _refuse_spike(run: Run, mean: float) -> None:
    why = run.guard.check(mean)
    if why is not None:
        raise DataError(_not_applied(run, why))


def _next(stream: Iterator, step: int, steps: int) -> tuple[list[Batch], dict[str, Any]]:
    try:
        return next(stream)
    except StopIteration:
        raise DataError(f"the data ended after {step} of {steps} updates; add text, repeat it or lower steps") from None


def _validated(run: Run, validate: Validate) -> float:
    """Validation loss; keeps the best weights and marks the run stopped when patience has run out."""
    progress, loop = run.progress, run.loop
    run.model.eval()
    with _averaged(run):
        loss = validate(run.model)
        if progress.best_loss is None or loss < progress.best_loss:
            progress.best_loss, progress.best_step, progress.bad = loss, progress.step, 0
            if loop.patience:
                _save_best(run)
        else:
            progress.bad += 1
    if loop.patience and progress.bad >= loop.patience:
        progress.stopped = (
            f"no better validation loss in {progress.bad} validations (best at step {progress.best_step})"
        )
    return loss


@contextmanager
def _averaged(run: Run):
    """The averaged weights in place of the current ones, for as long as the block runs."""
    if not run.average:
        yield
        return
    parameters = dict(run.model.named_parameters())
    current = {name: parameters[name].detach().clone() for name in run.average}
    with torch.no_grad():
        for name, value in run.average.items():
            parameters[name].copy_(value)
        yield
        for name, value in current.items():
            parameters[name].copy_(value)


def _save_best(run: Run) -> None:
    tensors = {"model": gathered(dict(run._trainable()), run.world)}
    if run.world.first:
        save_checkpoint(run.folder / BEST, run.progress.step, tensors, {})


def _settle(run: Run) -> None:
    """Put the weights that the run is about into the model."""
    parameters = dict(run.model.named_parameters())
    chosen = run.average
    if not chosen and run.loop.patience:
        run.world.agree(True)  # the first rank may still be writing
        best = latest_checkpoint(run.folder / BEST)
        chosen = {} if best is None else load_checkpoint(best)[0]["model"]
    for name, value in chosen.items():
        assign(parameters[name], value)
    run.model.eval()


@contextmanager
def _asked_to_stop():
    """A list that gets the name of a stop signal; the old handlers come back afterwards (main thread only)."""
    asked: list[str] = []

    def note(number, frame):
        asked.append(signal.Signals(number).name)

    try:
        old = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread: signals are somebody else's business
        old = {}
    try:
        yield asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _not_applied(run: Run, why: str) -> str:
    where = culprits(run.model)
    return (
        f"step {run.progress.step + 1}: {why}, so the update was not applied{f'; {where}' if where else ''}. "
        f"Lower the learning rate, look at the text of this update, or resume from a checkpoint in {run.folder}"
    )


def write_recipe(folder: Path, resolved: dict[str, Any]) -> None:
    """Keep the resolved configuration and versions beside the records; a different one later is refused."""
    from handscroll.base.runs import write_file

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.json"
    text = json.dumps(resolved, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = sorted(key for key in {*before, *resolved} if before.get(key) != json.loads(text).get(key))
        if changed:
            raise CheckpointError(
                f"{folder} was started with another recipe (differs in: {', '.join(changed)}); "
                "resume with the same one or choose another run folder"
            )
        return
    write_file(path, text.encode())
