"""Does augmentation help? MiniLM tuned on few rows, as they are and with changed copies of them, at equal updates.

python -m bench.augment ../shared/data --minilm FOLDER [--rows 300] [--seeds 0,1,2] [--only trec] [--fill BERT]
    [--translator MODEL]

Every way learns for as many updates as the rows alone take in `--epochs` epochs, so that what is compared is the rows
and not the time. The test rows are those of `bench.labels`. `--fill` names an encoder with a masked-LM head for the way
"replace"; `--translator` names a model that chats, or that was tuned for the task translate, for the way "translate",
which makes one copy of a row where the others make two, since it takes the likeliest translation. What is done stays in
--work, so a run that was stopped goes on with the same command; other settings need another --work.
"""

import argparse
import json
import math
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from bench.kept import claim
from bench.labels import DATA, FULL, prepare
from handscroll.metrics.scores import mean, measured
from handscroll.tasks.finetune import Options, finetune
from handscroll.tasks.recipe import TuningRecipe

BATCH = 32
WAYS: dict[str, dict[str, Any] | None] = {
    "as they are": None,
    "swap": {"way": "swap", "share": 0.1, "copies": 2},
    "delete": {"way": "delete", "share": 0.1, "copies": 2},
    "replace": {"way": "replace", "share": 0.15, "copies": 2},
    "translate": {"way": "translate"},
}
MODELS = {"replace": "fill", "translate": "translator"}  # way -> the option that names its model


def folder(options: argparse.Namespace, name: str, way: str, seed: int) -> Path:
    """The run folder of one tuning."""
    return options.work / name / f"augment-{way.replace(' ', '-')}-{options.rows}-{seed}"


def settle(options: argparse.Namespace, names: Sequence[str], ways: Sequence[str], seeds: Sequence[int]) -> None:
    """Claim every run before the first one begins.

    Raises:
        SystemExit: one of them was begun under other settings.
    """
    settings = {"minilm": options.minilm, "epochs": options.epochs}
    for name, way, seed in product(names, ways, seeds):
        model = {MODELS[way]: getattr(options, MODELS[way])} if way in MODELS else {}
        claim(folder(options, name, way, seed), settings | model)


def right(options: argparse.Namespace, name: str, way: str, seed: int) -> list[bool]:
    """Which test rows a model answers right that was tuned on few rows in this way."""
    train, test = prepare(DATA[name], options.work / name, options.data)
    run = folder(options, name, way, seed)
    said = run / "test.predictions.jsonl"
    if not said.exists():
        augment = WAYS[way]
        if way in MODELS:
            augment = {**(augment or {}), "model": getattr(options, MODELS[way])}
        steps = math.ceil(options.rows / BATCH) * options.epochs
        how = {**FULL, "way": "full", "batch": BATCH, "steps": steps, "seed": seed}
        data: dict[str, Any] = {"train": (str(train),), "test": (str(test),), "most": options.rows, "held_out": 0.0}
        data |= {"augment": augment} if augment else {}
        values = {"task": {"name": "classify"}, "model": str(options.minilm), "threads": options.threads}
        recipe = TuningRecipe.parse(values | {"tuning": how, "data": data}, "bench")
        if not finetune(recipe, run, Options(show=partial(print, flush=True))).scores:
            raise SystemExit("stopped; the same command goes on")
    rows = [json.loads(line) for line in said.read_text(encoding="utf-8").splitlines()]
    return [row["prediction"] == row["reference"] for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the data sets")
    parser.add_argument("--minilm", required=True, help="folder of all-MiniLM-L6-v2, or another encoder")
    parser.add_argument("--fill", default="", help="encoder with a masked-LM head, for the way 'replace'")
    parser.add_argument("--translator", default="", help="model that translates, for the way 'translate'")
    parser.add_argument("--only", default="trec", help=f"data sets: {', '.join(DATA)}")
    parser.add_argument("--rows", type=int, default=300, help="training rows")
    parser.add_argument("--epochs", type=int, default=6, help="of the rows as they are")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/labels"))
    options = parser.parse_args()
    names, seeds = options.only.split(","), [int(seed) for seed in options.seeds.split(",")]
    ways = [way for way in WAYS if way not in MODELS or getattr(options, MODELS[way])]
    for way in (way for way in MODELS if way not in ways):
        print(f"{way}: left out, since --{MODELS[way]} names no model")
    settle(options, names, ways, seeds)
    for name in names:
        plain = None
        print(f"{DATA[name].title}, {options.rows} rows, {len(seeds)} seeds, accuracy and its gain", flush=True)
        for way in ways:
            scores = np.mean([right(options, name, way, seed) for seed in seeds], axis=0)  # of each row, over the seeds
            plain = scores if plain is None else plain
            gain = "" if way == "as they are" else f"  gain {measured(mean(scores - plain, share=False))}"
            print(f"{way:12} {measured(mean(scores))}{gain}", flush=True)


if __name__ == "__main__":
    main()
