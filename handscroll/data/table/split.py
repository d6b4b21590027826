"""Parts for training and testing: copies and groups stay on one side, labels keep their shares, and it is reported."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from handscroll.base.errors import ConfigError, DataError
from handscroll.data.survey.shingles import NEAR
from handscroll.data.table.duplicates import alike, groups, said, text_column
from handscroll.data.table.table import Ledger, Record, Table

AUGMENTED = "augmented"  # the column that marks a row as made from another one, and names that one's place


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
    by: str | None = None,
    group: str | None = None,
    text: str | None = None,
    near: float | None = NEAR,
) -> Parts:
    """Split a table into `train` and the named shares, by default {"test": 0.1}; the same seed gives the same parts.

    Rows with one value of `group`, rows with the same or nearly the same `text` (by default the column with the longest
    texts; `near` None: only the same), and rows made from one another by augmentation stay in one part. Each part has
    its share of every label of `by`, as far as that allows. Rows made by augmentation never enter another part than
    `train`: they are left out, counted, where the row they come from is not in it.

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
    for column in (by, group):
        if column is not None:
            table.require(column)
    column = text_column(table, text, (by, group))
    units, notes = _units(table, column, group, near)
    labels = [[_label(table.records[at], by) for at in unit if not _made(table.records[at])] for unit in units]
    side = _sides(labels, shares, seed)
    tables, counts = {}, {}
    for name in ("train", *shares):
        tables[name] = _part(table, units, side, name)
        found = Counter(_label(record, by) for record in tables[name]) if by else Counter()
        counts[name] = {label: found[label] for label in sorted({one for unit in labels for one in unit}) if by}
        notes += [f"{name} has no row of the label {label}" for label, count in counts[name].items() if not count]
    return Parts(tables, counts, tuple(notes))


def _label(record: Record, by: str | None) -> str:
    value = "" if by is None else record.get(by)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _made(record: Record) -> bool:
    return bool(record.values.get(AUGMENTED))


def _units(table: Table, column: str, group: str | None, near: float | None) -> tuple[list[list[int]], list[str]]:
    """The rows that stay together, and what was found."""
    copies = alike([said(record.get(column)) for record in table], near)
    exact = sum(share == 1 for _, _, share in copies)
    notes = [
        f"by '{column}' {exact:,} rows are exact and {len(copies) - exact:,} near copies of others; they stay together"
    ]
    pairs = [(at, other) for at, other, _ in copies]
    if group is not None:
        pairs += _joined(
            (at, json.dumps(value, default=str))
            for at, one in enumerate(table)
            if (value := one.get(group)) is not None
        )
    pairs += _joined((at, _origin(record)) for at, record in enumerate(table))
    units = groups(len(table), pairs)
    if group is not None:
        notes.append(
            f"groups by '{group}' and copies make {len(units):,} units that stay together, the largest of "
            f"{max(map(len, units)):,} rows"
        )
    return units, notes


def _origin(record: Record) -> str:
    made = record.values.get(AUGMENTED)
    return str(made.get("from")) if isinstance(made, Mapping) else record.place


def _joined(keys: Iterable[tuple[int, str]]) -> list[tuple[int, int]]:
    first: dict[str, int] = {}
    return [(first[key], at) for at, key in keys if first.setdefault(key, at) != at]


def _sides(labels: list[list[str]], shares: Mapping[str, float], seed: int) -> list[str]:
    """The part of each unit.

    Units are offered in random order, large ones first. A part takes one that brings it nearer to its share of every
    label, unless that would take the last unit with a label from the rest.
    """
    total = Counter(label for unit in labels for label in unit)
    left = Counter(label for unit in labels for label in set(unit))
    order = np.random.default_rng(seed).permutation(len(labels)).tolist()
    order.sort(key=lambda at: -len(labels[at]))
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
        elif name != "train" and _made(record):
            step.leave_out("rows made by augmentation, which are never tested on", record.place)
        else:
            kept.append(record)
    if not kept:
        raise DataError(
            f"the part '{name}' stays empty: copies and groups stay together, which makes {len(units):,} units of the "
            f"{len(table):,} rows; give a larger share, or more rows"
        )
    return table.having(kept, step)
