"""What masked-LM and next-sentence pre-training is worth: an encoder probed and tuned with it and without it.

python -m bench.pretraining --all [--device cuda] --out results.jsonl; python -m bench.pretraining --table results.jsonl

A small BERT reads books (masked tokens and pairs). Then film reviews (SST-2: two classes) and questions (TREC: six) are
classified from all labelled sentences or from 500, in two ways:

- frozen: a linear classifier over the mean of the states that the encoder makes of a sentence (a probe, Alain and
  Bengio 2017), beside the same over encoders that never learned, with normal weights and with weights drawn as
  pre-training draws its own;
- tuned: the whole encoder learns, beside the same model from random weights at the same updates, rows, order and rates.
  It learns from four fifths of the labelled sentences; each arm stands with the rate that is better on the other fifth.

Accuracies are on sentences that no arm saw and by which nothing was chosen. `--work` keeps the encoders, and a second
run begins with them.
"""

import argparse
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.seeds import SEEDS, Place, latest, main, prepared, spread
from handscroll.data.batch import collate
from handscroll.data.labelled import AtFirst, Labelled
from handscroll.data.sources import TokenSource
from handscroll.lm import LM, load
from handscroll.models.model import Model
from handscroll.models.new import About, new_model
from handscroll.nn.init import initialise
from handscroll.objectives.classify import Classify
from handscroll.text.readers import Document
from handscroll.text.tokenizer import Tokenizer
from handscroll.text.training import TokenizerConfig
from handscroll.train.recipe import Recipe

BOOKS = (
    "austen_emma",
    "austen_pride_and_prejudice",
    "bronte_jane_eyre",
    "alcott_little_women",
    "london_martin_eden",
    "wharton_the_house_of_mirth",
    "washington_up_from_slavery",
    "stoker_dracula",
    "twain_adventures_of_huckleberry_finn",
)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LENGTH = 128
SIZES = {"width": 256, "layers": 4, "heads": 4, "mlp_width": 1024}
# Vocabulary, tokens of pre-training and rows of an update: for one core, and for a GPU.
CPU, GPU = (280, 2.4e6, 8), (2048, 40e6, 128)
NEW: dict[str, Any] = {"family": "bert"}
LABELS = {"sst2": ("0", "1"), "trec": ("0", "1", "2", "3", "4", "5")}
FEW = 500
TASKS = {"trec": 250e3, f"trec-{FEW}": 60e3, "sst2": 250e3, f"sst2-{FEW}": 60e3}  # tokens read, three times it on a GPU
ROWS = 8
RATES = (3e-4, 1e-3)
HELD_OUT = 900  # questions; SST-2 has a file of its own
ARMS = ("random weights", "pre-trained")
NEVER_LEARNED = {"random weights": "normal", "random weights that begin near": "mimetic"}
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)  # of the penalty of a linear classifier; chosen on a fifth of what it learns from


def files(data: str) -> list[str]:
    return [f"{data}/text_en/books_train/{book}.txt" for book in BOOKS]


def made(options: argparse.Namespace) -> tuple[Tokenizer, TokenSource]:
    """Tokenizer, tokens and labelled files, in the work folder; sentences longer than a row are left out of all."""
    folder, data = prepared_folder(options), Path(options.data) / "cls_en"
    config = TokenizerConfig(vocab=_vocab(options), special=SPECIAL)
    tokenizer, text = prepared(folder, files(options.data), config)
    if not (folder / "sst2-held.tsv").exists():
        lines = _fitting(data / "trec_train.tsv", tokenizer)
        parts = {"trec": (lines[:-HELD_OUT], lines[-HELD_OUT:])}
        parts["sst2"] = _fitting(data / "sst2_train.tsv", tokenizer), _fitting(data / "sst2_dev.tsv", tokenizer)
        for task, (learned, held) in parts.items():
            for name, lines in ((task, learned), (f"{task}-{FEW}", learned[:FEW])):
                fifth = len(lines) // 5
                kinds = {"": lines, "-choose": lines[:fifth], "-learn": lines[fifth:]}
                for kind, some in kinds.items():
                    (folder / f"{name}{kind}.tsv").write_text("".join(some), encoding="utf-8")
            (folder / f"{task}-held.tsv").write_text("".join(held), encoding="utf-8")
    return tokenizer, text


def _vocab(options: argparse.Namespace) -> int:
    return (CPU if options.device == "cpu" else GPU)[0]


def prepared_folder(options: argparse.Namespace) -> Path:
    """Where the tokenizer of a device, and the sentences that fit into its rows, are kept."""
    return Path(options.work) / f"pretraining-{_vocab(options)}"


