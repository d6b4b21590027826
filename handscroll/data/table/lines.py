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
from handscroll.data.table.table import FIRST, Ledger
from handscroll.text.encodings import sniff
from handscroll.text.files import decoded, lines_of
from handscroll.text.rows import CELL, delimiter, json_object

Numbered = tuple[int, dict[str, Any]]
Ranged = tuple[int, int, list[str] | DataError]  # first and last line of a row, and its cells
LONG = 20  # lines; a longer row is noted
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_REREAD = "the lines behind it are read as rows of their own"
_LOOK = "look at them, since a quote that does not end its cell joins rows"
_SENTENCE = (".", "!", "。", "！", "…")


@dataclass(frozen=True)
class How:
    """How files of lines are read.

    names: the columns of CSV and TSV files whose first line does not name them.
    encoding: overrides the detection (byte order mark, UTF-8, then gb18030 that reads like Chinese).
    skip_broken: lines that are no rows are counted and left out; otherwise the first of them is an error, which offers
    to leave them out unless this is None: then whoever asks cannot choose it.
    quotes: whether "..." around a cell is its quotation, as always in CSV; None decides for each TSV file.
    """

    names: Sequence[str] = ()
    encoding: str | None = None
    skip_broken: bool | None = None
    quotes: bool | None = None

    def broken(self, error: DataError, place: str, step: Ledger) -> None:
        """Count a line that is no row.

        Raises:
            DataError: broken lines are not skipped.
        """
        if self.skip_broken is None:
            raise DataError(f"{error}. Repair the line, or take it out of the file")
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

    The first line names the columns unless `how.names` does. Rows of very many lines are noted.

    Raises:
        DataError: the first line does not look like names (a number, sentences, a cell that stands in the same column
            of many rows), or says the given ones; a row has more or fewer cells than
            there are columns, or is badly quoted, and broken lines are not skipped.
    """
    csv.field_size_limit(CELL)
    file = source.path
    lines = _lines(source, how, step)
    sign = delimiter(file, lines[0])
    quoted = _quotes(file, lines, sign, how, step)
    rows = _cells(lines, file, sign, quoted)
    names = list(how.names) or _names(rows, file, step)
    number = again = 0
    long = list[str]()
    for line, last, cells in rows:
        if cells == []:
            continue
        number += 1
        if isinstance(cells, DataError) or len(cells) != len(names):
            wrong = f"{file}:{line}: {len(cells) if isinstance(cells, list) else 0} cells, but {len(names)} columns"
            error = cells if isinstance(cells, DataError) else DataError(f"{wrong} ({', '.join(names)})")
            joined = isinstance(cells, list)  # lines of a cell that is well quoted; others are read on their own
            for at in range(line, last + 1 if joined else line + 1):
                how.broken(error, f"{file}, line {at}", step)
            if last > line and not joined:
                step.note(f"{file}: a quote in line {line} does not end its cell up to line {last}; {_REREAD}")
            continue
        if number == 1 and how.names and cells == names:
            raise DataError(f"{file}: its first line names the columns already ({', '.join(names)}); give no names")
        if number == 1 and how.names and any(one.strip() == name for one, name in zip(cells, names, strict=True)):
            shown = " | ".join(one[:40] for one in cells)
            raise DataError(
                f"{file}: names are given, so its first line ({shown}) is read as a row, but it names columns; correct "
                "the names in the file and give none, or take the line out"
            )
        if last - line >= LONG:
            long.append(f"{line:,} to {last:,}")
        again += not how.names and any(cell == name for cell, name in zip(cells, names, strict=True))
        yield number, dict(zip(names, cells, strict=True))
    if long:
        shown = ", ".join(long[:FIRST]) + ", ..." * (len(long) > FIRST)
        step.note(f"{file}: rows of more than {LONG} lines: {len(long):,} (lines {shown}); {_LOOK}")
    if again >= 2 and 100 * again >= number:  # labels of a file without names; one cell may well say "text"
        raise _no_names(file, names, f"its cells stand in {again:,} rows again")


def _lines(source: Source, how: How, step: Ledger) -> list[str]:
    """The lines of a file; where no line feed ends one, carriage returns do, as on old Macintoshes."""
    lines = [line for _, line in lines_of(text_blocks(source, how, step))] or [""]
    if len(lines) > 1 or "\r" not in lines[0]:
        return lines
    step.note(f"{source.path}: its lines end in carriage returns without line feeds")
    return lines[0].removesuffix("\r").split("\r")


def _cells(lines: Sequence[str], file: Path, sign: str, quoted: bool) -> Iterator[Ranged]:
    """The cells of each row, with its first and last line. After a row that is none, its second line begins a row."""
    quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    begin = 0
    while begin < len(lines):
        rest = (lines[at] + "\n" for at in range(begin, len(lines)))
        reader = csv.reader(rest, delimiter=sign, strict=True, quoting=quoting)
        first = begin
        try:
            for cells in reader:
                yield first + 1, begin + reader.line_num, cells
                first = begin + reader.line_num
            return
        except csv.Error as error:
            last = begin + reader.line_num
            why = "a carriage return in a cell without quotes" if "new-line character" in str(error) else str(error)
            upto = f", read up to line {last}" if last > first + 1 else ""
            what = f'{file}:{first + 1}: not a row of a table ({why}{upto}); quote cells with ""'
            yield first + 1, last, DataError(what)
            begin = first + 1


def _names(rows: Iterator[Ranged], file: Path, step: Ledger) -> list[str]:
    cells = next((cells for _, _, cells in rows if cells != []), [])
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
        f"{len(cells)} columns (--names a,b,c; names = ... in a recipe), which makes this line a row; if it does name "
        "them, rename in the file what looks like a value, such as a year"
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
        read = [row for _, _, row in _cells(lines, file, sign, True)]
        quoted = not any(isinstance(row, DataError) for row in read) and len({len(row) for row in read if row}) == 1  # type: ignore[arg-type]
    if not quoted:
        step.note(f"{file}: {len(begun):,} cells begin with a quote, which is read as a plain character")
    return quoted
