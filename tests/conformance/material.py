"""Rows that a form learns from, made as a run makes them: its objectives' rows, over a tokenizer with every role."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor

from handscroll.data.batch import Batch, collate
from handscroll.data.row import IGNORED, Row
from handscroll.data.sources import TokenSource
from handscroll.models.encoder_decoder import EncoderDecoder
from handscroll.models.model import Model
from handscroll.nn.mask import SameSegment
from handscroll.objectives.objective import Objective
from handscroll.objectives.settings import OBJECTIVES, ObjectiveSettings, objective_from
from handscroll.text.tokenizer import Tokenizer
from handscroll.train.rows import RowData

LENGTH = 64  # of a row
NAMES = ["<pad>", "<s>", "</s>", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[gMASK]", "[sop]", "[eop]"]
NAMES += [f"<extra_id_{number}>" for number in range(10)]
WORDS = [f"w{number}" for number in range(len(NAMES), 97)]
LABELS = ("bad", "good")


@cache
def tokenizer() -> Tokenizer:
    """97 words, the first ones special."""
    vocabulary = {name: number for number, name in enumerate([*NAMES, *WORDS])}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    special = [{"id": number, "content": name, "special": True, **flags} for number, name in enumerate(NAMES)]
    spec = {
        "version": "1.0",
        "added_tokens": special,
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    }
    return Tokenizer(json.dumps(spec))


def gguf_tokens() -> dict[str, Any]:
    """The keys of a tokenizer of 97 words in a GGUF file."""
    tokens = {"model": "llama", "tokens": [*NAMES, *WORDS], "scores": [0.0] * 97, "token_type": [3] * 3 + [1] * 94}
    tokens |= {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 3, "padding_token_id": 0}
    return {f"tokenizer.ggml.{key}": value for key, value in tokens.items()}


@cache
def source() -> TokenSource:
    draw = np.random.default_rng(0)
    sizes = (21, 9, 30, 14, 40, 17, 26, 11, 35, 19)
    return TokenSource([draw.integers(len(NAMES), 97, size) for size in sizes])


@cache
def _labelled() -> str:
    draw = np.random.default_rng(1)
    lines = [
        f"{LABELS[number % 2]}\t{' '.join(draw.choice(WORDS, size))}" for number, size in enumerate([9, 21, 14, 6] * 3)
    ]
    path = Path(tempfile.mkdtemp(prefix="handscroll-conformance-")) / "labelled.tsv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


@dataclass(frozen=True)
class Learned:
    """An objective that fits a model, and the model's rows for it; without one, text that the model only reads."""

    task: ObjectiveSettings | None
    model: Model

    @property
    def data(self) -> dict[str, Any]:
        """What a recipe would say of the rows: the first kind that the objective learns from, in short pieces."""
        kind = "text" if self.task is None else self.task.kinds[0]
        needs = {"blanks": {"longest": 18}}
        if kind == "labelled":
            needs = {"labelled": {"file": _labelled(), "labels": LABELS}}
        return {"rows": TypeAdapter(RowData).validate_python({"kind": kind, **needs.get(kind, {})})}

    @property
    def objective(self) -> Objective | None:
        return None if self.task is None else self.task.objective(self.model, self.data)

    def rows(self, count: int, seed: int = 0) -> list[Row]:
        """Packed rows of several documents each."""
        stream = self.data["rows"].stream(source(), tokenizer(), LENGTH, seed)
        if self.task is not None:
            stream = self.task.rows(stream, LENGTH, seed, self.model, tokenizer())
        return [row for row, _ in islice(stream, count)]

    @torch.no_grad()
    def read(self, batch: Batch) -> Tensor:
        """Final hidden states (B, T, D) of a batch, under its source where it has one."""
        marks, here = batch.marks(), self.model
        if batch.source is not None:
            assert isinstance(here, EncoderDecoder)
            here = here.under(here.encode(batch.source.tokens, batch.source.marks()))
        mask = here.mask() & SameSegment() if self.objective is None else self.objective.mask(here, marks)
        return here.hidden(here.embed(batch.tokens, marks), marks, mask, length=LENGTH)

    @torch.no_grad()
    def loss(self, batch: Batch) -> float:
        """Nats of a batch, summed over its targets; 0 where nothing is learned."""
        objective = self.objective
        return 0.0 if objective is None else float(objective.loss(self.model, self.read(batch), batch).total)


def learned_by(model: Model) -> list[Learned]:
    """Every objective that fits a model; a model that learns nothing here only reads."""
    fitting = [Learned(task, model) for task in map(objective_from, OBJECTIVES) if task.fits(model)]
    return fitting or [Learned(None, model)]


def documents(row: Row) -> list[Row]:
    """The documents of a packed row, each as a row of its own."""
    assert row.segment is not None
    return [_only(row, number) for number in range(int(row.segment.max()) + 1)]


def _only(row: Row, number: int) -> Row:
    here = np.ones(len(row.tokens), dtype=bool) if row.segment is None else row.segment == number
    columns = {name: getattr(row, name) for name in ("tokens", "targets", "positions", "kinds", "labels")}
    cut = {name: None if column is None else column[here] for name, column in columns.items()}
    return replace(row, **cut, segment=None, source=None if row.source is None else _only(row.source, number))


def padded(rows: Sequence[Row]) -> Batch:
    """Rows of different lengths in one batch."""
    longest = max(len(row.tokens) for row in rows)
    return collate([_longer(row, longest) for row in rows])


def _longer(row: Row, length: int) -> Row:
    size, more = len(row.tokens), (0, length - len(row.tokens))
    positions = np.arange(size) if row.positions is None else row.positions
    return replace(
        row,
        tokens=np.pad(row.tokens, more),
        targets=np.pad(row.targets, more, constant_values=IGNORED),
        segment=np.pad(np.zeros(size, dtype=np.int64), more, constant_values=-1),
        positions=np.pad(positions, more),
    )
