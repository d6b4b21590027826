"""Rows of JSON lines, CSV, TSV and Parquet files as dicts, and the checks on the text that one holds."""

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from handscroll.base.errors import DataError, nearest
from handscroll.text.files import kind, lines

TEXT_KEYS = ("text", "content")
CELL = 1 << 28  # most characters of one cell; the module's own limit of 131,072 is less than a chapter
BATCH = 256  # rows of a Parquet file that are held at a time
_PACKED = 1 << 31  # most bytes of a column in one row group of a Parquet file

Row = tuple[str, dict[str, Any]]


def rows(file: Path, columns: Sequence[str] | None, encoding: str | None) -> Iterator[Row]:
    """(where, values by name) of every row; `columns` are those that are asked for, which Parquet files read alone.
    None asks for all.

    Raises:
        DataError: the file is damaged or empty, or a row is not one of its kind; names the line or row.
    """
    empty = True
    for row in _READERS[kind(file)](file, columns, encoding):
        empty = False
        yield row
    if empty:
        raise DataError(f"{file}: the file is empty or has no rows; leave it out or fill it")


def text_of(values: dict[str, Any], where: str, key: str | None) -> str:
    """Take the text out of a row: the value of `key`, by default of `text`, else of `content`.

    Raises:
        DataError: there is no such key, or it holds no text.
    """
    name = key if key is not None else next((k for k in TEXT_KEYS if k in values), None)
    if name is None or name not in values:
        asked = f"no key '{key}'" if key else "neither 'text' nor 'content'"
        raise DataError(f"{where}: {asked} among {', '.join(sorted(values))}; name the text's key or column (--key)")
    text = values.pop(name)
    if not isinstance(text, str) or not text:
        what = "is empty" if text == "" else f"holds {_named(text)}, not text"
        raise DataError(f"{where}: '{name}' {what}; remove the line or name another key (--key)")
    return _sound(text, where, f"'{name}'")


def whole_row(values: dict[str, Any], where: str) -> str:
    """The names and values of a row, one pair a line.

    Raises:
        DataError: a value is not text.
    """
    return _sound("\n".join(f"{name}: {_written(value)}" for name, value in values.items()), where, "the row")


def _written(value: Any) -> str:
    if value is None or (isinstance(value, str | int | float) and not isinstance(value, bool)):
        return "" if value is None else str(value)
    return json.dumps(value, ensure_ascii=False, default=str)


def _sound(text: str, where: str, what: str) -> str:
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise DataError(f"{where}: {what} holds a NUL or half a surrogate pair, which is not text; repair the line")
    return text


def label_of(values: dict[str, Any], where: str, name: str, labels: Sequence[str]) -> int:
    """The number in `labels` of the label under `name`, which is written as in JSON: 1, true, "good".

    Raises:
        DataError: there is none, it is no text, whole number or boolean, or it is another one.
    """
    if name not in values:
        raise DataError(f"{where}: no label '{name}' among {', '.join(sorted(values))}; name its key (label = ...)")
    value = values[name]
    if value is None or isinstance(value, float | list | dict):
        raise DataError(f"{where}: the label is {_named(value)}; give text, a whole number, true or false")
    label = value if isinstance(value, str) else json.dumps(value)
    if label not in labels:
        raise DataError(f"{where} has the label '{label}': {nearest(label, labels)}")
    return list(labels).index(label)


def json_object(line: str, where: str) -> dict[str, Any]:
    """The JSON object in a line.

    Raises:
        DataError: it is not JSON, no object, has a key twice, or is nested or long beyond what a parser takes.
    """
    try:
        record = _JSON.decode(line)
    except _Twice as error:
        raise DataError(f"{where}: an object has the key {error} twice; one of them would be lost: remove it") from None
    except RecursionError:
        raise DataError(f"{where}: the JSON is nested too deeply; write a flat object") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not valid JSON ({error}); every line must be one JSON object") from None
    except ValueError:
        raise DataError(f"{where}: a whole number of thousands of digits; write it as text") from None
    if not isinstance(record, dict):
        raise DataError(f'{where}: a JSON {_named(record)}, not an object; write {{"text": ...}} on each line')
    return record


