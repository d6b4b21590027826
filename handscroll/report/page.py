"""A report page: sections of tables, figures and text, rendered as one HTML file that loads nothing."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from handscroll.base.errors import DataError
from handscroll.report.drawing import printable, vetted
from handscroll.report.language import LANGUAGES, say, speaking
from handscroll.report.palette import css

if TYPE_CHECKING:
    from jinja2 import Template

Align = Literal["left", "right", "center"]
SHADES = 5  # shades behind the parts of a text
_SHORT, _LONG = 12, 60  # characters of a cell
_NUMBER = re.compile(r"[-+−–—±<>≈]?\s*[\d.,  ]*\s*[%×KMGx]?(\s*±.*)?")


@dataclass(frozen=True)
class Table:
    """A table; None in a cell is shown as a dash. `align` defaults to right for columns of numbers
    after the first, whose cells head the rows.

    `highlight_row` marks one row (from 0) and says "chosen" to screen readers. A `folded` table opens on request.

    Raises:
        DataError: a row of another width than `columns`, a highlighted row that does not exist.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ""
    highlight_row: int | None = None
    align: Sequence[Align] | None = None
    folded: bool = False
    kind: ClassVar[str] = "table"

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise DataError(
                    f"table '{self.caption}': row {number} has {len(row)} cells for {len(self.columns)} columns"
                )
        if self.highlight_row is not None and not 0 <= self.highlight_row < len(self.rows):
            raise DataError(f"table '{self.caption}': no row {self.highlight_row} to highlight among {len(self.rows)}")
        if self.align is not None and len(self.align) != len(self.columns):
            raise DataError(f"table '{self.caption}': {len(self.align)} alignments for {len(self.columns)} columns")
        wrong = set(self.align or ()) - {"left", "right", "center"}
        if wrong:
            raise DataError(f"table '{self.caption}': alignment '{wrong.pop()}' is not one of left, right, center")

    @property
    def cells(self) -> list[list[str]]:
        """The rows as text."""
        return [["–" if value is None else str(value) for value in row] for row in self.rows]

    @property
    def alignment(self) -> list[str]:
        """One of left, right, center for each column."""
        if self.align is not None:
            return list(self.align)
        columns = [[row[i] for row in self.cells] for i in range(1, len(self.columns))]
        numbers = [bool(column) and all(map(_NUMBER.fullmatch, column)) for column in columns]
        return ["left", *("right" if number else "left" for number in numbers)]

    @property
    def classes(self) -> list[str]:
        """The alignment of each column, with "short" where no cell needs to break and "long" where some are prose."""
        sizes = [max((len(row[at]) for row in self.cells), default=0) for at in range(len(self.columns))]
        kinds = [" short" if size <= _SHORT else " long" if size > _LONG else "" for size in sizes]
        return [align + kind for align, kind in zip(self.alignment, kinds, strict=True)]


@dataclass(frozen=True)
class Figure:
    """An SVG from `handscroll.report.plots`; `description` is what a screen reader says in its place.

    `narrow` is the same plot drawn for a phone, shown instead on small screens.
    """

    svg: str
    caption: str
    description: str
    narrow: str = ""
    kind: ClassVar[str] = "figure"


@dataclass(frozen=True)
class Facts:
    """A few figures that carry the result: pairs of (value, what it is)."""

    pairs: Sequence[tuple[str, str]]
    kind: ClassVar[str] = "facts"


@dataclass(frozen=True)
class Text:
    """Paragraphs of plain text."""

    paragraphs: Sequence[str]
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Code:
    """Text shown as it is: spaces and line ends kept, long lines wrapped."""

    text: str
    caption: str = ""
    kind: ClassVar[str] = "code"


@dataclass(frozen=True)
class Marked:
    """A text in parts, each with a shade from 0 to 1 and whether it is marked; blanks and line ends are kept."""

    parts: Sequence[tuple[str, float, bool]]
    kind: ClassVar[str] = "marked"

    @property
    def shaded(self) -> list[tuple[str, int, bool]]:
        """The parts with their shade in steps of the ramp; a tenth of it is enough behind words."""
        return [(text, round(min(1.0, max(0.0, shade)) * SHADES), marked) for text, shade, marked in self.parts]


Item = Table | Figure | Facts | Text | Code | Marked


@dataclass(frozen=True)
class Section:
    """A heading, a sentence that says what there is to see, and the items that show it."""

    title: str
    lead: str
    items: Sequence[Item]


@dataclass(frozen=True)
class Page:
    """A whole report; `provenance` (name to value) closes it: model, data, versions, seeds. `language`: en or zh."""

    title: str
    subtitle: str
    sections: Sequence[Section]
    provenance: Mapping[str, str] = field(default_factory=dict)
    language: str = "en"


def render(page: Page) -> str:
    """The page as HTML: no scripts, nothing loaded, light and dark; the same text for the same page.

    Raises:
        DataError: a figure's SVG could run or load something, or is not well-formed.
    """
    prefixes = iter(range(10**9))

    def svg(text: str, description: str) -> str:
        from markupsafe import Markup

        return Markup(vetted(text, f"f{next(prefixes)}-", description))

    given = {"page": page, "svg": svg, "say": say, "lang": LANGUAGES[page.language]}
    with speaking(page.language):
        html = _template().render(**given, light=css(dark=False), dark=css(dark=True))
    return printable(html)


def write(page: Page, path: Path | str) -> Path:
    """Write the page to `path` in one piece: a temporary file beside it, synced, then renamed."""
    path = Path(path)
    html = render(page).encode("utf-8")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(html)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


@cache
def _template() -> "Template":
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = files("handscroll.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source)
