"""Rows that say the same: exact copies up to case and spaces, and near copies by MinHash of runs of words."""

import json
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from handscroll.base.errors import ConfigError, DataError
from handscroll.data.survey.shingles import NEAR, WORDS, Hasher, Signature, near_pairs, runs
from handscroll.data.table.table import Ledger, Record, Table, leaves

RUN = 3  # words (or Chinese characters) of a run; texts with fewer have no near copies
_SEEN = 500  # rows by which the column with the longest texts is found
Pair = tuple[int, int, float]


def text_column(table: Table, column: str | None = None, besides: Iterable[str | None] = ()) -> str:
    """The column by which rows are compared: the given one, else the one with the longest texts.

    Raises:
        DataError: there is no such column, or none holds texts.
    """
    if column is not None:
        table.require(column)
        return column
    sizes = {name: _mean(table, name) for name in table.columns if name not in set(besides)}
    best = max(sizes, key=lambda name: sizes[name], default=None)
    if best is None or not sizes[best]:
        raise DataError(f"no column holds texts to compare; name one (text = ...): {', '.join(table.columns)}")
    return best


def _mean(table: Table, name: str) -> float:
    """The mean length of the texts in a column, over rows from the whole table."""
    rows = table.records[:: max(1, len(table) // _SEEN)]
    return sum(len(texts_of(record.values.get(name))) for record in rows) / len(rows)


def texts_of(value: Any) -> str:
    """A text, or all texts in a list or an object, one behind another; nothing for numbers alone."""
    return " ".join(one for one in leaves(value) if isinstance(one, str) and one)


def said(value: Any) -> str:
    """A value as a text that equal values share: without case, width and spaces; of lists and objects the texts."""
    text = texts_of(value) or ("" if value in (None, "") else json.dumps(value, sort_keys=True, default=str))
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def same(texts: Sequence[str]) -> list[Pair]:
    """(row, first row with the same text, 1.0) for every row that repeats an earlier one; empty texts do not."""
    first: dict[str, int] = {}
    return [(at, first[text], 1.0) for at, text in enumerate(texts) if text and first.setdefault(text, at) != at]


def alike(texts: Sequence[str], near: float | None = NEAR) -> list[Pair]:
    """`same`, and (row, earlier row, estimated Jaccard index of their runs of three words) from `near` on.

    Raises:
        ConfigError: `near` is no share of at least a half.
    """
    if near is not None and not 0.5 <= near <= 1:
        raise ConfigError(f"near = {near}; give a Jaccard index from 0.5 to 1, or None for exact copies only")
    found = same(texts)
    if near is None:
        return found
    again = {at for at, _, _ in found}
    hasher, rows, signatures = Hasher(), [], []
    for at, text in enumerate(texts):
        words = [] if at in again else WORDS.findall(text)
        if len(words) >= RUN:
            signature = Signature()
            signature.add(runs(hasher.words(words), RUN))
            rows.append(at)
            signatures.append(signature.least)
    close = [(rows[one], rows[other], share) for one, other, share in near_pairs(signatures, near)]
    return sorted([*found, *close])


def without_copies(table: Table, column: str, near: float | None = None) -> Table:
    """The first of all rows that say the same in a column; the others are counted, exact and near ones apart."""
    copies = {at: share for at, _, share in alike([said(record.get(column)) for record in table], near)}
    step, kept = Ledger(), []
    for at, record in enumerate(table):
        if at in copies:
            step.leave_out("exact copies" if copies[at] == 1 else f"near copies (from {near})", record.place)
        else:
            kept.append(record)
    return table.having(kept, step)


def distinct_ids(table: Table, column: str = "id", skip: bool = False) -> Table:
    """The table, after a check that no two rows share an id; with `skip` the first of them stays, the others count.

    Raises:
        DataError: two rows have one id, or there is no such column.
    """
    table.require(column)
    again = repeated_ids(table.records, column)
    if again and not skip:
        at, first = next(iter(again.items()))
        name = json.dumps(table.records[at].get(column), default=str)
        raise DataError(
            f"{table.records[at].place} has the {column} {name} of {table.records[first].place}; give each row its "
            "own, or keep the first of each (skip = True)"
        )
    step = Ledger()
    for at in again:
        step.leave_out(f"rows with the {column} of an earlier row", table.records[at].place)
    return table.having([record for at, record in enumerate(table) if at not in again], step)


def repeated_ids(records: Sequence[Record], column: str = "id") -> dict[int, int]:
    """The first row with the same id, for every row that repeats an earlier one's; rows without an id do not."""
    first: dict[str, int] = {}
    ids = [record.get(column) for record in records]
    names = {at: json.dumps(one, default=str) for at, one in enumerate(ids) if one is not None and str(one).strip()}
    return {at: first[name] for at, name in names.items() if first.setdefault(name, at) != at}


@dataclass(frozen=True)
class Leakage:
    """Rows of a training table that a test table holds too: (training row, test row, likeness), by number from 0."""

    pairs: tuple[Pair, ...]
    train: Table
    test: Table
    called: str = "test"  # what the rows of `test` are called

    def __str__(self) -> str:
        if not self.pairs:
            return f"no {self.called} row is in the training rows"
        leaked: dict[int, tuple[int, float]] = {}
        for train, test, share in self.pairs:
            if share > leaked.get(test, (0, 0.0))[1]:
                leaked[test] = (train, share)
        exact = sum(share == 1 for _, share in leaked.values())
        shown = [f"{self.test.records[at].place} = {self.train.records[one].place}" for at, (one, _) in leaked.items()]
        share = len(leaked) / len(self.test)
        return (
            f"{len(leaked):,} of {len(self.test):,} {self.called} rows ({share:.1%}) are in the training rows too: "
            f"{exact:,} exact, {len(leaked) - exact:,} near copies ({'; '.join(shown[:3])}{', ...' * (len(shown) > 3)})"
        )

    def purged(self) -> Table:
        """The training table without the rows that the test table holds."""
        copies, step = {one for one, _, _ in self.pairs}, Ledger()
        for at in sorted(copies):
            step.leave_out("training rows that are test rows too", self.train.records[at].place)
        return self.train.having([one for at, one in enumerate(self.train) if at not in copies], step)


def leakage(
    train: Table,
    test: Table,
    column: str,
    near: float | None = NEAR,
    called: str = "test",
    within: str | None = None,
) -> Leakage:
    """Which rows of `train` say the same as a row of `test`, exactly or nearly; only rows are compared that say exactly
    the same in the column `within`, if one is named.

    Raises:
        DataError: a table lacks a column.
    """
    train.require(column, within or column)
    test.require(column, within or column)
    rows = (*test, *train)  # test first: every copy finds its first row
    texts, count = [said(record.get(column)) for record in rows], len(test)
    apart: dict[str, list[int]] = defaultdict(list)
    for at, record in enumerate(rows):
        apart[said(record.get(within)) if within else ""].append(at)
    partner = {
        places[at]: (places[other], share)
        for places in apart.values()
        if len(places) > 1
        for at, other, share in alike([texts[place] for place in places], near)
    }

    def root(at: int) -> tuple[int, float]:
        """The first row that a row is a copy of, and how alike they are: an exact copy may be of a near copy."""
        share = 1.0
        while at in partner:
            at, step = partner[at]
            share = min(share, step)
        return at, share

    copies: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for at in range(count, len(texts)):
        first, share = root(at)
        copies[first].append((at - count, share))
    found = []
    for at in range(count):
        first, own = root(at)
        for one, share in copies[first] if first == at else copies[first][:1]:
            found.append((one, at, min(share, own)))
    return Leakage(tuple(found), train, test, called)


def groups(count: int, pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """The rows 0 to `count` - 1 in groups that pairs join, each in order."""
    head = np.arange(count).tolist()

    def top(at: int) -> int:
        while head[at] != at:
            head[at] = at = head[head[at]]
        return at

    for one, other in pairs:
        low, high = sorted((top(one), top(other)))
        head[high] = low
    found: dict[int, list[int]] = defaultdict(list)
    for at in range(count):
        found[top(at)].append(at)
    return list(found.values())
