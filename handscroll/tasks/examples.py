"""The examples of a tuning run: tables that are read, matched with a task, and made into training rows."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from handscroll.base.errors import ConfigError, DataError
from handscroll.data.encoded import TokenAccount
from handscroll.data.row import IGNORED, Row
from handscroll.data.table.augment import augment
from handscroll.data.table.duplicates import leakage
from handscroll.data.table.fields import match, require_truth
from handscroll.data.table.labels import balance
from handscroll.data.table.read import read_table
from handscroll.data.table.split import split
from handscroll.data.table.table import Account, Ledger, Record, Table
from handscroll.lm import LM
from handscroll.tasks.back_translation import OnWork
from handscroll.tasks.changing import changing
from handscroll.tasks.made import NOWHERE, Made
from handscroll.tasks.recipe import TaskData
from handscroll.tasks.task import Example, Part, Task

NAMED = 3  # places that a message names
GIVEN, ABOUT = "what is given", "what is asked about it"


@dataclass(frozen=True)
class TrainingRows:
    """Training rows, and what became of every token: offered = trained + untrained + left out."""

    rows: tuple[Row, ...]
    examples: int
    left: tuple[tuple[str, int], ...]  # place and tokens, of all its rows, of each example that is too long

    @property
    def longest(self) -> int:
        return max((len(row.tokens) for row in self.rows), default=0)

    @property
    def fingerprint(self) -> str:
        """A hash of all ids and targets, by which a resumed run knows its data."""
        found = hashlib.sha256()
        for row in self.rows:
            found.update(row.tokens.tobytes())
            found.update(row.targets.tobytes())
        return found.hexdigest()

    @property
    def account(self) -> TokenAccount:
        trained = sum(row.counted for row in self.rows)
        untrained = sum(len(row.tokens) for row in self.rows) - trained
        notes = Counter(row.note for row in self.rows if row.note)
        return TokenAccount(self.examples, trained, untrained, self.left, self.longest, dict(notes))


def read_parts(
    task: Task,
    data: TaskData,
    seed: int,
    on_work: OnWork = lambda what, total, done: None,
    made: Made = NOWHERE,
) -> dict[str, Part]:
    """The tables "train", "valid", "test" and "second" of a recipe, as far as there are such, as examples.

    `on_work` is told how far a model is that makes new rows, and `made` keeps what it made.

    Raises:
        DataError: a file or a row cannot be used. ConfigError: a column is missing or not certain.
    """
    found: dict[str, Table] = {}
    notes: tuple[str, ...] = ()
    for name in ("train", "valid", "test", "second"):
        if files := getattr(data, name):
            found[name] = read_table(files, data.names, data.splits.get(name), data.encoding, data.skip_broken)
    require_truth(found["train"], task.fields, data.columns)
    if data.skip_unfit:
        found = {name: _taught(task, table, data.columns) for name, table in found.items()}
    if not data.valid and data.held_out:
        by = task.by(found["train"], data.columns)
        text = task.told_apart_by(found["train"], data.columns, data.skip_unfit)
        try:
            cut = split(found["train"], {"valid": data.held_out}, seed, by, data.group, text)
        except DataError as error:
            raise DataError(
                f"{error}; or name the held-out rows yourself (--valid FILE), or hold none out (data.held_out = 0)"
            ) from None
        found |= {name: cut.tables[name] for name in ("train", "valid")}
        notes = cut.notes
    parts = {}
    for name, table in found.items():
        table = drawn(table, data.most if name == "train" else data.most_scored, seed)
        table = _changed(task, table, data, seed, on_work, made) if name == "train" else table
        parts[name] = task.read(table, data.columns, data.skip_unfit)
        if name == "valid":
            parts[name] = replace(parts[name], notes=notes)
        if name != "train" and getattr(data, name):
            parts[name] = replace(parts[name], leakage=_leakage(task, parts["train"], parts[name], name))
    return parts


def _leakage(task: Task, train: Part, scored: Part, name: str) -> str:
    """How many scored examples are training examples too, by what is given in them."""
    before, now = _given(task, train), _given(task, scored)
    return str(leakage(before, now, GIVEN, called=name, within=ABOUT)) if before and now else ""


def _given(task: Task, part: Part) -> Table:
    records = []
    for example in part.examples:
        file, _, number = example.place.rpartition(", row ")
        records.append(Record(dict(zip((GIVEN, ABOUT), task.given(example), strict=True)), file, int(number)))
    return Table(tuple(records), (GIVEN, ABOUT), Account(len(records)))


def _taught(task: Task, table: Table, columns: Mapping[str, str]) -> Table:
    """The table without the rows from which nothing can be learned, since they do not tell what is right."""
    examples = task.read(table, columns, skip_unfit=True).examples
    untold = {one.place for one in examples if not task.taught(one)}
    return (
        table.keep(lambda record: record.place not in untold, "rows that do not tell what is right")
        if untold
        else table
    )


def to_score(task: Task, lm: LM, name: str, part: Part, too_long: Literal["refuse", "skip"]) -> Part:
    """A part that is scored after the training, looked at before it: with `too_long` "skip" without the examples that
    exceed the context, counted.

    Raises:
        DataError: an example cannot be scored, is too long and `too_long` is "refuse", or none is left.
    """
    if not part.examples:
        return part
    sized = list(zip(part.examples, task.needed(lm, part.examples), strict=True))
    long = [(one.place, size) for one, size in sized if size > lm.context]
    if long and too_long == "refuse":
        named = "; ".join(f"{place}: {size:,} tokens" for place, size in long[:NAMED])
        raise DataError(
            f"{name}: {len(long):,} of {len(part.examples):,} examples, with room for their answers, are longer "
            f"than the context of {lm.context:,} tokens ({named}), and could not be scored. Nothing is cut: lengthen "
            "the model (handscroll extend), or leave them out, counted (--too-long skip)"
        )
    step = Ledger()
    for place, _ in long:
        step.leave_out("examples that exceed the context", place)
    kept = tuple(one for one, size in sized if size <= lm.context)
    if not kept:
        raise DataError(f"{name}: no example is left to score: all {len(long):,} exceed {lm.context:,} tokens")
    task.scorable(kept)
    return replace(part, examples=kept, account=step.onto(part.account))


def _changed(task: Task, table: Table, data: TaskData, seed: int, on_work: OnWork, made: Made) -> Table:
    """The training rows after what the recipe does to them; what is scored stays as it is."""
    if data.augment is not None:
        columns = match(table, task.fields, data.columns).columns
        if "text" not in columns:
            raise ConfigError(f"data.augment changes the text of a row, and task '{task.name}' has no field 'text'")
        table = augment(table, columns["text"], changing(data.augment, on_work, made), data.augment.copies, seed)
    if data.balance:
        by = task.by(table, data.columns)
        if by is None:
            raise ConfigError(f"data.balance is for rows with labels, and task '{task.name}' has none here")
        if by.holds == "labels":
            raise ConfigError("data.balance is for rows of one label each: with several = true leave it out")
        table = balance(table, by.name, data.balance, seed)
    return table


def drawn(table: Table, most: int, seed: int) -> Table:
    """At most `most` rows of a table, drawn by the seed, in their order."""
    if not most or len(table.records) <= most:
        return table
    chosen = set(np.random.default_rng([seed, 7]).permutation(len(table.records))[:most].tolist())
    places = {record.place for at, record in enumerate(table.records) if at in chosen}
    return table.keep(lambda record: record.place in places, f"not drawn, since only {most:,} were asked for")


def encode(
    task: Task, lm: LM, examples: Sequence[Example], most: int, too_long: Literal["refuse", "skip"] = "refuse"
) -> TrainingRows:
    """The training rows of examples, each of at most `most` tokens. Nothing is cut.

    Raises:
        DataError: examples are too long and `too_long` is "refuse", one has nothing to train, or none is left.
    """
    rows: list[Row] = []
    long: list[tuple[str, list[int]]] = []  # the place of an example, and the sizes of its rows
    for example in examples:
        made = task.rows(lm, example)
        sizes = [len(row.tokens) for row in made]
        if max(sizes) > most:
            long.append((example.place, sizes))
        else:
            rows += made
    if long and too_long == "refuse":
        longest = max(max(sizes) for _, sizes in long)
        named = "; ".join(f"{place}: {max(sizes):,} tokens" for place, sizes in long[:NAMED])
        raise DataError(
            f"{len(long):,} of {len(examples):,} examples are longer than {most:,} tokens ({named}). Nothing is cut: "
            f"take rows of {longest:,} tokens (--length; a longer context by handscroll extend), or leave them out, "
            "counted (--too-long skip)"
        )
    if not rows:
        raise DataError(f"no example is left to train on: all {len(long):,} are longer than {most:,} tokens")
    empty = [row for row in rows if not (row.targets != IGNORED).any()]
    if empty:
        raise DataError(f"{len(empty):,} of {len(rows):,} rows have nothing to train: give each example an answer")
    left = tuple((place, sum(sizes)) for place, sizes in long)
    return TrainingRows(tuple(rows), len(examples) - len(long), left)
