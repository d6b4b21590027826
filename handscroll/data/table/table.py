"""A table of rows for a task, and the account of what was read, repaired, left out and added on its way."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from handscroll.base.errors import DataError, nearest

FIRST = 3  # places that are named with each reason


@dataclass(frozen=True, slots=True)
class Record:
    """One row: its values by column, and where it stands; rows count from 1, a line of column names does not count."""

    values: Mapping[str, Any]
    file: str
    number: int

    @property
    def place(self) -> str:
        """Where the row stands, for messages: `train.csv, row 12`."""
        return f"{self.file}, row {self.number}"

    def get(self, name: str) -> Any:
        """The value of a column, or of a key inside it (`answers.text`); None where there is none."""
        return value_of(self.values, name)

    def having(self, **values: Any) -> "Record":
        """The same row with some values changed or added."""
        return Record({**self.values, **values}, self.file, self.number)


def value_of(values: Mapping[str, Any], name: str) -> Any:
    """The value under a name. A dotted name goes into inner objects, and into the objects of inner lists."""
    if name in values:
        return values[name]
    first, dot, rest = name.partition(".")
    inner = values.get(first) if dot else None
    if isinstance(inner, Mapping):
        return value_of(inner, rest)
    if isinstance(inner, list) and inner and all(isinstance(one, Mapping) for one in inner):
        found = [value_of(one, rest) for one in inner]
        return None if all(one is None for one in found) else found
    return None


def leaves(value: Any) -> Iterator[Any]:
    """A value, or all values in a list or an object that are neither; the names in objects are left out."""
    if isinstance(value, Mapping | list):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from leaves(one)
    else:
        yield value


@dataclass(frozen=True, slots=True)
class Count:
    """How often something happened, for which reason, and the first few places."""

    reason: str
    count: int
    places: tuple[str, ...] = ()

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.places) else ""
        return f"{self.reason}: {self.count:,}" + (f" ({_folded(self.places)}{more})" if self.places else "")


def _folded(places: Sequence[str]) -> str:
    """Places with the file named once: `train.csv, row 3, row 12`."""
    file = places[0].rpartition(", ")[0]
    return ", ".join([places[0], *(one.removeprefix(f"{file}, ") for one in places[1:])])


@dataclass(frozen=True)
class Account:
    """What happened to the rows of a table: read + added = kept + left out."""

    read: int
    left_out: tuple[Count, ...] = ()
    repaired: tuple[Count, ...] = ()
    added: tuple[Count, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def kept(self) -> int:
        """The rows that the table has now."""
        return self.read + sum(one.count for one in self.added) - sum(one.count for one in self.left_out)

    def __str__(self) -> str:
        left, added = (sum(one.count for one in counts) for counts in (self.left_out, self.added))
        lines = [
            f"{self.read:,} rows read, {self.kept:,} kept, {left:,} left out" + (f", {added:,} added" * bool(added))
        ]
        for word, counts in (("left out", self.left_out), ("repaired", self.repaired), ("added", self.added)):
            lines += [f"{word}: {one}" for one in counts]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def record(self) -> dict[str, Any]:
        """The account for the record of a run, as plain JSON."""
        kinds = {"left_out": self.left_out, "repaired": self.repaired, "added": self.added}
        counts = {
            name: [{"reason": one.reason, "count": one.count, "places": list(one.places)} for one in found]
            for name, found in kinds.items()
        }
        return {"read": self.read, "kept": self.kept, **counts, "notes": list(self.notes)}


@dataclass
class Ledger:
    """What one step does to rows, counted while it goes over them; `onto` adds it to the account before."""

    left_out: dict[str, list[str]] = field(default_factory=dict)
    repaired: dict[str, list[str]] = field(default_factory=dict)
    added: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    counts: dict[tuple[int, str], int] = field(default_factory=dict)

    def leave_out(self, reason: str, place: str) -> None:
        """Count a row that the table loses."""
        self._add(0, self.left_out, reason, place)

    def repair(self, reason: str, place: str) -> None:
        """Count a row that stays, changed."""
        self._add(1, self.repaired, reason, place)

    def add(self, reason: str, place: str) -> None:
        """Count a row that the table gains."""
        self._add(2, self.added, reason, place)

    def note(self, what: str) -> None:
        """Say something that no count tells."""
        self.notes.append(what)

    def _add(self, kind: int, found: dict[str, list[str]], reason: str, place: str) -> None:
        places = found.setdefault(reason, [])
        self.counts[kind, reason] = self.counts.get((kind, reason), 0) + 1
        if len(places) < FIRST:
            places.append(place)

    def onto(self, before: Account) -> Account:
        """The account `before` with this step behind it."""
        left, repaired, added = (
            tuple(Count(reason, self.counts[kind, reason], tuple(places)) for reason, places in found.items())
            for kind, found in enumerate((self.left_out, self.repaired, self.added))
        )
        return Account(
            before.read,
            before.left_out + left,
            before.repaired + repaired,
            before.added + added,
            before.notes + tuple(self.notes),
        )


@dataclass(frozen=True)
class Table:
    """Rows in order, the names of their columns, and the account of how they came to be these."""

    records: tuple[Record, ...]
    columns: tuple[str, ...]
    account: Account

    def __post_init__(self) -> None:
        assert len(self.records) == self.account.kept, (len(self.records), str(self.account))

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]], name: str = "rows") -> "Table":
        """A table of given rows.

        Raises:
            DataError: there is no row.
        """
        records = [Record(dict(values), name, number) for number, values in enumerate(rows, start=1)]
        if not records:
            raise DataError(f"{name}: there are no rows; give at least one")
        return cls(tuple(records), columns_of(records), Account(len(records)))

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def having(self, records: Sequence[Record], step: Ledger) -> "Table":
        """The table after a step.

        Raises:
            DataError: the step left no row.
        """
        account = step.onto(self.account)
        if not records:
            raise DataError(f"no row is left:\n{account}")
        return Table(tuple(records), columns_of(records), account)

    def keep(self, keeps: Callable[[Record], bool], reason: str) -> "Table":
        """The rows that `keeps` says yes to; the others are counted under `reason`."""
        step, kept = Ledger(), []
        for record in self.records:
            if keeps(record):
                kept.append(record)
            else:
                step.leave_out(reason, record.place)
        return self.having(kept, step)

    def require(self, *names: str) -> None:
        """
        Raises:
            DataError: a column (or key inside one) is in no row.
        """
        for name in names:
            if all(record.get(name) is None for record in self.records):
                raise DataError(f"{self.records[0].file}: no column '{name}': {nearest(name, self.columns)}")


def columns_of(records: Iterable[Record]) -> tuple[str, ...]:
    """The names of the columns of some rows, in the order in which they are met first."""
    return tuple(dict.fromkeys(name for record in records for name in record.values))