def _fitting(path: Path, tokenizer: Tokenizer) -> list[str]:
    """The lines of a file (label, tab, text) whose text fits into a row."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    texts = [Document(line.partition("\t")[2].rstrip("\n"), "") for line in lines]
    short = TokenSource.build(texts, tokenizer).lengths <= LENGTH
    print(
        f"{path.name}: {len(lines) - int(short.sum())} of {len(lines)} sentences are longer than {LENGTH} tokens",
        flush=True,
    )
    return [line for line, fits in zip(lines, short, strict=True) if fits]


def pretraining(options: argparse.Namespace, seed: int, place: Place) -> Recipe:
    _, tokens, rows = GPU if place.cuda else CPU
    steps = place.steps(tokens, rows * LENGTH)
    values = {
        "seed": seed,
        "threads": 1,
        "text": {"files": files(options.data)},
        "model": NEW
        | {"initialise": "mimetic", "sizes": SIZES | {"context": LENGTH, "pooler": True, "following": True}},
        "objective": {
            "name": "masked",
            "rate": 0.3,
        },  # twice the paper's: more to learn from a token (Wettig et al. 2023)
        "data": {"pairs": {"kind": "pairs", "pairs": 2}, "text": {"kind": "text", "sampling": "cyclic"}},
        "stages": [{"length": LENGTH, "rows": rows, "steps": steps, "mix": {"pairs": 0.5, "text": 0.5}}],
        "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05},
        "schedule": {"name": "cosine", "warmup": max(1, steps // 20), "final": 0.05},
        "loop": {"save_every": max(1, steps // 10), "precision": "bfloat16" if place.cuda else "float32"},
        "memory": {"strategy": "plain"},
    }
    return Recipe.parse(values, "bench")


def tuning(options: argparse.Namespace, seed: int, place: Place, task: str, rate: float, start: str | None) -> Recipe:
    labels = LABELS[task.partition("-")[0]]
    steps = place.steps(TASKS[task] * (3 if place.cuda else 1), ROWS * LENGTH)
    sizes = SIZES | {"context": LENGTH}
    values = {
        "seed": seed,
        "threads": 1,
        "text": {"files": files(options.data)},
        "model": {"path": start} if start else NEW | {"sizes": sizes},
        "objective": "classify",
        "data": {task: {"kind": "labelled", "file": f"{prepared_folder(options)}/{task}-learn.tsv", "labels": labels}},
        "stages": [{"length": LENGTH, "rows": ROWS, "steps": steps, "mix": {task: 1.0}}],
        "optimizer": {"name": "adamw", "lr": rate, "weight_decay": 0.01},
        "schedule": {"name": "cosine", "warmup": max(1, steps // 10)},
        "regularise": {"dropout": 0.1},
        "loop": {"save_every": max(1, steps // 10)},
        "memory": {"strategy": "plain"},
    }
    return Recipe.parse(values, "bench")


@torch.no_grad()
def accuracy(model: Model, tokenizer: Tokenizer, path: str, labels: tuple[str, ...]) -> float:
    """Share of the sentences of a file that get their label: one epoch of its rows."""
    rows, objective = Labelled.read(path, labels, tokenizer, LENGTH, 0), Classify.of(model)
    right = count = 0.0
    for row, _ in AtFirst(rows):
        batch = collate([row]).to(model.device)
        marks = batch.marks()
        hidden = model.hidden(model.embed(batch.tokens, marks), marks, objective.mask(model, marks))
        found, number = objective.loss(model, hidden, batch).metrics["accuracy"]
        right, count = right + found, count + number
        if count >= len(rows.source):
            return right / count
    raise AssertionError("rows have no end")


def linear(lm: LM, learned: Path, held: Path) -> float:
    """Accuracy on `held` of a linear classifier that learned from `learned`, over the frozen encoder's mean states."""
    (seen, labels), (new, wanted) = (_features(lm, path) for path in (learned, held))
    part = len(labels) // 5
    scores = {
        strength: _share(_regression(seen[part:], labels[part:], strength), seen[:part], labels[:part])
        for strength in STRENGTHS
    }
    best = max(STRENGTHS, key=lambda strength: scores[strength])
    return _share(_regression(seen, labels, best), new, wanted)


