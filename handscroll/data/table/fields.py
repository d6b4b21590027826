"""Which column is the text, the label, the question: a task's fields, matched to the columns that a table has."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from handscroll.base.errors import ConfigError, DataError, nearest
from handscroll.data.table.spelling import alike_note, label_text
from handscroll.data.table.table import Ledger, Record, Table

Holds = Literal["text", "label", "labels", "number", "answers", "list", "any"]


@dataclass(frozen=True)
class Field:
    """What a task wants of a row: the name under which it asks, other usual names, and what stands there.

    holds: text (a text that is not empty), label (text, a whole number or a truth value, taken as text), labels (a list
    of such, or a text with commas or semicolons between them; an empty text names none), number, answers (a text or
    number, a list of such, or SQuAD's: {"text", "answer_start"} or a list of these; `datasets` keeps an object of
    lists), list, any. `truth`: it says what is right, so a model learns from it and is scored by it.
    """

    name: str
    also: tuple[str, ...] = ()
    required: bool = True
    holds: Holds = "text"
    truth: bool = False


@dataclass(frozen=True)
class Matched:
    """Which column holds each field: `text <- review, label <- stars`."""

    fields: tuple[Field, ...]
    columns: Mapping[str, str]

    def __str__(self) -> str:
        found = [f"{name} <- {column}" for name, column in self.columns.items()]
        absent = [field.name for field in self.fields if field.name not in self.columns]
        return ", ".join(found) + (f" (not there: {', '.join(absent)})" if absent else "")

    def fit(self, table: Table, skip_unfit: bool = False) -> Table:
        """The table with its values under the names of the fields; other columns stay, those taken are renamed.

        A row that lacks a field, or holds something else there, is an error, or left out and counted (`skip_unfit`).

        Raises:
            DataError: such a row; or a column that is not taken has the name of a field that is read from another one.
        """
        taken = set(self.columns.values())
        clash = [name for name, column in self.columns.items() if name in table.columns and name not in taken]
        if clash:
            raise DataError(
                f"the field '{clash[0]}' is read from the column '{self.columns[clash[0]]}', and the column '"
                f"{clash[0]}' would be lost; rename that one in the file"
            )
        step, kept = Ledger(), []
        for record in table:
            try:
                found = self._fitted(record)
            except DataError as error:
                if not skip_unfit:
                    raise DataError(
                        f"{record.place}: {error}; repair the row, or leave such rows out, counted (--skip-unfit; "
                        "skip_unfit = true in a recipe)"
                    ) from None
                step.leave_out(_reason(str(error)), record.place)
                continue
            for field in self.fields:
                written = record.get(self.columns[field.name]) if field.name in self.columns else None
                if field.holds == "label" and isinstance(written, str) and written.strip() != found.get(field.name, ""):
                    step.repair(f"{field.name}: whole numbers that are written like 1.0, read as 1", record.place)
            rest = {name: value for name, value in record.values.items() if name not in taken}
            kept.append(Record({**found, **rest}, record.file, record.number))
        for field in self.fields:
            if field.holds in ("label", "labels") and field.name in self.columns:
                labels = [one for row in kept for one in labels_of(row.values.get(field.name))]
                if note := alike_note(labels, field.name):
                    step.note(note)
        return table.having(kept, step)

    def _fitted(self, record: Record) -> dict[str, Any]:
        found = {}
        for field in self.fields:
            column = self.columns.get(field.name)
            value = None if column is None else record.get(column)
            if field.holds == "labels" and isinstance(value, str) and not value.strip():
                value = []  # an empty cell names no label; null says that the labels are not known
            if value is None or value == "":
                if field.required:
                    raise DataError(f"no {field.name} (column '{column}' is empty)")
                continue
            found[field.name] = _held(value, field)
        return found


def match(table: Table, fields: Sequence[Field], given: Mapping[str, str] | None = None) -> Matched:
    """Find the column of every field: the one that is given, else the field's own name, else another usual name.

    Names are compared without regard to capitals, spaces and underscores. `given` maps fields to columns; a dotted
    column goes into objects (`meta.title`).

    Raises:
        ConfigError: `given` names a field that the task does not have.
        DataError: a required field has no column, a given column is not there, or several columns may be meant.
    """
    given = dict(given or {})
    names = [field.name for field in fields]
    wrong = next((name for name in given if name not in names), None)
    if wrong is not None:
        raise ConfigError(f"the task has no field '{wrong}': {nearest(wrong, names)}")
    for name, column in given.items():
        if all(record.get(column) is None for record in table):
            raise DataError(f"{name} <- {column}: there is no column '{column}': {nearest(column, table.columns)}")
    free = [column for column in table.columns if column not in given.values()]
    own = {_plain(name) for name in names}
    columns: dict[str, str] = {}
    for field in fields:
        column = given.get(field.name) or _column(field, free, own)
        if column is not None:
            columns[field.name] = column
        elif field.required:
            raise _absent(field, table)
    return Matched(tuple(fields), columns)


def require_truth(table: Table, fields: Sequence[Field], given: Mapping[str, str] | None = None) -> None:
    """Refuse a table in which no column was found for the field that says what is right, if there is one such field.

    Raises:
        DataError: such a table, or as `match`.
    """
    columns = match(table, fields, given).columns
    for field in fields:
        if field.truth and field.name not in columns:
            raise _absent(field, table)


def _absent(field: Field, table: Table) -> DataError:
    which = f"'{field.name}', which says what is right" if field.truth else f"'{field.name}'"
    return DataError(
        f"{table.records[0].file}: no column for {which} (usual names: {', '.join((field.name, *field.also))}). The "
        f"columns are {', '.join(table.columns)}; name the one that is meant ({field.name} = ..., "
        f"--map {field.name}=COLUMN)"
    )


def _column(field: Field, free: Sequence[str], own: set[str]) -> str | None:
    """The column of a field; a column that bears the name of another field is that one's alone."""
    if field.name in free:
        return field.name
    for wanted in ({_plain(field.name)}, {_plain(name) for name in field.also} - own):
        found = [column for column in free if _plain(column) in wanted]
        if len(found) > 1:
            raise DataError(
                f"several columns may be the '{field.name}': {', '.join(found)}; name the one that is meant "
                f"({field.name} = ..., --map {field.name}=COLUMN)"
            )
        if found:
            return found[0]
    return None


