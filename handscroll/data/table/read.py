"""Files to a table of rows: CSV, TSV, JSON lines, JSON, Parquet, Arrow, in folders, archives and saved data sets.

Every row of every file is in the table or in its account. Nothing is converted: cells of CSV and TSV files are texts,
values of the other kinds are what the file holds.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from handscroll.base.errors import ConfigError, DataError
from handscroll.data.table.arrow import arrow_rows, parquet_rows
from handscroll.data.table.duplicates import repeated_ids
from handscroll.data.table.files import Source, account_of, sources
from handscroll.data.table.lines import How, Numbered, cell_rows, check_text, json_rows, text_blocks
from handscroll.data.table.squad import is_squad, squad_rows
from handscroll.data.table.table import Account, Ledger, Record, Table, columns_of
from handscroll.text.files import Paths

_CELLS = (".csv", ".tsv")


def read_table(
    paths: Paths,
    names: Sequence[str] = (),
    split: str | None = None,
    encoding: str | None = None,
    skip_broken: bool | None = None,
    quotes: bool | None = None,
) -> Table:
    """The rows of tables: files, globs, folders (recursive), zip archives, and folders saved by `datasets`.

    names: the columns of CSV and TSV files without a line of names.
    split: which split of a folder, archive or saved data set (train, validation, test, ...).
    encoding: overrides the detection (byte order mark, UTF-8, then gb18030 that reads like Chinese).
    skip_broken: broken lines are left out and counted; otherwise the first of them is an error, which names the option
    that leaves them out if this is False, and not if it is None.
    quotes: whether TSV cells are quoted as in CSV; by default each file shows it.

    JSON files hold a list of objects, an object with one such list ({"data": [...]}), an object of objects (their
    names become the column `id`), or questions in the form of SQuAD (a row each: id, title, context, question,
    answers).

    Raises:
        DataError: a path that cannot be read, an empty or damaged file, a broken line, or no row at all.
        ConfigError: names for files that have their own.
    """
    if len(set(names)) < len(names) or not all(names):
        raise ConfigError(f"names of columns: {', '.join(map(repr, names))}; give each column a name of its own")
    step, records = Ledger(), []
    how = How(tuple(names), encoding, skip_broken, quotes)
    found = sources(paths, split, step)
    for source in found:
        if names and source.kind not in _CELLS:
            raise ConfigError(f"{source.path}: rows of a {source.kind} file name their own columns; give no names")
        before = len(records)
        for number, values in _READERS[source.kind](source, how, step):
            records.append(Record(values, str(source.path), number))
        if len(records) == before:
            raise DataError(f"{source.path}: the file has no rows; leave it out or fill it")
        if source.data is None:
            _say_account(source.path, len(records) - before, step)
    _same_columns(found, records, step)
    if again := repeated_ids(records):
        one, first = (records[at].place for at in next(iter(again.items())))
        step.note(f"rows with the id of an earlier row, which stay: {len(again):,} ({one} has that of {first})")
    broken = sum(step.counts.get((0, reason), 0) for reason in step.left_out)
    account = step.onto(Account(len(records) + broken))
    return Table(tuple(records), columns_of(records), account)


def _same_columns(found: Sequence[Source], records: Sequence[Record], step: Ledger) -> None:
    """Say it where files of one table have different columns."""
    if len(found) < 2:
        return
    columns: dict[str, set[str]] = {}
    for record in records:
        columns.setdefault(record.file, set()).update(record.values)
    shared = set.intersection(*columns.values())
    for file, own in columns.items():
        if own - shared:
            step.note(f"{file} has columns that other files lack: {', '.join(sorted(own - shared))}")


def _say_account(file: Path, count: int, step: Ledger) -> None:
    """Say what a step before did to the rows of a file, where it left its account beside them."""
    try:
        before = json.loads(account_of(file).read_bytes())["account"]
        told = [f"{one['reason']}: {one['count']:,}" for kind in ("left_out", "repaired") for one in before[kind]]
        read, kept = int(before["read"]), int(before["kept"])
    except FileNotFoundError:
        return
    except (OSError, ValueError, LookupError, TypeError) as error:
        step.note(f"{account_of(file)}: the account of {file.name} cannot be read ({error})")
        return
    if kept != count:
        step.note(f"{file}: {kept:,} rows were written and {count:,} are there; it was changed since")
    else:
        step.note("; ".join([f"{file}: cleaned before, {read:,} rows read, {kept:,} kept", *told]))


def _json_file(source: Source, how: How, step: Ledger) -> Iterator[Numbered]:
    text = "".join(text_blocks(source, how, step))
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            step.note(f"{source.path}: read as JSON lines, because it holds one object behind another")
            yield from json_rows(source, how, step)
            return
        raise DataError(f"{source.path}:{error.lineno}: not valid JSON ({error}); repair the file") from None
    except RecursionError:
        raise DataError(f"{source.path}: the JSON is nested too deeply; write a list of flat objects") from None
    except ValueError:
        raise DataError(f"{source.path}: a whole number of thousands of digits; write it as text") from None
    if "\\ud" in text.lower():
        check_text(value, str(source.path))
    if is_squad(value):
        yield from zip(count(1), squad_rows(value, str(source.path), step), strict=False)
        return
    for number, row in enumerate(_rows_of(value, source, step), start=1):
        if isinstance(row, dict):
            yield number, row
        else:
            error = DataError(f"{source.path}: row {number} is a JSON {type(row).__name__}, not an object")
            how.broken(error, f"{source.path}, row {number}", step)


def _rows_of(value: Any, source: Source, step: Ledger) -> list[Any]:
    """The rows in a JSON value: a list, the one list in an object, or an object of objects."""
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        raise DataError(f"{source.path}: a JSON {type(value).__name__}; write a list of objects")
    lists = [name for name, inner in value.items() if isinstance(inner, list) and inner and isinstance(inner[0], dict)]
    if len(lists) == 1:
        rest = ", ".join(name for name in value if name != lists[0])
        step.note(f"{source.path}: the rows are those of '{lists[0]}'" + (f", without {rest}" if rest else ""))
        return value[lists[0]]
    if value and all(isinstance(inner, dict) for inner in value.values()):
        step.note(f"{source.path}: an object of objects; their names are the column 'id'")
        return [{"id": name, **inner} for name, inner in value.items()]
    raise DataError(
        f"{source.path}: an object with {len(lists)} lists of objects ({', '.join(lists or value)}); write the rows as "
        'a list, or as {"data": [...]}'
    )


def _packed(read: Callable[[Source], Iterator[dict[str, Any]]]) -> Callable[[Source, How, Ledger], Iterator[Numbered]]:
    return lambda source, how, step: enumerate(read(source), start=1)


_READERS: dict[str, Callable[[Source, How, Ledger], Iterator[Numbered]]] = {
    ".csv": cell_rows,
    ".tsv": cell_rows,
    ".jsonl": json_rows,
    ".json": _json_file,
    ".parquet": _packed(parquet_rows),
    ".arrow": _packed(arrow_rows),
}
