"""Visible text of an HTML page, with the breaks between its blocks."""

import re
from dataclasses import dataclass
from html.parser import HTMLParser

from handscroll.base.errors import DataError
from handscroll.text.document import Place

_DROPPED = frozenset({"script", "style", "template", "noscript"})
_PARAGRAPH_TAGS = (
    "address article aside blockquote details dialog div dl fieldset figcaption figure footer form h1 h2 h3 h4 h5 h6 "
    "header hr main nav ol p pre section table ul"
)
_LINE_TAGS = "br dd dt li option tr caption summary legend"
_PARAGRAPH = frozenset(_PARAGRAPH_TAGS.split())
_LINE = frozenset(_LINE_TAGS.split())
_HEADINGS = frozenset("h1 h2 h3 h4 h5 h6".split())
_CELL = frozenset({"td", "th"})
_CHARSET = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([A-Za-z0-9_:.-]+)""", re.IGNORECASE)
# What browsers do with these labels (WHATWG Encoding Standard, section 4.2): the larger encoding is meant.
_WIDER = {"gb2312": "gb18030", "gbk": "gb18030", "iso-8859-1": "cp1252", "latin1": "cp1252", "us-ascii": "cp1252"}


def declared_encoding(data: bytes) -> str | None:
    """The encoding that a page declares in a `meta` tag within its first 2048 bytes, or None."""
    found = _CHARSET.search(data[:2048])
    if found is None:
        return None
    label = found.group(1).decode("ascii").lower()
    return _WIDER.get(label, label)


@dataclass(frozen=True)
class Visible:
    """What a page shows: text, title, and where pages of a printed edition begin in the text (EPUB)."""

    text: str
    title: str | None
    places: list[Place]


def page_text(page: str, source: str) -> tuple[str, str | None]:
    """Visible text and title of a page (`visible`).

    Raises:
        DataError: a dropped element is never closed (the rest of the page would vanish), or nothing is visible.
    """
    found = visible(page, source)
    if not found.text:
        raise DataError(f"{source}: the page has no visible text; leave it out")
    return found.text, found.title


def visible(page: str, source: str, headings: bool = False) -> Visible:
    """What a page shows; `headings` marks them with as many # as they are deep.

    Runs of white space become one space except inside `pre`; a block begins a paragraph (blank line), `br`, `li` and
    `tr` begin a line, table cells are parted by a tab, empty ones too. `script`, `style`, `template` and `noscript` are
    dropped; comments and attributes (`alt`, `title`) are not text.

    Raises:
        DataError: a dropped element is never closed (the rest of the page would vanish).
    """
    reader = _Reader(headings)
    reader.feed(page)
    reader.close()
    if reader.dropping:
        name, line = reader.dropping[0]
        raise DataError(
            f"{source}: <{name}> opened on line {line} is never closed and hides all that follows; close it"
        )
    text, title = "".join(reader.parts), " ".join("".join(reader.title).split()) or None
    bare = text.strip("\n\t ")
    before = len(text) - len(text.lstrip("\n\t ")) if bare else 0
    return Visible(bare, title, [Place(max(0, start - before), name) for start, name in reader.places])


class _Reader(HTMLParser):
    def __init__(self, headings: bool) -> None:
        super().__init__(convert_charrefs=True)
        self.headings = headings
        self.parts: list[str] = []
        self.length = 0  # of all parts
        self.title: list[str] = []
        self.dropping: list[tuple[str, int]] = []  # open elements whose text is not visible, with their lines
        self.pre = 0
        self.gap = ""  # white space owed before the next visible character
        self.tabs = 0  # tabs owed behind it, for the cells before
        self.sign = ""  # of the heading that begins
        self.columns: list[int] = []  # of every open table: the cells that its row has so far
        self.fresh = False  # a cell began and has no text yet
        self.places: list[Place] = []
        self.waiting: list[str] = []  # names of printed pages that begin at the next visible character

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _DROPPED or tag == "title":
            self.dropping.append((tag, self.getpos()[0]))
        elif tag == "pre":
            self.pre += 1
        self._page(dict(attrs))
        self._separate(tag)
        if tag == "table":
            self.columns.append(0)
        elif tag in _CELL and self.columns:
            self._cell(dict(attrs).get("colspan") or "")
        elif tag in _HEADINGS and self.headings and not self.dropping:
            self.sign = "#" * int(tag[1]) + " "

    def handle_endtag(self, tag: str) -> None:
        if self.dropping and tag == self.dropping[-1][0]:
            self.dropping.pop()
        elif tag == "pre":
            self.pre = max(0, self.pre - 1)
        if tag in ("tr", "table"):
            self._end_row()
        if tag == "table" and self.columns:
            self.columns.pop()
        if tag in _HEADINGS:
            self.sign = ""
        if tag not in _CELL:
            self._separate(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        # An empty element of XHTML (<script src="..."/>, <title/> in a drawing): it hides nothing.
        self._page(dict(attrs))
        self._separate(tag)
        if tag in _CELL and self.columns:
            self._cell("")

    def handle_data(self, data: str) -> None:
        if self.dropping:
            if self.dropping[-1][0] == "title":
                self.title.append(data)
        elif self.pre:
            self._write(data)
        else:
            self._flow(data)

    def parse_marked_section(self, i: int, report: bool = True) -> int:
        # The standard library's raises an AssertionError for names that it does not know.
        cdata = self.rawdata.startswith("<![CDATA[", i)
        end = self.rawdata.find("]]>" if cdata else ">", i + 3)
        if end >= 0 and cdata:
            self.unknown_decl(self.rawdata[i + 3 : end])
        return end if end < 0 else end + (3 if cdata else 1)

    def unknown_decl(self, data: str) -> None:
        if data.startswith("CDATA["):  # others are marks alone, such as <![if IE]>
            self.handle_data(data.removeprefix("CDATA["))

    def _page(self, attributes: dict[str, str | None]) -> None:
        """A mark of EPUB where a page of the printed book begins."""
        kinds = f"{attributes.get('epub:type') or ''} {attributes.get('role') or ''}"
        if "pagebreak" in kinds:
            name = attributes.get("title") or attributes.get("aria-label") or ""
            self.waiting += [f"page {name}"] if name else []

    def _cell(self, span: str) -> None:
        if self.columns[-1]:
            self.gap = self.gap if self.fresh else ""
            self.tabs += 1
        self.fresh = True
        self.columns[-1] += 1
        if span.isdigit() and 1 < int(span) < 100:
            self.columns[-1] += int(span) - 1

    def _end_row(self) -> None:
        self.tabs, self.fresh = 0, False
        if self.columns:
            self.columns[-1] = 0

    def _separate(self, tag: str) -> None:
        if tag == "tr":
            self._end_row()
        if tag in _PARAGRAPH:
            self._owe("\n\n")
        elif tag == "br" and not self.fresh:
            self.gap = self.gap + "\n" if set(self.gap) == {"\n"} else "\n"
        elif tag in _LINE:
            self._owe("\n")

    def _owe(self, gap: str) -> None:
        # A cell that holds a paragraph stands in its row: what breaks before its first character does not count.
        if self.gap.count("\n") < len(gap) and not self.fresh:
            self.gap = gap

    def _flow(self, data: str) -> None:
        # Only HTML's own white space folds; a no-break space or an ideographic space is text.
        words = re.split(r"[ \t\n\r\f]+", data)
        for number, word in enumerate(words):
            if number and not self.gap and not self.fresh:
                self.gap = " "
            if word:
                self._write(word)

    def _write(self, data: str) -> None:
        gap = self.gap + "\t" * self.tabs if self.parts else ""
        self._add(gap + self.sign)
        self.places += [Place(self.length - len(self.sign), name) for name in self.waiting]
        self.gap, self.sign, self.tabs, self.fresh = "", "", 0, False
        self.waiting.clear()
        self._add(data)

    def _add(self, text: str) -> None:
        self.parts.append(text)
        self.length += len(text)