class _Twice(Exception):
    """A key that an object has twice."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise _Twice(repr(Counter(name for name, _ in pairs).most_common(1)[0][0]))
    return values


_JSON = json.JSONDecoder(object_pairs_hook=_once)


def _named(value: Any) -> str:
    return "null" if value is None else f"a {type(value).__name__}"


def _json_lines(file: Path, columns: Sequence[str] | None, encoding: str | None) -> Iterator[Row]:
    for number, line in lines(file, encoding):
        if line.strip():
            yield f"{file}:{number}", json_object(line, f"{file}:{number}")


def _table(file: Path, columns: Sequence[str] | None, encoding: str | None) -> Iterator[Row]:
    csv.field_size_limit(CELL)
    numbered = (line + "\n" for _, line in lines(file, encoding))
    first = next(numbered, "")
    reader = csv.reader(chain([first], numbered), delimiter=delimiter(file, first), strict=True)
    try:
        names = next(reader, [])
        if len(set(names)) < len(names):
            raise DataError(f"{file}: two columns of its first line have one name ({', '.join(names)}); rename one")
        for cells in reader:
            where = f"{file}:{reader.line_num}"
            if cells and len(cells) != len(names):
                raise DataError(f"{where}: {len(cells)} cells, but the first line names {len(names)} columns")
            if cells:
                yield where, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise DataError(f'{file}:{reader.line_num}: not a row of a table ({error}); quote cells with ""') from None


def delimiter(file: Path, first: str) -> str:
    """A tab in .tsv; else the commonest of comma, semicolon (spreadsheets of many countries) and tab in the names."""
    return "\t" if kind(file) == ".tsv" else max(",;\t", key=lambda sign: (first.count(sign), sign == ","))


@contextmanager
def arrow(file: Path, what: str = "Parquet file") -> Iterator[None]:
    """Inside, the errors of pyarrow are said of a file.

    Raises:
        DataError: pyarrow is not installed, or cannot read the file.
    """
    try:
        import pyarrow
    except ModuleNotFoundError:
        raise DataError(
            f"{file}: a {what} needs the package pyarrow, which is not installed: pip install 'handscroll[documents]'"
        ) from None
    try:
        yield
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise DataError(f"{file}: not a {what} that can be read ({first}); write it again") from None


def _parquet(file: Path, columns: Sequence[str] | None, encoding: str | None) -> Iterator[Row]:
    with arrow(file):
        from pyarrow import parquet

        with parquet.ParquetFile(file) as table:
            names = table.schema_arrow.names
            taken = names if columns is None else [name for name in columns if name in names]
            if not taken:
                yield f"{file}", dict.fromkeys(names)  # whoever asks says what it looks for
                return
            number = 0
            check_groups(table.metadata, taken, file)
            for batch in table.iter_batches(batch_size=BATCH, columns=taken):
                for values in batch.to_pylist():
                    number += 1
                    yield f"{file}:{number}", values


def check_groups(about: Any, columns: Sequence[str], file: Path) -> None:
    """
    Raises:
        DataError: a row group of a Parquet file is too large to be read at once.
    """
    for group in range(about.num_row_groups):
        for at in range(about.num_columns):
            column = about.row_group(group).column(at)
            if column.path_in_schema.split(".")[0] in columns and column.total_uncompressed_size > _PACKED:
                size = column.total_uncompressed_size / 1e9
                raise DataError(
                    f"{file}: '{column.path_in_schema}' has {size:.1f} GB in one row group, more than is read at once; "
                    "write it with smaller row groups"
                )


_READERS: dict[str, Callable[[Path, Sequence[str] | None, str | None], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".csv": _table,
    ".tsv": _table,
    ".parquet": _parquet,
}