def _features(lm: LM, path: Path) -> tuple[Tensor, Tensor]:
    lines = [line.partition("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    return lm.embed([text for _, _, text in lines], normalise=False).double(), torch.tensor(
        [int(x) for x, _, _ in lines]
    )


def _regression(x: Tensor, labels: Tensor, strength: float) -> Callable[[Tensor], Tensor]:
    """Logistic regression over standardised features, with a penalty of strength / 2 times the squared weights."""
    mean, deviation = x.mean(0), x.std(0).clamp(min=1e-9)
    layer = torch.nn.Linear(x.shape[1], int(labels.max()) + 1, dtype=x.dtype)
    for parameter in layer.parameters():
        torch.nn.init.zeros_(parameter)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        found = torch.nn.functional.cross_entropy(layer((x - mean) / deviation), labels)
        found = found + strength / 2 * layer.weight.square().sum()
        found.backward()
        return found

    optimizer.step(loss)  # type: ignore[arg-type]
    return lambda new: layer((new - mean) / deviation)


def _share(classify: Callable[[Tensor], Tensor], x: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((classify(x).argmax(dim=1) == labels).double().mean())


def encoder(recipe: Recipe, options: argparse.Namespace, seed: int, place: Place) -> str:
    """Folder of the encoder that a recipe makes, made unless it is there."""
    folder = Path(options.work) / f"encoder-{seed}-{options.device}-{recipe.steps}"
    if not folder.exists():
        tokenizer, text = made(options)
        part = place.folder / "encoder"
        with place.fit(recipe, tokenizer, text, "before") as model:
            LM(model, tokenizer, str(folder)).save(part)
            part.rename(folder)  # whole, or not there
    return str(folder)


def work(options: argparse.Namespace, part: str, seed: int, place: Place) -> None:
    tokenizer, text = made(options)
    recipe = pretraining(options, seed, place)
    start = encoder(recipe, options, seed, place)
    stage, sizes, folder = recipe.stages[0], recipe.model.sizes, prepared_folder(options)
    about = {"seed": seed, "tokens": stage.steps * stage.rows * LENGTH, "width": sizes["width"]}
    about["layers"] = sizes["layers"]
    never = {}
    for arm, start_from in NEVER_LEARNED.items():
        model = new_model("bert", sizes, About(tokenizer, LENGTH))
        initialise(model, start_from, SIZES["layers"], torch.Generator().manual_seed(seed))
        never[arm] = LM(model.to(options.device).eval(), tokenizer, arm)
    for arm, lm in {**never, ARMS[1]: load(start, options.device)}.items():
        for task in TASKS:
            this = {"probe": f"{task}, frozen", "arm": arm, "rate": 0, "updates": 0} | about
            if not place.known(this):
                found = linear(lm, folder / f"{task}.tsv", folder / f"{task.partition('-')[0]}-held.tsv")
                place.say(this | {"accuracy": found})
    for task in TASKS:
        whole = task.partition("-")[0]
        for rate in RATES:
            for arm in ARMS:
                again = tuning(options, seed, place, task, rate, start if arm == ARMS[1] else None)
                this = {"probe": f"{task}, tuned", "arm": arm, "rate": rate, "updates": again.steps} | about
                if place.known(this):
                    continue
                with place.fit(again, tokenizer, text, f"{task}-{rate}-{arm}".replace(" ", "-")) as model:
                    chosen, found = (
                        accuracy(model, tokenizer, str(folder / f"{name}.tsv"), LABELS[whole])
                        for name in (f"{task}-choose", f"{whole}-held")
                    )
                    place.say(this | {"chosen": chosen, "accuracy": found})


def table(results: Iterable[dict[str, Any]]) -> None:
    """Accuracies by task and arm of each size of pre-training: each seed, mean and deviation, at the rate that a fifth
    of the training rows chose. Tuned models of which no such choice is known are left out."""
    names = ("width", "layers", "tokens", "probe", "arm", "rate", "seed")
    kept = (one for one in results if "probe" in one and ("chosen" in one or not one["rate"]))
    groups: dict[tuple[int, int, int], list[dict[str, Any]]] = {}
    for one in latest(kept, names):
        groups.setdefault((one["width"], one["layers"], one["tokens"]), []).append(one)
    for (width, layers, tokens), found in sorted(groups.items()):
        print(f"\n{layers} layers of {width}, pre-trained on {tokens / 1e6:.1f} M tokens\n")
        print("| task | arm | updates | rate | " + " | ".join(f"seed {seed}" for seed in SEEDS) + " | mean |")
        print("|---|---|---|---|" + "---|" * (len(SEEDS) + 1))
        for task, arm in dict.fromkeys((one["probe"], one["arm"]) for one in found):
            rates: dict[float, list[dict[str, Any]]] = {}
            for one in found:
                if (one["probe"], one["arm"]) == (task, arm):
                    rates.setdefault(one["rate"], []).append(one)
            rate = max(rates, key=lambda rate: statistics.mean(one.get("chosen", 0) for one in rates[rate]))
            by_seed = {one["seed"]: 100 * one["accuracy"] for one in rates[rate]}
            each = " | ".join(f"{by_seed[seed]:.1f}" if seed in by_seed else "" for seed in SEEDS)
            learned = f"{rates[rate][0]['updates']} | {rate:g}" if rate else " | "
            print(f"| {task} | {arm} | {learned} | {each} | {spread(list(by_seed.values()), '.1f')} |")


if __name__ == "__main__":
    main(__doc__, ("probe",), made, work, table)
