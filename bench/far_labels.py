"""Labels whose evidence lies anywhere in a long document: whole reading against a cut and against blocks.

python -m bench.far_labels ../shared/data --minilm FOLDER [--only whole,cut,mean,attention]

A document is the log of a help desk: calls of four real questions (TREC), 80 in all, some 900 tokens. Most calls ask
for descriptions and things. The labels say which of three kinds of calls are in it besides: persons, places, numbers;
each kind is there in half of the logs, as one call at a random place. All systems start from MiniLM tuned on the single
training questions; the questions of the test logs are in no training log.

whole: the model lengthened to 1,024 tokens by `extend`. cut: the first 512 tokens, cut here and counted; the product
never does so. mean, attention: blocks of 256 tokens, joined by their mean or by a learned weight. What is done stays in
--work, so a run that was stopped goes on with the same command; other settings need another --work.
"""

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import handscroll
from bench.kept import claim
from handscroll.data.table.read import read_table
from handscroll.data.table.split import split
from handscroll.extend.extend import extension
from handscroll.metrics.scores import mean, measured
from handscroll.metrics.table import Settings, compare, measure
from handscroll.tasks.finetune import Options, finetune
from handscroll.tasks.recipe import TuningRecipe

COMMON, RARE = ("0", "1"), {"3": "person", "4": "place", "5": "number"}
CALLS, EACH, CUT, WHOLE, BLOCK = 20, 4, 512, 1024, 256
SYSTEMS = {
    "cut": f"the first {CUT} tokens",
    "mean": f"blocks of {BLOCK}, mean",
    "attention": f"blocks of {BLOCK}, learned weight",
    "whole": f"whole, lengthened to {WHOLE:,}",
}
# This answer finds all and is half wrong. A system that has learned anything scores above it.
EVERY = "all three labels, whatever the log says"
SINGLE = {"way": "full", "lr": 1.5e-4, "epochs": 2, "layer_decay": 0.8, "dropout": 0.1}
# At 1.5e-4 the long texts may teach nothing, and 80 updates are too few (docs/benchmarks.md).
LOGS = {"way": "full", "lr": 7e-5, "batch": 8, "dropout": 0.1}


@dataclass(frozen=True)
class Log:
    """A log, its labels, and the first character of each label's call."""

    text: str
    labels: dict[str, int]

    def row(self) -> dict[str, Any]:
        return {"text": self.text, "label": sorted(self.labels), "places": self.labels}


def written(questions: dict[str, list[str]], count: int, seed: int) -> list[Log]:
    """`count` logs; a question stands in a log once."""
    draw, made = random.Random(seed), []
    for _ in range(count):
        kinds = [kind for kind in RARE if draw.random() < 0.5]
        calls = [(kind, draw.sample(questions[kind], EACH)) for kind in kinds]
        common = {kind: draw.sample(questions[kind], len(questions[kind])) for kind in COMMON}
        for _ in range(CALLS - len(kinds)):
            kind = draw.choice(COMMON)
            calls.append((kind, [common[kind].pop() for _ in range(EACH)]))
        draw.shuffle(calls)
        text, labels = "", {}
        for kind, asked in calls:
            if kind in RARE:
                labels[RARE[kind]] = len(text)
            text += " ".join(asked) + "\n"
        made.append(Log(text, labels))
    return made


def settle(options: argparse.Namespace, names: Sequence[str]) -> None:
    """Claim the logs, the start and the systems that are asked for or there, which all stand in one table.

    Raises:
        SystemExit: some of it was made under other settings.
    """
    work, start = options.work, {"seed": options.seed, "minilm": options.minilm}
    claim(work / "test.jsonl", {"logs": options.logs, "tests": options.tests, "seed": options.seed})
    claim(work / "single", start)
    for name in SYSTEMS:
        if name in names or (work / name).exists():
            claim(work / name, start | {"epochs": options.epochs})
    claim(work / "longer", start)


def prepare(options: argparse.Namespace) -> None:
    """The single questions of training, and the logs of both sides."""
    work = options.work
    if (work / "test.jsonl").exists():
        return
    work.mkdir(parents=True, exist_ok=True)
    table = read_table([str(options.data / "cls_en/trec_train.tsv")], ("label", "text"))
    for name, part in split(table, {"test": 0.3}, 0, "label").tables.items():
        questions: dict[str, list[str]] = {}
        for record in part:
            questions.setdefault(str(record.get("label")), []).append(record.get("text"))
        logs = written(questions, options.logs if name == "train" else options.tests, options.seed)
        rows = [{"text": one, "label": kind} for kind, asked in questions.items() for one in asked]
        _write(work / f"single-{name}.jsonl", rows)
        _write(work / f"{name}.jsonl", [log.row() for log in logs])


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def started(options: argparse.Namespace) -> Path:
    """MiniLM tuned on single questions."""
    run = options.work / "single"
    if not (run / "model" / "task.json").exists():
        files = [str(options.work / f"single-{name}.jsonl") for name in ("train", "test")]
        _tuned(options, run, str(options.minilm), {}, SINGLE, files)
    return run / "model"


