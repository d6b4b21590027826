"""Parts for training and testing: copies and groups stay on one side, labels keep their shares, and it is reported."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from handscroll.base.errors import ConfigError, DataError
from handscroll.data.survey.shingles import NEAR
from handscroll.data.table.duplicates import alike, groups, said, text_column
from handscroll.data.table.fields import Field, labels_in
from handscroll.data.table.spelling import spelled
from handscroll.data.table.table import Ledger, Record, Table

AUGMENTED = "augmented"  # the column of {"by": way, "from": place} in a row that was made from another one


@dataclass(frozen=True)
class Parts:
    """The parts of a table by name, `train` first, and how they were made."""

    tables: Mapping[str, Table]
    labels: Mapping[str, Mapping[str, int]]
    notes: tuple[str, ...]

    def __getitem__(self, name: str) -> Table:
        return self.tables[name]

    def __str__(self) -> str:
        lines = []
        for name, table in self.tables.items():
            counts = ", ".join(f"{label} {count:,}" for label, count in self.labels[name].items())
            lines.append(f"{name}: {len(table):,} rows" + (f" ({counts})" if counts else ""))
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def record(self) -> dict[str, Any]:
        """The parts for the record of a run, as plain JSON."""
        rows = {name: len(table) for name, table in self.tables.items()}
        return {
            "rows": rows,
            "labels": {name: dict(found) for name, found in self.labels.items()},
            "notes": [*self.notes],
        }


def split(
    table: Table,
    parts: Mapping[str, float] | None = None,
    seed: int = 0,
    by: str | Field | None = None,
    group: str | None = None,
    text: str | Sequence[str] | None = None,
    near: float | None = NEAR,
) -> Parts:
    """Split a table into `train` and the named shares, by default {"test": 0.1}; the same seed gives the same parts.

    Rows with one value of `group`, rows with the same or nearly the same `text` (by default the column with the longest
    texts; or what is asked in each row, as texts; `near` None: only the same), and rows made from one another by
    augmentation stay in one part. Each part has its share of every label of `by`, as far as that allows; of a list, and
    of a text where `by` is a field that holds labels, each counts. Rows made by augmentation never enter another part
    than `train`: they are left out, counted, where the row they come from is not in it.

    Raises:
        ConfigError: the shares are no shares, or leave nothing for `train`.
        DataError: a column is not there, or a part stays empty.
    """
    shares = dict(parts or {"test": 0.1})
    if "train" in shares or not all(0 < share < 1 for share in shares.values()) or sum(shares.values()) >= 1:
        raise ConfigError(
            f"shares {shares}: give each part a share between 0 and 1, except 'train', which gets the rest; together "
            "they must be below 1"
        )
    by = Field(by, holds="label") if isinstance(by, str) else by
    named = [name for name in (None if by is None else by.name, group) if name is not None]
    table.require(*named)
    if text is None or isinstance(text, str):
        column = text_column(table, text, named)
        texts, what = [said(record.get(column)) for record in table], f"'{column}'"
    else:
        texts, what = [said(one) for one in text], "what is asked"
    units, notes = _units(table, texts, what, group, near)
    own = [[table.records[at] for at in unit if not made_from(table.records[at])] for unit in units]
    labels = [[label for record in unit for label in _labels(record, by)] for unit in own]
    side = _sides(labels, shares, seed)
    tables, counts = {}, {}
    for name in ("train", *shares):
        tables[name] = _part(table, units, side, name)
        found = Counter(label for record in tables[name] for label in _labels(record, by))
        counts[name] = {label: found[label] for label in sorted({one for unit in labels for one in unit}) if by}
        notes += [f"{name} has no row of the label {label}" for label, count in counts[name].items() if not count]
    return Parts(tables, counts, tuple(notes))


def _labels(record: Record, by: Field | None) -> list[str]:
    """The labels of a row; none at all is one too, since rows without any have their share."""
    value = "" if by is None else record.get(by.name)
    several = by is not None and by.holds == "labels"
    parts = labels_in(value) if several or isinstance(value, list) else [value]
    texts = [spelled(one) for one in parts]
    found = [one if isinstance(one, str) else json.dumps(one, ensure_ascii=False, default=str) for one in texts]
    return list(dict.fromkeys(found)) or ["[]"]


def made_from(record: Record) -> str | None:
    """The place of the row from which augmentation made this one; None for any other row."""
    mark = record.values.get(AUGMENTED)
    return str(mark["from"]) if isinstance(mark, Mapping) and mark.get("by") and mark.get("from") else None


def _units(
    table: Table, texts: Sequence[str], what: str, group: str | None, near: float | None
) -> tuple[list[list[int]], list[str]]:
    """The rows that stay together, by a text of each, and what was found; `what` names the texts."""
    copies = alike(texts, near)
    exact = sum(share == 1 for _, _, share in copies)
    notes = [
        f"by {what} {exact:,} rows are exact and {len(copies) - exact:,} near copies of others; they stay together"
    ]
    pairs = [(at, other) for at, other, _ in copies]
    if group is not None:
        pairs += _joined(
            (at, json.dumps(value, default=str))
            for at, one in enumerate(table)
            if (value := one.get(group)) is not None
        )
    pairs += _joined((at, made_from(record) or record.place) for at, record in enumerate(table))
    units = groups(len(table), pairs)
    if group is not None:
        notes.append(
            f"groups by '{group}' and copies make {len(units):,} units that stay together, the largest of "
            f"{max(map(len, units)):,} rows"
        )
    return units, notes


def _joined(keys: Iterable[tuple[int, str]]) -> list[tuple[int, int]]:
    first: dict[str, int] = {}
    return [(first[key], at) for at, key in keys if first.setdefault(key, at) != at]


def _sides(labels: list[list[str]], shares: Mapping[str, float], seed: int) -> list[str]:
    """The part of each unit, of which `labels` are those of its rows.

    Units are offered in random order. A part takes one that brings it nearer to its share of every label, unless that
    would take the last unit with a label from the rest. Large units are not offered first: all rows that have copies
    would be in the small parts, and none in `train`.
    """
    total = Counter(label for unit in labels for label in unit)
    left = Counter(label for unit in labels for label in set(unit))
    order = np.random.default_rng(seed).permutation(len(labels)).tolist()
    side = ["train"] * len(labels)
    for name, share in sorted(shares.items(), key=lambda one: -one[1]):
        wanted = {label: max(share * count, 1.0) for label, count in total.items()}
        has: dict[str, int] = defaultdict(int)
        for at in order:
            own = Counter(labels[at])
            if side[at] != "train" or not own or any(left[label] < 2 for label in own):
                continue
            gain = sum(
                ((wanted[label] - has[label]) ** 2 - (wanted[label] - has[label] - count) ** 2) / total[label]
                for label, count in own.items()
            )
            if gain > 0:
                side[at] = name
                for label, count in own.items():
                    has[label] += count
                    left[label] -= 1
    return side


def _part(table: Table, units: list[list[int]], side: list[str], name: str) -> Table:
    where = {at: one for unit, one in zip(units, side, strict=True) for at in unit}
    step, kept = Ledger(), []
    for at, record in enumerate(table):
        if where[at] != name:
            step.leave_out(f"rows that are in '{where[at]}'", record.place)
        elif name != "train" and made_from(record):
            step.leave_out("rows made by augmentation, which are never tested on", record.place)
        else:
            kept.append(record)
    if not kept:
        raise DataError(
            f"the part '{name}' stays empty: copies and groups stay together, which makes {len(units):,} units of the "
            f"{len(table):,} rows; give a larger share, or more rows"
        )
    return table.having(kept, step)
