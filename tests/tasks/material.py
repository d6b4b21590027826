"""A tiny encoder and a tiny decoder as folders, and a table of texts whose label a model can learn."""

import csv
import json
from pathlib import Path

import torch

from handscroll.models.weights import save_model
from handscroll.tasks.recipe import TuningRecipe
from tests.models.heads import PLAIN, words

FRAME = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "w1", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"w1": {"id": "w1", "ids": [1], "tokens": ["w1"]}},
}


def tiny(folder: Path, family: str = "bert") -> Path:
    """A folder with a random model of a family, and a tokenizer of words."""
    save_model(PLAIN[family].build(torch.float32), folder)
    (folder / "tokenizer.json").write_text(words(FRAME), encoding="utf-8")
    return folder


def table(path: Path, count: int = 48, labels: tuple[str, ...] = ("bad", "good"), **more: str) -> Path:
    """A CSV file whose label is told by the first word."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", *more])
        for number in range(count):
            which = number % len(labels)
            writer.writerow([f"w{20 + which} w{30 + number % 7} w{40 + number % 11}", labels[which], *more.values()])
    return path


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def recipe(model, data, tuning=None, task=None, **more) -> TuningRecipe:
    """A short tuning run of all weights; `tuning` and `task` are further settings, `more` is of the data."""
    how = {"way": "full", "epochs": 6, "batch": 8, "lr": 5e-3, "memory": {"strategy": "plain"}} | (tuning or {})
    values = {"task": {"name": "classify"} | (task or {}), "model": str(model), "tuning": how, "threads": 1}
    return TuningRecipe.parse(values | {"data": {"train": (str(data),)} | more}, "test")
