"""Labels of rows: their counts and weights, labels that training did not see, and texts with several labels."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from handscroll.base.errors import ConfigError, DataError, nearest
from handscroll.data.table.duplicates import said
from handscroll.data.table.spelling import label_text
from handscroll.data.table.table import Ledger, Record, Table


def label_counts(table: Table, column: str = "label") -> dict[str, int]:
    """How many rows have each label, by label; a list counts each of its labels.

    Raises:
        DataError: there is no such column, or a value is no label.
    """
    table.require(column)
    found = Counter(label for record in table for label in _labels(record, column))
    return {label: found[label] for label in sorted(found, key=_order)}


def _order(label: str) -> tuple[bool, float, str]:
    """Numbers in their own order, before texts."""
    return (False, int(label), "") if label.lstrip("-").isdecimal() else (True, 0.0, label)


def _labels(record: Record, column: str) -> list[str]:
    value = record.get(column)
    try:
        return [label_text(one, f"'{column}'") for one in (value if isinstance(value, list) else [value])]
    except DataError as error:
        raise DataError(f"{record.place}: {error}; repair the row") from None


def classes(table: Table, column: str = "label") -> tuple[str, ...]:
    """The labels that a classifier learns.

    Raises:
        DataError: there is only one: nothing can be learnt.
    """
    found = label_counts(table, column)
    if len(found) < 2:
        only = next(iter(found), "none")
        raise DataError(
            f"all {len(table):,} rows have the label '{only}'; a classifier needs rows of two labels or more"
        )
    return tuple(found)


def known(table: Table, labels: Sequence[str], column: str = "label", skip: bool = False) -> Table:
    """The table, after a check that training saw all its labels; with `skip` other rows are left out and counted.

    Raises:
        DataError: a row has a label that is not in `labels`.
    """
    step, kept, seen = Ledger(), [], frozenset(labels)
    for record in table:
        unseen = [label for label in _labels(record, column) if label not in seen]
        if not unseen:
            kept.append(record)
        elif skip:
            step.leave_out(f"rows with the label '{unseen[0]}', which training did not see", record.place)
        else:
            raise DataError(
                f"{record.place} has the label '{unseen[0]}', which training did not see: {nearest(unseen[0], labels)}"
            )
    return table.having(kept, step)


def class_weights(table: Table, column: str = "label") -> dict[str, float]:
    """The weight of each label by which all labels count the same: rows / (labels x rows with the label)."""
    found = label_counts(table, column)
    total = sum(found.values())
    return {label: total / (len(found) * count) for label, count in found.items()}


def balance(table: Table, column: str = "label", how: Literal["over", "under"] = "over", seed: int = 0) -> Table:
    """The same number of rows of every label: rare ones are repeated ("over"), or common ones left out ("under").

    Raises:
        ConfigError: `how` is another word.
        DataError: a row has several labels, or there is only one.
    """
    if how not in ("over", "under"):
        raise ConfigError(f"balance '{how}': {nearest(how, ('over', 'under'))}")
    wanted = (max if how == "over" else min)(label_counts(table, column)[label] for label in classes(table, column))
    rows: dict[str, list[int]] = defaultdict(list)
    for at, record in enumerate(table):
        label, *more = _labels(record, column)
        if more:
            raise DataError(f"{record.place} has {len(more) + 1} labels; only rows of one label can be balanced")
        rows[label].append(at)
    draw, step, times = np.random.default_rng(seed), Ledger(), [1] * len(table)
    for label in sorted(rows):
        more = wanted - len(rows[label])
        whole, rest = divmod(more, len(rows[label])) if more > 0 else (0, 0)
        for at in rows[label] * whole + draw.permutation(rows[label])[:rest].tolist():
            times[at] += 1
            step.add(f"repeated rows of the label '{label}'", table.records[at].place)
        for at in sorted(draw.permutation(rows[label])[wanted:].tolist()):
            times[at] -= 1
            step.leave_out(f"rows of the label '{label}' beyond {wanted:,}", table.records[at].place)
    kept = [record for at, record in enumerate(table) for _ in range(times[at])]
    return table.having(kept, step)


@dataclass(frozen=True)
class Conflict:
    """One text that has several labels, and where."""

    text: str
    labels: tuple[str, ...]
    places: tuple[str, ...]

    def __str__(self) -> str:
        shown = self.text if len(self.text) <= 60 else self.text[:60] + "..."
        return f"{json.dumps(shown, ensure_ascii=False)} is {' and '.join(self.labels)} ({'; '.join(self.places[:3])})"


def conflicts(table: Table, text: str = "text", label: str = "label") -> tuple[Conflict, ...]:
    """The texts (up to case and spaces) to which rows give different labels: noise, or labels that need context."""
    found: dict[str, list[Record]] = defaultdict(list)
    for record in table:
        found[said(record.get(text))].append(record)
    made = []
    for records in found.values():
        labels = sorted({", ".join(_labels(record, label)) for record in records})
        if len(labels) > 1:
            places = tuple(record.place for record in records)
            made.append(Conflict(str(records[0].get(text)), tuple(labels), places))
    return tuple(made)


def without_conflicts(table: Table, text: str = "text", label: str = "label") -> Table:
    """The table without the rows of texts that have several labels, counted."""
    texts = {said(one.text) for one in conflicts(table, text, label)}
    return table.keep(lambda record: said(record.get(text)) not in texts, "rows whose text has several labels")
