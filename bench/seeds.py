"""Experiments over seeds, one process and one thread for each (part, seed): what `bench.pretraining` and
`bench.recurrent` share.

A process appends one JSON line a result to --out and prints how far it is; `--all` starts every pair, `--processes` at
a time; `--table FILE` prints the tables. Past `--minutes`, if they are given, a process stops with the results it has;
the same command goes on from its last checkpoint, and makes no result again that stands in --out.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.kept import claim
from handscroll.data.sources import TokenSource
from handscroll.models.model import Decoder
from handscroll.text.readers import read
from handscroll.text.tokenizer import Tokenizer
from handscroll.text.training import TokenizerConfig, train_tokenizer
from handscroll.train.loop import Callbacks, train
from handscroll.train.recipe import Recipe
from handscroll.train.run import Run
from handscroll.train.start import build_model
from handscroll.train.streams import row_streams, updates

SEEDS = (1, 2, 3)
AGAIN = "the same command goes on from its last checkpoint"


class OutOfTime(Exception):
    """The minutes are over."""


@dataclass
class Place:
    """Where and how long a process works: its folder, device and end, and the share of the full budget it spends.

    `about` is noted in every result: what tells it from one of another machine or other texts.
    """

    folder: Path
    device: str
    end: float
    scale: float
    out: Path
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def cuda(self) -> bool:
        return self.device != "cpu"

    def steps(self, tokens: float, update: int) -> int:
        """Updates of `update` tokens that make `tokens`, scaled."""
        return max(2, round(self.scale * tokens / update))

    def say(self, result: dict[str, Any]) -> None:
        """Keep a result."""
        line = json.dumps(result | self.about)
        with self.out.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def known(self, settings: dict[str, Any]) -> bool:
        """Whether a result of these settings was kept."""
        wanted = (settings | self.about).items()
        return any(wanted <= {key: one.get(key) for key in dict(wanted)}.items() for one in results(self.out))

    @contextmanager
    def fit(self, recipe: Recipe, tokenizer: Tokenizer, text: TokenSource, name: str) -> Iterator[Decoder]:
        """The model of a recipe, trained here by the package's own loop; a run that was stopped goes on. Its checkpoint
        is removed at the end of the block, in which the result is kept.

        Raises:
            OutOfTime: between two updates. SystemExit: it was stopped, or the run in its folder has another recipe.
        """
        folder = self.folder / name
        claim(folder, {"recipe": recipe.model_dump(mode="json"), **self.about})
        torch.manual_seed(recipe.seed)
        model = build_model(recipe, tokenizer).to(self.device)
        started = last = time.monotonic()

        def watch(record: dict[str, Any]) -> None:
            nonlocal last
            if time.time() > self.end:
                raise OutOfTime(f"{name}: after {record['step']} of {recipe.steps} updates")
            if time.monotonic() - last > 20 or record["step"] == recipe.steps:
                last = time.monotonic()
                speed = record["tokens"] / (last - started)
                print(
                    f"{name}: {record['step']}/{recipe.steps} loss {record['loss']:.3f} {speed:.0f} tok/s", flush=True
                )

        run = Run(
            folder,
            model,
            recipe.optimizer,
            recipe.schedule,
            recipe.loop_settings(),
            recipe.memory,
            recipe.regularise,
        )
        progress = train(
            run,
            updates(recipe, row_streams(recipe, text, tokenizer), tokenizer, model),
            recipe.learned(model),
            Callbacks(on_record=watch),
        )
        if progress.step < recipe.steps:
            raise SystemExit(f"{name}: stopped after {progress.step} of {recipe.steps} updates; {AGAIN}")
        yield model.eval()
        shutil.rmtree(folder)
        folder.with_name(f"{name}.settings.json").unlink()


def results(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of results, if there is one."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def latest(found: Iterable[dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """The last result of each combination of values, so that none counts twice that was made twice."""
    return list({tuple(one[name] for name in names): one for one in found}.values())


def prepared(folder: Path, files: Sequence[str], settings: TokenizerConfig) -> tuple[Tokenizer, TokenSource]:
    """Tokenizer and tokens of the training text, made once in `folder`.

    Raises:
        SystemExit: those in the folder are of other files or another tokenizer.
    """
    claim(folder / "text", {"files": list(files), "tokenizer": settings.model_dump(mode="json")})
    if not (folder / "text" / "index.json").exists():
        tokenizer = train_tokenizer((document.text for document in read(files)), settings)
        tokenizer.save(folder / "tokenizer")
        TokenSource.build(read(files), tokenizer).save(folder / "text")
    return Tokenizer.load(folder / "tokenizer"), TokenSource.load(folder / "text")


def spread(values: Sequence[float], form: str = ".3f") -> str:
    """Mean and standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):{form}} ± {deviation:{form}}"