def _plain(name: str) -> str:
    return "".join(character for character in name.casefold() if character.isalnum())


def _held(value: Any, field: Field) -> Any:
    if field.holds == "text":
        if not isinstance(value, str):
            raise DataError(f"{field.name} is a {type(value).__name__}, not text")
        if not value.strip():
            raise DataError(f"no {field.name} (it is blank)")
    elif field.holds == "label":
        return label_text(value, field.name)
    elif field.holds == "labels":
        return [label_text(one, field.name) for one in labels_in(value)]
    elif field.holds == "answers":
        return answers_of(value, field.name)
    elif field.holds == "number":
        return _number(value, field.name)
    elif field.holds == "list" and not isinstance(value, list):
        raise DataError(f"{field.name} is a {type(value).__name__}, not a list")
    return value


def labels_in(value: Any) -> list[Any]:
    """The labels of a list, or of a text with commas or semicolons between them; anything else is one."""
    if isinstance(value, str):
        return [label for one in value.replace(";", ",").split(",") if (label := one.strip())]
    return [one for one in value if one != ""] if isinstance(value, list | tuple) else [value]


def labels_of(value: Any) -> list[Any]:
    """A label or several as a list; no value is none."""
    return [] if value is None else value if isinstance(value, list) else [value]


def answers_of(value: Any, name: str) -> list[dict[str, Any]]:
    """Answers as a list of {"text", "answer_start"}; the start is None where it is not known. It may be empty.

    Raises:
        DataError: they have none of the forms that `Field` names, or not one start for each text.
    """
    if isinstance(value, Mapping) and isinstance(value.get("text"), list):
        texts, starts = value["text"], value.get("answer_start") or [None] * len(value["text"])
        if not isinstance(starts, list) or len(starts) != len(texts):
            raise DataError(f"{name} are texts with more or fewer starts than texts; give one for each, or none")
        value = [{"text": text, "answer_start": at} for text, at in zip(texts, starts, strict=True)]
    several = value if isinstance(value, list | tuple) else [] if value is None else [value]
    found = [one if isinstance(one, Mapping) else {"text": one} for one in several]
    if not all(isinstance(_said(one.get("text")), str) for one in found):
        raise DataError(f'{name} are no answers (a text, texts, or {{"text": ..., "answer_start": ...}})')
    return [{"text": _said(one["text"]), "answer_start": one.get("answer_start")} for one in found]


def _said(text: Any) -> Any:
    """A number as text, as an answer may be one."""
    return str(text) if isinstance(text, int | float) and not isinstance(text, bool) else text


def text_in(value: Any, place: str, name: str) -> str:
    """A text, or a number as its text; "" where there is no value.

    Raises:
        DataError: it is neither; the message names the place.
    """
    found = "" if value is None else _said(value)
    if not isinstance(found, str):
        raise DataError(f"{place}: '{name}' is a {type(value).__name__}, not a text; repair the row")
    return found


def answers_in(value: Any, place: str, name: str) -> tuple[str, ...]:
    """The texts of answers (`answers_of`), each once, without blank ones.

    Raises:
        DataError: they have no form of answers; the message names the place.
    """
    try:
        found = answers_of(value, name)
    except DataError as error:
        raise DataError(f"{place}: {error}; repair the row") from None
    return tuple(dict.fromkeys(one["text"] for one in found if one["text"].strip()))


def _number(value: Any, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise DataError(f"{name} is {str(value)[:40]!r}, not a number") from None
    if number != number or number in (float("inf"), float("-inf")):
        raise DataError(f"{name} is {number}, not a finite number")
    return number


def _reason(error: str) -> str:
    """The reason under which rows are counted: the error without the value that it quotes."""
    return "rows without " + error[3:] if error.startswith("no ") else f"rows whose {error}".split(" is '")[0]
