"""A look at a table: its first rows, what its columns hold, which conversations are in it, copies and labels."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from handscroll.data.personal import counted, find
from handscroll.data.survey.shingles import NEAR
from handscroll.data.table.duplicates import alike, said
from handscroll.data.table.table import FIRST, Record, Table, leaves

WIDTH = 100  # characters of a value that are shown
FEW = 30  # different values of a column that may be labels
_TEXTS = {str: "text", bool: "true/false", int: "whole number", float: "number", list: "list", dict: "object"}


@dataclass(frozen=True)
class Column:
    """What a column holds: kinds of values, rows without one, different values, and the lengths of the texts."""

    name: str
    holds: str
    empty: int
    different: int
    middle: int
    longest: int
    counts: tuple[tuple[str, int], ...]  # of the values, where they are few; the commonest first


def look(table: Table, rows: int = 3, width: int = WIDTH) -> str:
    """The first rows of a table for a terminal; a long value is shortened and says its true length."""
    wide = max(map(len, table.columns), default=0)
    blocks = []
    for record in table.records[:rows]:
        lines = [f"  {name.ljust(wide)}  {short(record.values[name], width)}" for name in record.values]
        blocks.append("\n".join([record.place, *lines]))
    rest = len(table) - min(rows, len(table))
    return "\n".join([*blocks, *([f"... and {rest:,} more rows"] if rest else [])])


def short(value: Any, width: int = WIDTH) -> str:
    """A value on one line: `width` characters of it at most, and the true length of what was longer."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    line = text.replace("\\", "\\\\") if isinstance(value, str) else text
    line = line.replace("\r", "\\r").replace("\n", "\\n").replace("\t", "\\t") if isinstance(value, str) else line
    line = "".join(
        character if character.isprintable() else f"\\u{ord(character):04x}" for character in line[: width + 1]
    )
    if len(text) <= width and len(line) <= width:
        return line
    many = f", {len(value):,} entries" if isinstance(value, list | dict) else ""
    return f"{line[:width]}... ({len(text):,} characters{many})"


def columns(table: Table) -> tuple[Column, ...]:
    """What each column holds."""
    return tuple(_column(table, name) for name in table.columns)


def _column(table: Table, name: str) -> Column:
    values = [record.values.get(name) for record in table]
    filled = [value for value in values if value is not None and value != ""]
    kinds = Counter(_TEXTS.get(type(value), type(value).__name__) for value in filled)
    written = [
        value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str) for value in filled
    ]
    counts = Counter(written)
    few = len(counts) <= FEW and len(counts) < len(filled)
    lengths = [len(text) for text in written] or [0]
    return Column(
        name,
        " or ".join(kind for kind, _ in kinds.most_common()) or "nothing",
        len(values) - len(filled),
        len(counts),
        round(median(lengths)),
        max(lengths),
        tuple(counts.most_common()) if few else (),
    )


def copies_line(table: Table, column: str, near: float | None = NEAR) -> str:
    """How many rows repeat others by a column, exactly and nearly, in one line."""
    found = alike([said(record.get(column)) for record in table], near)
    exact = [pair for pair in found if pair[2] == 1]
    close = [pair for pair in found if pair[2] < 1]
    line = f"by '{column}': {len(exact):,} exact copies" + f", {len(close):,} near copies (from {near})" * (
        near is not None
    )
    shown: list[tuple[Record, Record]] = [
        (table.records[at], table.records[other]) for at, other, _ in [*close, *exact][:2]
    ]
    return line + "".join(
        f"\n  {one.place} repeats {other.place}: {short(one.get(column), 60)}" for one, other in shown
    )


def personal_line(table: Table, regions: Sequence[str]) -> str:
    """How many rows hold what has the form of personal data, and of which kinds by column, in one line."""
    kinds, rows = {name: Counter[str]() for name in table.columns}, list[Record]()
    for record in table:
        here = [
            (name, found.kind)
            for name, value in record.values.items()
            for one in leaves(value)
            for found in find(str(one), regions)
        ]
        for name, kind in here:
            kinds[name][kind] += 1
        rows += [record] if here else []
    by = "".join(f"; '{name}': {counted(found)}" for name, found in kinds.items() if found)
    places = ", ".join(one.place for one in rows[:FIRST]) + ", ..." * (len(rows) > FIRST)
    return f"personal data: {len(rows):,} rows" + f" ({places})" * bool(rows) + by