def main(
    doc: str | None,
    parts: Sequence[str],
    prepare: Callable[[argparse.Namespace], object],
    work: Callable[[argparse.Namespace, str, int, Place], None],
    table: Callable[[Iterable[dict[str, Any]]], None],
) -> None:
    """The command line of an experiment: `prepare` once, then `work` for each part and seed, then `table`."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data", help="folder of the texts")
    parser.add_argument("--work", default="runs/seeds", help="folder of what is made on the way")
    parser.add_argument("--out", default="results.jsonl")
    parser.add_argument("--table", metavar="FILE", help="print the tables of a file of results, and nothing else")
    parser.add_argument("--all", action="store_true", help="every part and seed")
    parser.add_argument("--part", choices=parts, default=parts[0])
    parser.add_argument("--seed", type=int, default=SEEDS[0])
    parser.add_argument("--processes", type=int, default=len(parts) * len(SEEDS))
    parser.add_argument("--minutes", type=float, default=0.0, help="0: no limit")
    parser.add_argument("--end", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the tokens; small numbers for a trial")
    options = parser.parse_args()
    if options.table:
        table(results(Path(options.table)))
        return
    end = options.end or (time.time() + 60 * options.minutes if options.minutes else float("inf"))
    if options.all:
        prepare(options)
        failed = _all(options, [(part, seed) for seed in SEEDS for part in parts], end)
        table(results(Path(options.out)))
        if failed:
            sys.exit(f"not finished: {', '.join(failed)}; the same command goes on with them")
        return
    torch.set_num_threads(1)
    folder = Path(options.work) / f"{options.part}-{options.seed}-{options.device}"
    about = {"device": options.device, "data": options.data}
    place = Place(folder, options.device, end, options.scale, Path(options.out), about)
    try:
        work(options, options.part, options.seed, place)
    except OutOfTime as late:
        sys.exit(f"out of time, {late}; {AGAIN}")


def _all(options: argparse.Namespace, jobs: list[tuple[str, int]], end: float) -> list[str]:
    """Every job in a process of its own, so many at a time; the names of those that failed."""
    same = ["--data", options.data, "--work", options.work, "--out", options.out, "--device", options.device]
    module = sys.modules["__main__"].__spec__.name  # type: ignore[union-attr]
    command = [sys.executable, "-m", module, *same, "--scale", str(options.scale), "--end", str(end)]
    waiting, running, failed = list(jobs), {}, []
    while waiting or running:
        while waiting and len(running) < options.processes:
            part, seed = waiting.pop(0)
            one = [*command, "--part", part, "--seed", str(seed)]
            running[f"{part} {seed}"] = subprocess.Popen(one, env=os.environ | {"OMP_NUM_THREADS": "1"})
        time.sleep(0.5)
        ended = {name: process for name, process in running.items() if process.poll() is not None}
        failed += [f"{name} (status {process.returncode})" for name, process in ended.items() if process.returncode]
        running = {name: process for name, process in running.items() if name not in ended}
    return failed
