"""Rows of CSV, TSV and JSON lines. A line that is no row is refused by its number, or counted."""

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from handscroll.base.errors import DataError
from handscroll.data.table.files import Source
from handscroll.data.table.table import Ledger
from handscroll.text.encodings import sniff
from handscroll.text.files import decoded, lines_of
from handscroll.text.rows import CELL, delimiter, json_object

Numbered = tuple[int, dict[str, Any]]
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_SENTENCE = (".", "!", "。", "！", "…")


@dataclass(frozen=True)
class How:
    """How files of lines are read.

    names: the columns of CSV and TSV files whose first line does not name them.
    encoding: overrides the detection (byte order mark, UTF-8, then gb18030 that reads like Chinese).
    skip_broken: lines that are no rows are counted and left out; otherwise the first of them is an error.
    quotes: whether "..." around a cell is its quotation, as always in CSV; None decides for each TSV file.
    """

    names: Sequence[str] = ()
    encoding: str | None = None
    skip_broken: bool = False
    quotes: bool | None = None

    def broken(self, error: DataError, place: str, step: Ledger) -> None:
        """Count a line that is no row.

        Raises:
            DataError: broken lines are not skipped.
        """
        if not self.skip_broken:
            raise DataError(
                f"{error}. Repair the line, or leave such lines out, counted (--skip-broken; "
                "skip_broken = true in a recipe)"
            )
        step.leave_out("broken lines", place)


def text_blocks(source: Source, how: How, step: Ledger) -> Iterator[str]:
    """The text of a file; an encoding other than UTF-8 is noted.

    Raises:
        DataError: the file is empty, no text, or in no known encoding.
    """
    blocks = source.blocks()
    first = next(blocks, b"")
    name, _ = sniff(first, str(source.path), how.encoding)
    if name != "utf-8":
        step.note(f"{source.path}: read as {name}")
    return decoded(chain([first], blocks), source.path, how.encoding)


def json_rows(source: Source, how: How, step: Ledger) -> Iterator[Numbered]:
    """(line, values) of the objects in a file of JSON lines.

    Raises:
        DataError: a line is no JSON object, or holds half a surrogate pair, and broken lines are not skipped.
    """
    for number, line in lines_of(text_blocks(source, how, step)):
        if not line.strip():
            continue
        where = f"{source.path}:{number}"
        try:
            values = json_object(line, where)
            if "\\ud" in line.lower():
                check_text(values, where)
        except DataError as error:
            how.broken(error, f"{source.path}, line {number}", step)
        else:
            yield number, values


def check_text(value: Any, where: str) -> None:
    """
    Raises:
        DataError: a text in a JSON value holds half a surrogate pair.
    """
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        raise DataError(f"{where}: half a surrogate pair, which is not text; repair the line")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        check_text(inner, where)


def cell_rows(source: Source, how: How, step: Ledger) -> Iterator[Numbered]:
    """(row, values) of a CSV or TSV file; rows count from 1, without the line that names the columns.

    The first line names the columns unless `how.names` does.

    Raises:
        DataError: the first line does not look like names (a number, sentences, a cell that stands in the same column
            of many rows), or says the given ones; a row has more or fewer cells than
            there are columns, or is badly quoted, and broken lines are not skipped.
    """
    csv.field_size_limit(CELL)
    file = source.path
    lines = [line for _, line in lines_of(text_blocks(source, how, step))]
    sign = delimiter(file, lines[0])
    quoted = _quotes(file, lines, sign, how, step)
    rows = _cells((line + "\n" for line in lines), file, sign, quoted)
    names = list(how.names) or _names(rows, file, step)
    number = again = 0
    for line, cells in rows:
        if cells == []:
            continue
        number += 1
        if isinstance(cells, DataError) or len(cells) != len(names):
            wrong = f"{file}:{line}: {len(cells) if isinstance(cells, list) else 0} cells, but {len(names)} columns"
            error = cells if isinstance(cells, DataError) else DataError(f"{wrong} ({', '.join(names)})")
            how.broken(error, f"{file}, line {line}", step)
            continue
        if number == 1 and how.names and cells == names:
            raise DataError(f"{file}: its first line names the columns already ({', '.join(names)}); give no names")
        again += not how.names and any(cell == name for cell, name in zip(cells, names, strict=True))
        yield number, dict(zip(names, cells, strict=True))
    if again >= 2 and 100 * again >= number:  # labels of a file without names; one cell may well say "text"
        raise _no_names(file, names, f"its cells stand in {again:,} rows again")


def _cells(lines: Iterator[str], file: Path, sign: str, quoted: bool) -> Iterator[tuple[int, list[str] | DataError]]:
    quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    reader = csv.reader(lines, delimiter=sign, strict=True, quoting=quoting)
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            what = f'{file}:{reader.line_num}: not a row of a table ({error}); quote cells with ""'
            yield reader.line_num, DataError(what)
        else:
            yield reader.line_num, cells


def _names(rows: Iterator[tuple[int, list[str] | DataError]], file: Path, step: Ledger) -> list[str]:
    cells = next((cells for _, cells in rows if cells != []), [])
    if isinstance(cells, DataError):
        raise cells
    found = [cell.strip() for cell in cells]
    sentences = sum(cell.endswith(_SENTENCE) for cell in found)
    if any(_number(cell) or _no_word(cell) for cell in found) or 2 * sentences > len(found):
        raise _no_names(file, cells)
    named = [cell or f"column {number}" for number, cell in enumerate(found, start=1)]
    if named != found:
        step.note(f"{file}: columns without a name are called {', '.join(sorted(set(named) - set(found)))}")
    twice = next((name for name in named if named.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{file}: two columns of its first line have the same name ({twice}); rename one")
    return named


def _no_names(file: Path, cells: list[str], why: str = "") -> DataError:
    shown = " | ".join(cell[:40] for cell in cells)
    return DataError(
        f"{file}: its first line does not look like names of columns ({shown}{'; ' * bool(why)}{why}). Name the "
        f"{len(cells)} columns (--names a,b,c; names = ... in a recipe), or add a line of names to the file"
    )


def _no_word(cell: str) -> bool:
    return bool(cell) and not any(character.isalnum() for character in cell)


def _number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _quotes(file: Path, lines: list[str], sign: str, how: How, step: Ledger) -> bool:
    """Whether cells are quoted. Most TSV files hold quotes as plain characters, spreadsheets and pandas quote cells.

    A TSV file counts as quoted if every cell that begins with a quote is a whole quotation and one of them doubles a
    quote inside, or every cell is one; or if only quotation gives every line the same number of cells.
    """
    if how.quotes is not None or sign != "\t":
        return how.quotes is not False
    cells = [line.split(sign) for line in lines if line]
    begun = [cell for row in cells for cell in row if cell.startswith('"')]
    if not begun:
        return False
    if len({len(row) for row in cells}) == 1:
        whole = all(_QUOTED.fullmatch(cell) for cell in begun)
        quoted = whole and (any('""' in cell[1:-1] for cell in begun) or len(begun) == sum(map(len, cells)))
    else:
        read = [row for _, row in _cells((line + "\n" for line in lines), file, sign, True)]
        quoted = not any(isinstance(row, DataError) for row in read) and len({len(row) for row in read if row}) == 1  # type: ignore[arg-type]
    if not quoted:
        step.note(f"{file}: {len(begun):,} cells begin with a quote, which is read as a plain character")
    return quoted
