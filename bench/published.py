"""The published page of a model: RULER by length, its loss far beyond its trained length by every method, its needles.

python -m bench.published MODEL --text BOOKS --out FOLDER [--lengths 1024,2048,4096] [--samples 3] [--to 65536]
    [--measured 8192] [--steps doctor,ruler,length,methods]

Each step is a command of `handscroll` or, for the methods, `extend --compare` with one seed and one window; what it
read stays in FOLDER, so that a step that was stopped goes on. FOLDER/NAME.jsonl are its records, FOLDER/minutes.jsonl
the processor time and the wall time of each, and FOLDER/page.html the report of all of them. A step is done again with
other settings; what RULER read before stays.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from typing import Any

import handscroll
from handscroll.base.records import read_records
from handscroll.extend.compare import Comparing
from handscroll.extend.extend import extension
from handscroll.report import evaluation_page, render

STEPS = ("doctor", "ruler", "length", "methods")


def run(words: Sequence[str], well: Sequence[int] = (0,)) -> None:
    """A command of handscroll; what it prints is shown. `well`: exit statuses after which the page goes on."""
    print(f"$ handscroll {' '.join(words)}", flush=True)
    ended = subprocess.run([sys.executable, "-m", "handscroll", *words], check=False).returncode
    if ended not in well:
        raise SystemExit(f"the command above ended with status {ended}; the same command of this benchmark goes on")


def doctor(options: argparse.Namespace, record: Path) -> None:
    run(["doctor", options.model, "--skip", "reference", "--json", str(record)], well=(0, 1))  # 1: it found something


def ruler(options: argparse.Namespace, record: Path) -> None:
    settings = ["--lengths", options.lengths, "--samples", str(options.samples), "--out", str(options.out / "ruler")]
    run(["evaluate", "ruler", options.model, *settings, "--json", str(record)])


def length(options: argparse.Namespace, record: Path) -> None:
    settings = ["--lengths", options.lengths, "--rounds", "6", "--keep", str(options.out / "length.rounds")]
    texts = [word for one in options.text for word in ("--text", one)]
    run(["evaluate", "length", options.model, *settings, *texts, "--json", str(record)])


def methods(options: argparse.Namespace, record: Path) -> None:
    """Every method at `--to` tokens, and the model as it is, on the same window."""
    lm = handscroll.load(options.model)
    sizes = Comparing(seeds=1, windows=1, readings=8, needles=options.needles)
    settings: dict[str, Any] = {"text": options.text, "measured": options.measured, "compare": sizes}
    settings |= {"remember": options.out / "methods", "on_plan": lambda words: print(words, flush=True)}
    made = extension(lm, options.to, "auto", **settings)
    assert made.comparison is not None
    record.write_text("".join(f"{json.dumps(one)}\n" for one in made.comparison.records()), encoding="utf-8")
    for line in made.comparison.lines:
        found = "-" if line.found is None else f"{line.found:.0%}"
        name, trial = line.standing.candidate.name, line.standing
        print(
            f"{name:<40} {trial.long:8.3f} nats past the trained length, short text {trial.rise:+.3f}, needles {found}"
        )


WORK: dict[str, Callable[[argparse.Namespace, Path], None]] = {
    "doctor": doctor, "ruler": ruler, "length": length, "methods": methods
}  # fmt: skip


# The settings that each step reads: with others it is not done.
SETTINGS = {
    "doctor": ("model",),
    "ruler": ("model", "lengths", "samples"),
    "length": ("model", "lengths", "text"),
    "methods": ("model", "text", "to", "measured", "needles"),
}


def done(minutes: Path) -> list[dict[str, Any]]:
    """The steps that were done before."""
    lines = minutes.read_text(encoding="utf-8").splitlines() if minutes.exists() else []
    return [json.loads(line) for line in lines]


def spent() -> float:
    """Seconds of processor time of this process and those that it ran."""
    return sum(one.ru_utime + one.ru_stime for one in map(getrusage, (RUSAGE_SELF, RUSAGE_CHILDREN)))


def main() -> None:
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
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    minutes = options.out / "minutes.jsonl"
    steps = options.steps.split(",")
    if lacking := [name for name in steps if "text" in SETTINGS[name] and not options.text]:
        raise SystemExit(f"the step {lacking[0]} reads books: give --text FILES, or other --steps")
    others = {one["settings"]["model"] for one in done(minutes) if "settings" in one} - {options.model}
    if others:
        raise SystemExit(f"{options.out} holds the page of {others.pop()}: give another --out")
    for name in steps:
        record, settings = options.out / f"{name}.jsonl", {one: str(vars(options)[one]) for one in SETTINGS[name]}
        if record.exists() and any(one["step"] == name and one.get("settings") == settings for one in done(minutes)):
            print(f"{name}: done before, with the same settings ({record})")
            continue
        begun, before = time.monotonic(), spent()
        WORK[name](options, record)
        took = {
            "step": name,
            "settings": settings,
            "minutes": (time.monotonic() - begun) / 60,
            "processor": (spent() - before) / 60,
        }
        with minutes.open("a", encoding="utf-8") as file:
            file.write(json.dumps(took) + "\n")
        print(f"{name}: {took['minutes']:.1f} minutes, {took['processor']:.1f} of processor time", flush=True)
    paths = [options.out / f"{name}.jsonl" for name in STEPS]
    found = [one for path in paths if path.exists() for one in read_records(path)]
    (options.out / "page.html").write_text(render(evaluation_page(found)), encoding="utf-8")
    print(f"page: {options.out / 'page.html'}")


if __name__ == "__main__":
    main()
