"""Longer context for learned positions, T5's buckets and GLM's rotary positions: what each way of lengthening is worth.

python -m bench.lengthening --family bert --seed 0 --text FOLDER --out results.jsonl [--minutes 8] [--device cuda]
python -m bench.lengthening --all --processes 12 --text FOLDER --out results.jsonl [--minutes 8] [--device cuda]
python -m bench.lengthening --table results.jsonl

FOLDER holds `books_train` (learned from) and `books_valid` (held out), text files. A small model is trained from
nothing on rows of 128 tokens, lengthened to 1,024 by every method, measured by position on held-out text, tuned for the
same number of updates on the same rows of 1,024 tokens, and measured again. The short model itself, reading by windows
of 128, is the baseline that needs no lengthening; it is tuned for as many updates of as many tokens too. An LSTM of
about their size, which needs none either, stands beside those that predict the next token.

A line of results is written as soon as it is there; what the file has already is not done again, and other settings
need another file. With `--minutes` the
pre-training gets as many updates as fit into a share of that time, by a probe, and what does not fit after it is left
out, with a note. `--work` keeps tokenizers, tokens and pre-trained models, and a second run goes on from there.
"""

import argparse
import copy
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.kept import claim, difference
from bench.lengthening_families import FAMILIES, LONG, SHORT, Family
from bench.lengthening_table import tables
from bench.span_losses import as_many, span_losses
from handscroll.base.errors import DataError
from handscroll.base.records import read_records
from handscroll.data.pack import Packed
from handscroll.data.sources import TokenSource
from handscroll.evaluate.perplexity import measure
from handscroll.evaluate.samples import Sample, windows
from handscroll.extend.extend import extension
from handscroll.lm import LM, load
from handscroll.models.encoder_decoder import EncoderDecoder
from handscroll.models.new import About, new_model
from handscroll.nn.init import initialise
from handscroll.objectives.settings import ObjectiveSettings
from handscroll.objectives.span_corruption import SpanCorruption
from handscroll.text.readers import read
from handscroll.text.tokenizer import Tokenizer
from handscroll.text.training import TokenizerConfig, train_tokenizer
from handscroll.train.assemble import Updates
from handscroll.train.loop import Callbacks, train
from handscroll.train.optim import Optimizer
from handscroll.train.run import Loop, Run
from handscroll.train.schedule import Schedule

BLOCKS = {"1-127": (1, 128), "128-511": (128, 512), "512-1023": (512, 1024), "128-1023": (128, 1024)}
RATE = 1e-3
PROBE = 12  # updates by which the speed is judged, the first half of them not counted
STARTING = 0.25  # minutes that a process takes before it looks at the clock


class OutOfTime(Exception):
    """The time given with --minutes is over."""


@dataclass(frozen=True)
class Clock:
    """Seconds left of a number of minutes (0: no limit)."""

    started: float
    minutes: float

    @property
    def left(self) -> float:
        return self.started + 60 * self.minutes - time.monotonic() if self.minutes else float("inf")


@dataclass(frozen=True)
class Job:
    """One family and seed, and where everything lies."""

    name: str
    seed: int
    options: argparse.Namespace
    clock: Clock

    @property
    def family(self) -> Family:
        return FAMILIES[self.name]

    @property
    def work(self) -> Path:
        return Path(self.options.work) / self.name

    @property
    def text(self) -> dict[str, Any]:
        """The settings on which the tokens depend."""
        return {"text": str(Path(self.options.text).resolve()), "vocab": self.options.vocab}

    @property
    def training(self) -> dict[str, Any]:
        """The settings on which the short model depends, besides the text; its precision stands in `how.json`."""
        rows = self.options.rows or self.family.rows
        return {"vocab": self.options.vocab, "rows": rows, "pretrain_steps": self.options.pretrain_steps}

    def settings(self, steps: int) -> dict[str, Any]:
        """The settings on which a result after `steps` updates of tuning depends."""
        found = self.training | {"windows": self.options.windows or self.family.windows}
        names = ("tune_rows", "tune_rate", "precision") if steps else ()
        return found | {name: getattr(self.options, name) for name in names}

    def say(self, text: str) -> None:
        print(f"{self.name} {self.seed}: {text}", flush=True)


