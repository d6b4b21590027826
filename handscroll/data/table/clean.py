"""Cleaning the texts of a table: each step is asked for, and every row that it changes or leaves out is counted."""

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from handscroll.base.errors import ConfigError, DataError, nearest
from handscroll.data.personal import REGIONS, counted, find, masked
from handscroll.data.survey.quality import MARKUP
from handscroll.data.table.duplicates import distinct_ids, without_copies
from handscroll.data.table.table import Ledger, Record, Table, leaves, value_of
from handscroll.text.html import visible

Step = Callable[[str], str]
LINE = 15  # characters of a line that may count as boilerplate; shorter ones ("Yes.", "* * *") repeat naturally
_SHOWN = 3
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff\u200b\u2060\u00ad]")
_BLANKS = re.compile(r"[^\S\n]+")


@dataclass(frozen=True)
class Cleaning:
    """What is done to the texts, in this order; nothing is done that is not asked for.

    mojibake: text that was decoded with the wrong encoding is decoded again (ftfy's `fix_encoding`, which leaves quotes
        and widths alone).
    unicode: a normal form: NFC, or NFKC, which also turns full-width letters and ligatures into plain ones.
    control: control characters, soft hyphens and zero-width spaces are taken out; tabs and line ends stay.
    html: tags become the text and breaks that they show, entities their characters.
    boilerplate: lines of 15 characters or more that stand in at least so many rows are taken out (0: none).
    personal: telephone numbers, e-mail addresses, numbers of people, cards and accounts (`handscroll.data.personal`)
        are replaced by their kind in brackets, such as [phone].
    regions: countries whose telephone numbers are found without the code of the country, by two letters each.
    space: blanks at line ends and runs of blanks and of blank lines are folded, line ends become line feeds.
    empty: rows without a text are left out.
    copies: rows whose text is the same but for case and spaces are left out, but for the first.
    near: so are rows whose runs of three words have at least this Jaccard index with an earlier row's.
    ids: a column; rows with the id of an earlier row are left out.
    """

    mojibake: bool = False
    unicode: Literal["", "NFC", "NFKC"] = ""
    control: bool = False
    html: bool = False
    boilerplate: int = 0
    personal: bool = False
    regions: tuple[str, ...] = REGIONS
    space: bool = False
    empty: bool = False
    copies: bool = False
    near: float | None = None
    ids: str = ""

    def __post_init__(self) -> None:
        if self.unicode not in ("", "NFC", "NFKC"):
            raise ConfigError(f"unicode '{self.unicode}': {nearest(self.unicode, ('NFC', 'NFKC'))}")
        if self.boilerplate < 0 or self.boilerplate == 1:
            raise ConfigError(
                f"boilerplate {self.boilerplate}: give the rows in which a line must stand, 2 or more, or 0"
            )
        if self.regions != REGIONS and not self.personal:
            raise ConfigError(f"regions {', '.join(self.regions)}: they belong to personal, which is not asked for")


def clean(table: Table, columns: Sequence[str], how: Cleaning, private: Sequence[str] = ()) -> Table:
    """The table with the texts of `columns` cleaned; copies and empty texts are judged by the first of them.

    A column may hold lists and objects, such as the messages of a conversation: all texts in them are cleaned. A dotted
    column goes into objects (`meta.text`). Personal data is masked in the columns `private`, by default in `columns`.

    Raises:
        ConfigError: no column is named, or ftfy is asked for and not installed.
        DataError: a column is not there, or no row is left.
    """
    if not columns:
        raise ConfigError("name the columns whose texts are cleaned")
    table.require(*columns)
    for reason, step in _steps(how):
        table = _changed(table, columns, reason, step)
    if how.boilerplate:
        table = _without_boilerplate(table, columns, how.boilerplate)
    if how.personal:
        table = _without_personal(table, private or columns, how.regions)
    if how.space:
        table = _changed(table, columns, "rows with blanks folded", folded)
    if how.empty:
        table = table.keep(lambda record: _full(record.get(columns[0])), "empty texts")
    if how.ids:
        table = distinct_ids(table, how.ids, skip=True)
    if how.copies or how.near is not None:
        table = without_copies(table, columns[0], how.near)
    return table


def _full(value: Any) -> bool:
    """Whether something stands in a cell; 0 and false do."""
    return value not in (None, [], {}) and bool(str(value).strip())


def _steps(how: Cleaning) -> Iterator[tuple[str, Step]]:
    if how.mojibake:
        yield "rows with a wrong encoding decoded again", _ftfy()
    if form := how.unicode:
        yield f"rows brought to {form}", lambda text: unicodedata.normalize(form, text)
    if how.control:
        yield "rows with control characters taken out", lambda text: _CONTROL.sub("", text)
    if how.html:
        yield "rows with HTML turned into text", without_html