def _tuned(options: argparse.Namespace, run: Path, model: str, task: Any, how: Any, files: list[str]) -> None:
    values = {"task": {"name": "classify", **task}, "model": model, "threads": options.threads}
    values["tuning"] = {"seed": options.seed, **how}
    values["data"] = {"train": (files[0],), "test": (files[1],), "held_out": 0.0}
    if not finetune(TuningRecipe.parse(values, "bench"), run, Options(show=partial(print, flush=True))).scores:
        raise SystemExit("stopped; the same command goes on")


def system(options: argparse.Namespace, name: str) -> None:
    """Tune one system and let it read the test logs."""
    work, start = options.work, started(options)
    run, files = work / name, [work / "train.jsonl", work / "test.jsonl"]
    if (run / "test.predictions.jsonl").exists():
        return
    model, task = start, {"several": True}
    if name == "whole":
        model = work / "longer"
        if not (model / "config.json").exists():
            extension(handscroll.load(start), WHOLE, "extrapolate").lm.save(model)
    elif name == "cut":
        files = [_cut(handscroll.load(start), path) for path in files]
    else:
        task |= {"blocks": BLOCK, "pooling": name}
    _tuned(options, run, str(model), task, {**LOGS, "epochs": options.epochs}, [str(path) for path in files])


def _cut(lm: handscroll.LM, path: Path) -> Path:
    """The rows of a file with their texts cut at 512 tokens, counted."""
    rows, lost, all_ = _rows(path), 0, 0
    for row in rows:
        encoding = lm.tokenizer.encoding(row["text"])
        room = CUT - lm.tokenizer.room(False)
        all_ += len(encoding)
        lost += max(0, len(encoding) - room)
        if len(encoding) > room:
            row["text"] = row["text"][: encoding.offsets[room - 1][1]]
    print(f"{path.name}: {lost:,} of {all_:,} tokens were cut away")
    to = path.with_name(f"cut-{path.name}")
    _write(to, rows)
    return to


def table(options: argparse.Namespace) -> str:
    """The scores of what is done, and how many of the labels were found by where their evidence lies."""
    work, every = options.work, tuple(sorted(RARE.values()))
    logs, settings = _rows(work / "test.jsonl"), Settings(labels=every)
    said: dict[str, list[Sequence[str]]] = {"every": [every] * len(logs)}
    for name in SYSTEMS:
        if (path := work / name / "test.predictions.jsonl").exists():
            said[name] = [row["prediction"] for row in _rows(path)]
    truth, tokenizer = [log["label"] for log in logs], handscroll.load(work / "single" / "model").tokenizer
    lines = ["| system | micro F1 | found, evidence in the first 512 | found, evidence beyond | whole less this |"]
    lines.append("|---|---|---|---|---|")
    for name, given in said.items():
        scores = measure(["f1-micro"], truth, given, settings)["f1-micro"]
        found: dict[bool, list[int]] = {False: [], True: []}
        for log, labels in zip(logs, given, strict=True):
            for label, place in log["places"].items():
                beyond = len(tokenizer.encoding(log["text"][:place])) >= CUT
                found[beyond].append(label in labels)
        near, far = (measured(mean(np.array(found[beyond], dtype=float))) for beyond in (False, True))
        against = ""
        if name != "whole" and "whole" in said:
            one = compare(["f1-micro"], truth, said["whole"], given, settings)["f1-micro"]
            against = f"{one.difference.value:+.3f} {one.difference.interval}, p = {one.p:.3f}"
        lines.append(
            f"| {SYSTEMS.get(name, EVERY)} | {scores.value:.3f} {scores.interval} | {near} | {far} | {against} |"
        )
    return "\n".join(lines) + f"\n\n{len(logs)} test logs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the data sets")
    parser.add_argument("--minilm", required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--only", default=",".join(SYSTEMS))
    parser.add_argument("--logs", type=int, default=160, help="training logs")
    parser.add_argument("--tests", type=int, default=200, help="test logs")
    parser.add_argument("--epochs", type=float, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/far-labels"))
    options = parser.parse_args()
    names = options.only.split(",")
    if unknown := [name for name in names if name not in SYSTEMS]:
        parser.error(f"--only: {unknown[0]} is none of {', '.join(SYSTEMS)}")
    settle(options, names)
    prepare(options)
    for name in names:
        system(options, name)
    print(table(options))


if __name__ == "__main__":
    main()