def prepare(job: Job) -> None:
    """The tokenizer and the tokens of a family's training text, unless they are there."""
    claim(job.work / "tokens", job.text)
    if (job.work / "tokens" / "index.json").exists():
        return
    texts = list(read([Path(job.options.text) / "books_train"]))
    settings = {"vocab": job.options.vocab, "special": job.family.special, "sentinels": job.family.sentinels}
    tokenizer = train_tokenizer((one.text for one in texts), TokenizerConfig.parse(settings, "bench"))
    tokenizer.save(job.work / "tokenizer")
    source = TokenSource.build(texts, tokenizer, special=False)
    source.save(job.work / "tokens")
    job.say(f"{source.total:,} tokens of training text")


def rows_of(source: TokenSource, tokenizer: Tokenizer, length: int) -> TokenSource:
    """Documents of exactly one row: the text cut at every `length` tokens, and once more half a row later, each piece
    behind what begins a text."""
    before = [] if tokenizer.cls is None else [tokenizer.cls]
    body = length - len(before)
    found = []
    for document in source:
        ids = torch.from_numpy(document.astype("int64"))
        for first in (0, body // 2):
            for piece in ids[first:].split(body):
                if len(piece) == body:
                    found.append(torch.cat([torch.tensor(before, dtype=torch.int64), piece]).numpy())
    return TokenSource(found)


@dataclass(frozen=True)
class Lesson:
    """`steps` updates of `rows` rows of `length` tokens."""

    length: int
    rows: int
    steps: int
    rate: float
    seed: int
    task: ObjectiveSettings


def learn(job: Job, lm: LM, lesson: Lesson, folder: Path, note: Callable[[dict[str, Any]], None]) -> None:
    """Train `lm` in place by the package's own loop.

    Raises:
        OutOfTime: before it was done. SystemExit: it was stopped.
    """

    def told(record: dict[str, Any]) -> None:
        note(record)
        if job.clock.left < 0:
            raise OutOfTime

    task, model, length = lesson.task, lm.model, lesson.length
    source = rows_of(TokenSource.load(job.work / "tokens"), lm.tokenizer, length)
    packed = Packed(source, length, seed=lesson.seed, epochs=None)
    rows = task.rows(packed, length, lesson.seed, model, lm.tokenizer)
    optimizer = Optimizer(name="adamw", lr=lesson.rate, weight_decay=0.05)
    schedule = Schedule(name="cosine", warmup=max(1, lesson.steps // 20), final=0.05)
    loop = Loop(steps=lesson.steps, precision=job.options.precision, save_every=max(500, lesson.steps // 2))
    run = Run(folder, model, optimizer, schedule, loop)  # type: ignore[arg-type]
    progress = train(run, Updates(rows, lesson.rows, lesson.rows), task.objective(model), Callbacks(on_record=told))
    if progress.step < lesson.steps:
        raise SystemExit(f"stopped after {progress.step} of {lesson.steps} updates; the same command goes on")


def pretrained(job: Job) -> tuple[LM, dict[str, Any]]:
    """The short model, and how it was trained; kept in the work folder."""
    folder, device = job.work / f"seed-{job.seed}", job.options.device
    kept = folder / "how.json"
    claim(folder, job.text | job.training)
    if kept.exists():
        how = json.loads(kept.read_text())
        job.say(f"pre-trained before, in {how['pretrain_precision']}")
        return load(folder / "model", device), how
    tokenizer = Tokenizer.load(job.work / "tokenizer")
    model = new_model(job.name, job.family.sizes, About(tokenizer, SHORT))
    initialise(model, job.family.initialise, model.config.layers, torch.Generator().manual_seed(job.seed))
    lm = LM(model.to(device), tokenizer, f"{job.name} {job.seed}")
    rows = job.options.rows or job.family.rows
    steps = _steps(job, lm, rows, folder / "steps")
    lesson = Lesson(SHORT, rows, steps, RATE, job.seed, job.family.task)
    job.say(f"{steps} updates of {rows} x {SHORT} tokens")
    started, recent = time.monotonic(), []

    def note(record: dict[str, Any]) -> None:
        recent.append(record["loss"])
        if len(recent) % max(1, steps // 20) == 0:
            seconds = time.monotonic() - started
            job.say(f"update {len(recent)} of {steps}: {statistics.fmean(recent[-50:]):.3f} nats, {seconds:.0f} s")

    learn(job, lm, lesson, folder / "run", note)
    how = {"pretrain_steps": steps, "pretrain_rows": rows, "pretrain_loss": statistics.fmean(recent[-50:])}
    how |= {"pretrain_seconds": round(time.monotonic() - started), "pretrain_precision": job.options.precision}
    lm.save(folder / "model")
    shutil.rmtree(folder / "run")
    kept.write_text(json.dumps(how))
    return lm, how


def _steps(job: Job, lm: LM, rows: int, kept: Path) -> int:
    """Updates of pre-training, settled once."""
    if not kept.exists():
        steps = job.options.pretrain_steps or min(job.family.most, _fitting(job, lm, rows))
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(str(steps))
    return int(kept.read_text())


def _fitting(job: Job, lm: LM, rows: int) -> int:
    """Updates of pre-training that fit into its share of the time left."""
    if job.clock.left == float("inf"):
        return job.family.most
    trial, seconds = LM(copy.deepcopy(lm.model), lm.tokenizer, lm.source), []
    folder = job.work / f"probe-{job.seed}"
    shutil.rmtree(folder, ignore_errors=True)
    lesson = Lesson(SHORT, rows, PROBE, RATE, job.seed, job.family.task)
    learn(job, trial, lesson, folder, lambda record: seconds.append(record["seconds"]))
    shutil.rmtree(folder)
    one = statistics.fmean(seconds[PROBE // 2 :])
    job.say(f"{1000 * one:.0f} ms an update, {job.clock.left:.0f} s left")
    return max(20, int(job.options.share * job.clock.left / one))


def measured(job: Job, lm: LM, samples: list[Sample], window: int | None) -> dict[str, float]:
    """Mean loss by block of positions, in nats a token."""
    if isinstance(lm.model, EncoderDecoder):
        assert isinstance(job.family.task, SpanCorruption)
        losses, places = span_losses(lm, samples, job.family.task, window)
        return {
            name: float(losses[(places >= first) & (places < last)].mean()) for name, (first, last) in BLOCKS.items()
        }
    losses = measure(lm, samples, "", window)
    return {name: losses.mean(first, last) for name, (first, last) in BLOCKS.items()}


@dataclass(frozen=True)
class Way:
    """A method, the model that it gives, and which of its candidates that is."""

    method: str
    lm: LM
    detail: str = ""


def agree(job: Job, steps: int) -> None:
    """
    Raises:
        SystemExit: results of this family after as many updates of tuning were made under other settings.
    """
    wanted = job.settings(steps)
    for one in _results(job.options.out):
        if (one["family"], one["steps"]) == (job.name, steps) and (
            differs := difference(one.get("settings", {}), wanted)
        ):
            which = f"{one['method']}, {steps} updates, seed {one['seed']}"
            raise SystemExit(
                f"{job.options.out} has results of {job.name} ({which}) that were made with {differs}: "
                "give another --out"
            )


@dataclass(frozen=True)
class Results:
    """The lines of one family and seed in the file of results."""

    job: Job
    samples: list[Sample]
    how: dict[str, Any]

    def missing(self, ways: list[Way], steps: int) -> list[Way]:
        job = self.job
        done = {(one["family"], one["seed"], one["method"], one["steps"]) for one in _results(job.options.out)}
        return [way for way in ways if (job.name, job.seed, way.method, steps) not in done]

    def put(self, way: Way, steps: int, seconds: float = 0.0) -> None:
        """Measure, and write a line."""
        job = self.job
        losses = measured(job, way.lm, self.samples, SHORT if way.method == job.family.baseline else None)
        line = {"family": job.name, "seed": job.seed, "method": way.method, "detail": way.detail, "steps": steps}
        line |= {"loss": losses, "tune_seconds": round(seconds), "device": job.options.device} | self.how
        line["settings"] = job.settings(steps)
        with Path(job.options.out).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        shown = ", ".join(f"{name} {value:.3f}" for name, value in losses.items())
        job.say(f"{way.method}, {steps} updates: {shown} ({job.clock.left:.0f} s left)")


def study(job: Job) -> None:
    """Everything about one family and seed."""
    for steps in {0, job.options.tune_steps}:
        agree(job, steps)
    prepare(job)
    lm, how = pretrained(job)
    held = sorted((Path(job.options.text) / "books_valid").glob("*.txt"))
    if len(held) < 2:
        raise DataError(
            f"{job.options.text}/books_valid has {len(held)} files; it needs one to choose on, one to prove"
        )
    results = Results(job, windows(read(held[1:]), lm.tokenizer, LONG, job.options.windows or job.family.windows), how)
    ways = [lengthened(job, lm, method, held[0]) for method in job.family.methods]
    ways.append(Way(job.family.baseline, lm))
    for way in results.missing(ways, 0):
        results.put(way, 0)
    steps = job.options.tune_steps
    for way in results.missing(ways, steps) if steps else []:
        results.put(way, steps, tuned(job, way))


def tuned(job: Job, way: Way) -> float:
    """Tune in place, the baseline at its own length, on as many tokens; the seconds that it took."""
    rows, length = job.options.tune_rows, LONG
    if way.method == job.family.baseline:
        rows, length = rows * LONG // SHORT, SHORT
    task = job.family.task
    if isinstance(task, SpanCorruption):
        task = as_many(task, SHORT, length)  # as it is measured
    lesson = Lesson(length, rows, job.options.tune_steps, job.options.tune_rate, job.seed, task)
    started, folder = time.monotonic(), job.work / f"tuning-{job.seed}"
    shutil.rmtree(folder, ignore_errors=True)
    learn(job, way.lm, lesson, folder, lambda record: None)
    shutil.rmtree(folder)
    return time.monotonic() - started


def lengthened(job: Job, lm: LM, method: str, choose: Path) -> Way:
    """A lengthened copy; of what has no positions, a copy."""
    if lm.model.spec.recurrent:
        return Way(method, LM(copy.deepcopy(lm.model), lm.tokenizer, lm.source))
    text = choose if method in job.family.chosen else None
    made = extension(lm, LONG, method, text=text, measured=2 * LONG)
    return Way(method, made.lm, made.candidate.detail)


def _results(path: str) -> list[dict[str, Any]]:
    return list(read_records(Path(path))) if Path(path).exists() else []


def everything(options: argparse.Namespace, clock: Clock) -> int:
    """Every family and seed in a process of its own, `--processes` at a time; the status is 1 if one failed."""
    for name in options.families:
        prepare(Job(name, 0, options, clock))
    jobs = [(name, seed) for seed in range(options.seeds) for name in options.families]
    waves = -(-len(jobs) // options.processes)
    minutes = max(0.1, clock.left / 60 / waves - STARTING) if options.minutes else 0
    running: dict[tuple[str, int], subprocess.Popen] = {}
    failed, spoken = 0, time.monotonic()
    while jobs or running:
        while jobs and len(running) < options.processes:
            job = jobs.pop(0)
            running[job] = _start(*job, options, minutes)
        time.sleep(0.5)
        for job, process in list(running.items()):
            if process.poll() is not None:
                del running[job]
                failed += process.returncode != 0
                print(f"{job[0]} {job[1]}: ended with status {process.returncode}; {_last(options, *job)}", flush=True)
        if time.monotonic() - spoken > 30:
            spoken = time.monotonic()
            for job in running:
                print(_last(options, *job), flush=True)
    print(tables(_results(options.out)))
    return int(failed > 0)


def _start(name: str, seed: int, options: argparse.Namespace, minutes: float) -> subprocess.Popen:
    command = [sys.executable, "-m", "bench.lengthening", "--family", name, "--seed", str(seed)]
    for key in ("text", "out", "work", "device", "precision", "threads", "vocab", "windows", "rows", "share"):
        command += [f"--{key}", str(getattr(options, key))]
    command += ["--pretrain-steps", str(options.pretrain_steps), "--tune-steps", str(options.tune_steps)]
    command += ["--tune-rows", str(options.tune_rows), "--tune-rate", str(options.tune_rate)]
    command += ["--minutes", f"{minutes:.3f}"]
    with _log(options, name, seed).open("w", encoding="utf-8") as log:
        threads = {"OMP_NUM_THREADS": str(options.threads), "TOKENIZERS_PARALLELISM": "false"}
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | threads)


def _log(options: argparse.Namespace, name: str, seed: int) -> Path:
    return Path(options.work) / f"{name}-{seed}.log"


def _last(options: argparse.Namespace, name: str, seed: int) -> str:
    lines = _log(options, name, seed).read_text(encoding="utf-8").splitlines()
    return lines[-1] if lines else f"{name} {seed}: (nothing said yet)"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--family", choices=FAMILIES)
    what.add_argument("--all", action="store_true", help="every family and seed, in processes of their own")
    what.add_argument("--table", help="print the tables of a file of results")
    parser.add_argument("--text", help="folder with books_train and books_valid")
    parser.add_argument("--out", default="lengthening.jsonl")
    parser.add_argument("--work", default="lengthening-work")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=3, help="with --all")
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=FAMILIES, help="with --all")
    parser.add_argument("--processes", type=int, default=1, help="with --all: at a time")
    parser.add_argument(
        "--minutes", type=float, default=0.0, help="0: no limit, and as many updates as the family says"
    )
    parser.add_argument("--share", type=float, default=0.5, help="of the minutes that pre-training may take")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="", choices=["", "float32", "bfloat16"], help="bfloat16 on a GPU")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--vocab", type=int, default=2048)
    parser.add_argument("--rows", type=int, default=0, help="of an update in pre-training; 0: as the family says")
    parser.add_argument("--pretrain-steps", type=int, default=0, help="0: as many as fit into the time")
    parser.add_argument("--tune-steps", type=int, default=200)
    parser.add_argument("--tune-rows", type=int, default=8, help=f"rows of {LONG} tokens in an update of tuning")
    parser.add_argument("--tune-rate", type=float, default=5e-4, help="of tuning")
    parser.add_argument("--windows", type=int, default=0, help="of held-out text; 0: as the family says")
    options = parser.parse_args()
    if options.table:
        print(tables(list(read_records(Path(options.table)))))
        return 0
    if not options.text:
        parser.error("--text FOLDER is needed")
    options.precision = options.precision or ("float32" if options.device == "cpu" else "bfloat16")
    clock = Clock(time.monotonic(), options.minutes)
    Path(options.work).mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    if options.all:
        return everything(options, clock)
    job = Job(options.family, options.seed, options, clock)
    try:
        study(job)
    except OutOfTime:
        job.say(f"the {options.minutes:g} minutes are over; the same command goes on with what is missing")
    return 0


if __name__ == "__main__":
    sys.exit(main())
