"""The only training loop: it takes batches and an objective, keeps a run folder, and resumes exactly.

`records.jsonl` is deterministic: an interrupted and resumed run writes the same bytes as an uninterrupted one with the
same seed and number of threads. Times go to `timing.jsonl`.
"""

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from handscroll.base.errors import DataError
from handscroll.base.lock import RunLock
from handscroll.base.records import RecordWriter
from handscroll.base.runs import latest_checkpoint
from handscroll.data.batch import Batch
from handscroll.data.stream import Stream
from handscroll.objectives.loss import Loss
from handscroll.objectives.objective import Objective
from handscroll.train.parallel.shard import reshard
from handscroll.train.parallel.watch import watched
from handscroll.train.regularise import add_penalty
from handscroll.train.run import Run, averaged, save_best, settle
from handscroll.train.spike import culprits
from handscroll.train.step import Abandoned
from handscroll.train.validation import Pulse, Validate

OnRecord = Callable[[dict[str, Any]], None]
OnPulse = Callable[[float, str], None]  # the share that is done of the next "update", or of a "validation"
Updates = Stream[list[Batch]]  # micro-batches of one update after another


@dataclass(frozen=True)
class Callbacks:
    """Functions that a run calls: to validate the model, and to show records and progress."""

    validate: Validate | None = None
    on_record: OnRecord | None = None
    on_pulse: OnPulse | None = None


