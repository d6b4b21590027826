"""The published page of a model: RULER by length, its loss far beyond its trained length by every method, its needles.

python -m bench.published MODEL --text BOOKS --out FOLDER [--lengths 1024,2048,4096] [--samples 3] [--to 65536]
    [--measured 8192] [--steps doctor,ruler,length,methods]

Each step is a command of `handscroll` or, for the methods, `extend --compare` with one seed and one window; what it
read stays in FOLDER, so that a step that was stopped goes on. FOLDER/NAME.jsonl are its records, FOLDER/minutes.jsonl
the processor time and the wall time of each, and FOLDER/page.html the report of all of them. A step is done again with
other settings; what RULER read before stays.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from typing import Any

import handscroll
from handscroll.base.records import read_records
from handscroll.extend.compare import Comparing
from handscroll.extend.extend import extension
from handscroll.report import evaluation_page, render


@dataclass(frozen=True)
class Step:
    """One part of the page. `work` gets the folder of the page, the file for its records, and the values of `reads`,
    the options that it depends on. It counts as done only for the same values."""

    work: Callable[..., None]
    reads: tuple[str, ...]

    def settings(self, options: argparse.Namespace) -> dict[str, Any]:
        return {name: getattr(options, name) for name in self.reads}


def run(words: Sequence[str], record: Path, well: Sequence[int] = (0,)) -> None:
    """A command of handscroll that writes `record`; what it prints is shown. `well`: the exit statuses that are no
    failure if there is a record (Python ends with 1 too where a program fails). A failure leaves an earlier record."""
    earlier = record.with_suffix(".earlier")
    if record.exists():
        record.replace(earlier)
    print(f"$ handscroll {' '.join(words)}", flush=True)
    command = [sys.executable, "-m", "handscroll", *words, "--json", str(record)]
    try:
        ended = subprocess.run(command, check=False).returncode
        if ended not in well or not record.exists():
            raise SystemExit(f"the command above ended with status {ended}; the same command of this benchmark goes on")
    except BaseException:
        record.unlink(missing_ok=True)
        if earlier.exists():
            earlier.replace(record)
        raise
    earlier.unlink(missing_ok=True)


def doctor(folder: Path, record: Path, *, model: str) -> None:
    run(["doctor", model, "--skip", "reference"], record, well=(0, 1))  # 1: it found something


def ruler(folder: Path, record: Path, *, model: str, lengths: str, samples: int) -> None:
    settings = ["--lengths", lengths, "--samples", str(samples), "--out", str(folder / "ruler")]
    run(["evaluate", "ruler", model, *settings], record)


def length(folder: Path, record: Path, *, model: str, lengths: str, text: list[str]) -> None:
    rounds = folder / f"length-{hashlib.sha256(repr((lengths, text)).encode()).hexdigest()[:8]}.rounds"
    settings = ["--lengths", lengths, "--rounds", "6", "--keep", str(rounds)]
    texts = [word for one in text for word in ("--text", one)]
    run(["evaluate", "length", model, *settings, *texts], record)


def methods(folder: Path, record: Path, *, model: str, text: list[str], to: int, measured: int, needles: int) -> None:
    """Every method at `to` tokens, and the model as it is, on the same window."""
    lm = handscroll.load(model)
    sizes = Comparing(seeds=1, windows=1, readings=8, needles=needles)
    settings: dict[str, Any] = {"text": text, "measured": measured, "compare": sizes}
    settings |= {"remember": folder / "methods", "on_plan": lambda words: print(words, flush=True)}
    made = extension(lm, to, "auto", **settings)
    assert made.comparison is not None
    record.write_text("".join(f"{json.dumps(one)}\n" for one in made.comparison.records()), encoding="utf-8")
    for line in made.comparison.lines:
        found = "-" if line.found is None else f"{line.found:.0%}"
        name, trial = line.standing.candidate.name, line.standing
        print(
            f"{name:<40} {trial.long:8.3f} nats past the trained length, short text {trial.rise:+.3f}, needles {found}"
        )


STEPS = {
    "doctor": Step(doctor, ("model",)),
    "ruler": Step(ruler, ("model", "lengths", "samples")),
    "length": Step(length, ("model", "lengths", "text")),
    "methods": Step(methods, ("model", "text", "to", "measured", "needles")),
}


def done(minutes: Path) -> list[dict[str, Any]]:
    """The steps that were done before."""
    lines = minutes.read_text(encoding="utf-8").splitlines() if minutes.exists() else []
    return [json.loads(line) for line in lines]


def spent() -> float:
    """Seconds of processor time of this process and those that it ran."""
    return sum(one.ru_utime + one.ru_stime for one in map(getrusage, (RUSAGE_SELF, RUSAGE_CHILDREN)))


def publish(options: argparse.Namespace) -> None:
    """Do the steps that are not done yet, and write the page of all.

    Raises:
        SystemExit: the folder holds the page of another model or of one that it does not name, a step is unknown or
            needs a text, a command failed.
    """
    names = options.steps.split(",")
    if unknown := [name for name in names if name not in STEPS]:
        raise SystemExit(f"--steps: {unknown[0]} is none of {', '.join(STEPS)}")
    if lacking := [name for name in names if "text" in STEPS[name].reads and not options.text]:
        raise SystemExit(f"the step {lacking[0]} reads books: give --text FILES, or other --steps")
    options.out.mkdir(parents=True, exist_ok=True)
    minutes = options.out / "minutes.jsonl"
    if others := {one.get("settings", {}).get("model", "a model without a name") for one in done(minutes)} - {
        options.model
    }:
        raise SystemExit(f"{options.out} holds the page of {others.pop()}: give another --out")
    for name in names:
        step, record = STEPS[name], options.out / f"{name}.jsonl"
        settings = step.settings(options)
        last = next((one["settings"] for one in reversed(done(minutes)) if one["step"] == name), None)
        if record.exists() and last == settings:
            print(f"{name}: done before, with the same settings ({record})")
            continue
        begun, before = time.monotonic(), spent()
        step.work(options.out, record, **settings)
        took = {"step": name, "settings": settings}
        took |= {"minutes": (time.monotonic() - begun) / 60, "processor": (spent() - before) / 60}
        with minutes.open("a", encoding="utf-8") as file:
            file.write(json.dumps(took) + "\n")
        print(f"{name}: {took['minutes']:.1f} minutes, {took['processor']:.1f} of processor time", flush=True)
    paths = [options.out / f"{name}.jsonl" for name in STEPS]
    found = [one for path in paths if path.exists() for one in read_records(path)]
    (options.out / "page.html").write_text(render(evaluation_page(found)), encoding="utf-8")
    print(f"page: {options.out / 'page.html'}")


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--text", nargs="+", default=[], help="books, for the steps length and methods")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lengths", default="1024,2048,4096,8192,16384,32768")
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--to", type=int, default=65_536)
    parser.add_argument(
        "--measured", type=int, default=8192, help="a window has twice as many tokens, or a quarter more"
    )
    parser.add_argument("--needles", type=int, default=0)
    parser.add_argument("--steps", default=",".join(STEPS))
    return parser


if __name__ == "__main__":
    publish(arguments().parse_args())