def _ftfy() -> Step:
    try:
        import ftfy
    except ModuleNotFoundError:
        raise ConfigError(
            "text with a wrong encoding is repaired by the package ftfy, which is not installed: pip install "
            "'handscroll[clean]', or leave out mojibake"
        ) from None
    return ftfy.fix_encoding


def without_html(text: str) -> str:
    """A text without remnants of HTML: what its tags show, and the characters that its entities mean.

    Text without a known tag or entity comes back as it is: `a < b` and `List<int>` are no HTML.
    """
    found = [match[0] for match in MARKUP.finditer(text)]
    if not any(one.startswith("<") for one in found):
        return html.unescape(text) if found else text
    try:
        return visible(text, "text").text
    except DataError:  # a script that is never closed hides the rest: its tags alone go
        return html.unescape(MARKUP.sub(lambda match: "" if match[0].startswith("<") else match[0], text))


def folded(text: str) -> str:
    """A text whose runs of blanks are one blank, with at most one blank line between lines."""
    lines = (_BLANKS.sub(" ", line).strip() for line in re.split(r"\r\n|\r|\n", text))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")


def _changed(table: Table, columns: Sequence[str], reason: str, change: Step) -> Table:
    step, kept = Ledger(), []
    for record in table:
        new = _new(record, columns, change)
        if new:
            step.repair(reason, record.place)
        kept.append(record.having(**new) if new else record)
    return table.having(kept, step)


def _new(record: Record, columns: Sequence[str], change: Step) -> dict[str, Any]:
    values = record.values
    for name in columns:
        values = _within(values, name, change)
    before = record.values
    return {name: new for name, new in values.items() if new is not before[name] and new != before[name]}  # NaN: is not


def _within(values: Mapping[str, Any], name: str, change: Step) -> Mapping[str, Any]:
    """The values with every text under a name changed; a dotted name goes where `value_of` finds it."""
    if name in values:
        return {**values, name: _deep(values[name], change)}
    first, _, rest = name.partition(".")
    if value_of(values, name) is None:
        return values
    inner = values[first]
    if isinstance(inner, list):
        return {**values, first: [_within(one, rest, change) for one in inner]}
    return {**values, first: _within(inner, rest, change)}


def _deep(value: Any, change: Step) -> Any:
    """A value with every text in it changed; the names of objects stay."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_deep(one, change) for one in value]
    return {name: _deep(one, change) for name, one in value.items()} if isinstance(value, dict) else value


def _numbers(value: Any) -> int:
    """How many whole numbers of seven digits or more stand in a value: no text step reaches them."""
    return sum(isinstance(one, int) and abs(one) >= 10**6 for one in leaves(value))


def _without_personal(table: Table, columns: Sequence[str], regions: Sequence[str]) -> Table:
    kinds = Counter[str]()

    def change(text: str) -> str:
        found = find(text, regions)
        kinds.update(one.kind for one in found)
        return masked(text, found)

    made = _changed(table, columns, "rows with personal data masked", change)
    step = Ledger()
    where = "all columns" if set(table.columns) <= set(columns) else ", ".join(f"'{name}'" for name in columns)
    touched = Counter(
        name for old, new in zip(table, made, strict=True) for name in columns if old.get(name) != new.get(name)
    )
    step.note(
        f"personal data that was masked in {where}: {counted(kinds)}; names and addresses of people are not found"
    )
    if len(columns) > 1 and touched:
        step.note("rows masked by column: " + ", ".join(f"'{name}' {count:,}" for name, count in touched.items()))
    if left := sum(_numbers(record.get(name)) for record in table for name in columns):
        step.note(f"{left:,} whole numbers of seven digits or more are no texts, and were left as they are")
    return made.having(made.records, step)


def _without_boilerplate(table: Table, columns: Sequence[str], least: int) -> Table:
    rows = Counter(line for record in table for line in _lines(record, columns))
    common = {line: count for line, count in rows.items() if count >= least}

    def change(text: str) -> str:
        lines = text.split("\n")
        kept = [line for line in lines if line.strip() not in common]
        return text if len(kept) == len(lines) else "\n".join(kept)

    made = _changed(table, columns, f"rows with lines taken out that stand in {least} rows or more", change)
    if not common:
        return made
    shown = sorted(common.items(), key=lambda one: (-one[1], one[0]))[:_SHOWN]
    step = Ledger()
    step.note(
        f"{len(common):,} lines were boilerplate: "
        + "; ".join(f"'{line[:60]}' in {count:,} rows" for line, count in shown)
    )
    return made.having(made.records, step)


def _lines(record: Record, columns: Sequence[str]) -> set[str]:
    texts = [text for name in columns for text in leaves(record.get(name)) if isinstance(text, str)]
    return {bare for text in texts for line in text.split("\n") if len(bare := line.strip()) >= LINE}