def train(run: Run, updates: Updates, objective: Objective, callbacks: Callbacks = Callbacks()):
    """Train for `run.loop.steps` updates, or until validation stops improving, or until a signal stops the run.

    On SIGTERM or SIGINT the current chunk is finished, and an update that has more chunks is abandoned, as is a
    validation that has more rows (ranks that share the work finish both). Then the run saves and returns; a call with
    the same folder resumes it, and begins with the abandoned validation (`unwritten` in its progress). On return
    the model holds the best validated weights if `patience` is on (of the averaged ones, if `average` is on too),
    otherwise the averaged ones if `average` is on, otherwise the last ones.

    Raises:
        DataError: the loss or the gradient is not finite, or the loss is a spike. The update is then not applied.
        CheckpointError: another process writes to the run, or a checkpoint cannot be saved or read.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    lock = RunLock(run.folder) if run.world.first else nullcontext()
    # The ranks begin together: one that still has work of its own to do (a certificate) is not silent.
    number = int(run.world.sum([float(time.time_ns() >> 20 if run.world.first else 0)])[0])
    with lock, watched(run.folder, run.world.rank, run.world.size, number), _asked_to_stop() as asked:
        state = run.restore()
        data = {} if state is None else state["data"]
        offset = 0 if state is None else state["offset"]
        with _writer(run, "records.jsonl", offset) as records, _writer(run, "timing.jsonl", None) as timing:
            _Session(run, updates, objective, callbacks, records, timing, asked, data).go()
        settle(run)
    return run.progress


class _Silent(nullcontext):
    """The writer of every rank except the first; it writes nothing."""

    offset = 0

    def __enter__(self) -> "_Silent":
        return self

    def append(self, record: Mapping[str, Any]) -> None:
        """Do nothing: the first rank writes the record."""

    def sync(self) -> int:
        return 0


def _writer(run: Run, name: str, offset: int | None) -> RecordWriter | _Silent:
    return RecordWriter(run.folder / name, offset=offset) if run.world.first else _Silent()


@dataclass
class _Session:
    """The part of a run in one process: from the state in the run folder to the end or to a stop."""

    run: Run
    updates: Updates
    objective: Objective
    callbacks: Callbacks
    records: RecordWriter | _Silent
    timing: RecordWriter | _Silent
    asked: list[str]
    data: dict[str, Any]  # position of the stream after the last applied update
    saved: int = 0
    stream: Iterator[tuple[list[Batch], dict[str, Any]]] = field(init=False)

    def go(self) -> None:
        run, progress = self.run, self.run.progress
        self.stream = self.updates.resume(self.data or None)
        self.saved = progress.step
        if progress.unwritten:  # an earlier start was stopped in the validation of its last update
            self._conclude(time.monotonic())
            if progress.unwritten:
                return
        while not progress.ended(run.loop.steps):
            started = time.monotonic()
            if run.curriculum is not None and run.curriculum.enter(run.model, progress.planned) and progress.step:
                run.begin_stage()
            micro, behind = self._next()
            try:
                run.model.train()
                loss = run.step(run.model, micro, self.objective, run.noise(), self._pulse)
            except Abandoned:
                run.model.zero_grad(set_to_none=True)
                self._save()
                return
            self.data = behind
            self._finish(micro, self._apply(loss), loss, started)
            if run.world.agree(bool(self.asked)):
                self._save()
                return

    def _apply(self, loss: Loss) -> dict[str, Any]:
        """Apply the update and return its entries for the record."""
        run = self.run
        mean = float(loss.total) / max(1, loss.count)
        why = run.guard.check(mean)
        if why is not None:
            raise DataError(_not_applied(run, why))
        penalty = add_penalty(run.model, run.regularise)
        factor = run.schedule.factor(run.progress.planned, run.loop.steps)
        norm = run.update(factor) if math.isfinite(mean) else math.nan
        if not math.isfinite(norm):
            raise DataError(_not_applied(run, f"loss {mean}, gradient norm {norm}"))
        run.guard.add(mean)
        entries = {"loss": mean, "count": loss.count, "gradient_norm": norm, "lr_factor": factor}
        entries |= {"penalty": penalty} if penalty else {}
        return entries | {name: value / number for name, (value, number) in loss.metrics.items() if number}

    def _finish(self, micro: list[Batch], entries: dict[str, Any], loss: Loss, started: float) -> None:
        """Count the update, and conclude it."""
        run, progress = self.run, self.run.progress
        left_out = 0 if run.curriculum is None else run.curriculum.flat(progress.planned, loss.metrics)
        progress.step += 1
        progress.tokens += sum(batch.size for batch in micro)
        if left_out:
            progress.skipped += left_out
            self.data = self.updates.beginning(run.curriculum.stage + 1)  # type: ignore[attr-defined, union-attr]
            self.stream = self.updates.resume(self.data)
            entries["stage_ended_early"] = left_out
        told = {"step": progress.step, "tokens": progress.tokens, **entries}
        progress.unwritten = [list(pair) for pair in told.items()]
        if run.world.compare_every and progress.step % run.world.compare_every == 0:
            run.compare()
        self._conclude(started)

    def _conclude(self, started: float) -> None:
        """Validate and save when they are due, and write the record of the last update. A stop during the validation
        leaves all that to the next start."""
        run, progress, loop = self.run, self.run.progress, self.run.loop
        record = dict(progress.unwritten)
        last = progress.planned >= loop.steps
        due = loop.evaluate_every and (last or progress.step % loop.evaluate_every == 0)
        if self.callbacks.validate is not None and due:
            try:
                record["validation_loss"] = _validated(run, self.callbacks.validate, self._validating)
            except Abandoned:
                return
        progress.unwritten = []
        self.records.append(record)
        seconds = time.monotonic() - started
        self.timing.append({"step": progress.step, "seconds": round(seconds, 4)})
        if self.callbacks.on_record is not None:
            self.callbacks.on_record(record | {"seconds": seconds, "planned": progress.planned})
        if last or progress.stopped or progress.step % loop.save_every == 0:
            self._save()

    def _save(self) -> None:
        """Save a checkpoint of the last applied update, unless there is one already."""
        if self.run.progress.step > self.saved:
            self.run.compare()
            self.records.sync()
            self.run.save(self.data, self.records.offset)
            self.saved = self.run.progress.step

    def _pulse(self, done: float, of: str = "update") -> None:
        """Show the progress between two chunks or rows, and abandon what is going on if a stop signal came.

        The end of a long step may be half an hour away.
        """
        if self.callbacks.on_pulse is not None:
            self.callbacks.on_pulse(done, of)
        if self.asked and done < 1 and self.run.world.size == 1:
            raise Abandoned  # several ranks finish it instead, since all would have to abandon it together

    def _validating(self, done: float) -> None:
        self._pulse(done, "validation")

    def _next(self) -> tuple[list[Batch], dict[str, Any]]:
        try:
            return next(self.stream)
        except StopIteration:
            done, steps = self.run.progress.planned, self.run.loop.steps
            raise DataError(
                f"the data ended after {done} of {steps} updates; add text, repeat it or lower steps"
            ) from None


def _validated(run: Run, validate: Validate, pulse: Pulse) -> float:
    """The validation loss. Saves the best weights, and marks the run as stopped when `patience` is used up."""
    progress, loop = run.progress, run.loop
    run.model.eval()
    with averaged(run):
        found = validate(run.model, pulse)
        reshard(run.model)
        loss = run.world.of_first(lambda: found)  # the ranks' own losses may differ in a bit, and their decisions then
        if progress.best_loss is None or loss < progress.best_loss:
            progress.best_loss, progress.best_step, progress.bad = loss, progress.step, 0
            if loop.patience:
                save_best(run)
        else:
            progress.bad += 1
    if loop.patience and progress.bad >= loop.patience:
        progress.stopped = (
            f"no better validation loss in {progress.bad} validations (best at step {progress.best_step})"
        )
    return loss


@contextmanager
def _asked_to_stop():
    """Yield a list that receives the names of stop signals. Afterwards the old handlers are restored.

    Outside the main thread it handles no signals.
    """
    asked: list[str] = []

    def note(number, frame):
        asked.append(signal.Signals(number).name)

    try:
        old = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # only the main thread may set signal handlers
        old = {}
    try:
        yield asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _not_applied(run: Run, why: str) -> str:
    where = culprits(run.model)
    kept = latest_checkpoint(run.folder) is not None
    return (
        f"step {run.progress.step + 1}: {why}, so the update was not applied{f'; {where}' if where else ''}. Lower the "
        "learning rate or look at the text of this update"
        + (f", or resume from a checkpoint in {run.folder}" if kept else "")
    )
