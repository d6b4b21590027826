"""Visible text of an HTML page, with the breaks between its blocks."""

import re
from html.parser import HTMLParser

from handscroll.base.errors import DataError

_DROPPED = frozenset({"script", "style", "template", "noscript"})
_PARAGRAPH_TAGS = (
    "address article aside blockquote details dialog div dl fieldset figcaption figure footer form h1 h2 h3 h4 h5 h6 "
    "header hr main nav ol p pre section table ul"
)
_LINE_TAGS = "br dd dt li option tr caption summary legend"
_PARAGRAPH = frozenset(_PARAGRAPH_TAGS.split())
_LINE = frozenset(_LINE_TAGS.split())
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


def page_text(page: str, source: str) -> tuple[str, str | None]:
    """Visible text and title of a page.

    Runs of white space become one space except inside `pre`; a block begins a paragraph (blank line), `br`, `li` and
    `tr` begin a line, table cells are parted by a tab. `script`, `style`, `template` and `noscript` are dropped;
    comments and attributes (`alt`, `title`) are not text.

    Raises:
        DataError: a dropped element is never closed (the rest of the page would vanish), or nothing is visible.
    """
    reader = _Reader()
    reader.feed(page)
    reader.close()
    if reader.dropping:
        name, line = reader.dropping[0]
        raise DataError(
            f"{source}: <{name}> opened on line {line} is never closed and hides all that follows; close it"
        )
    text = reader.text()
    if not text:
        raise DataError(f"{source}: the page has no visible text; remove it from the list")
    return text, " ".join("".join(reader.title).split()) or None


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.title: list[str] = []
        self.dropping: list[tuple[str, int]] = []  # open elements whose text is not visible, with their lines
        self.pre = 0
        self.gap = ""  # white space owed before the next visible character

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _DROPPED or tag == "title":
            self.dropping.append((tag, self.getpos()[0]))
        elif tag == "pre":
            self.pre += 1
        self._separate(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.dropping and tag == self.dropping[-1][0]:
            self.dropping.pop()
        elif tag == "pre":
            self.pre = max(0, self.pre - 1)
        if tag not in _CELL:
            self._separate(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        # An empty element of XHTML (<script src="..."/>, <title/> in a drawing): it hides nothing.
        self._separate(tag)

    def handle_data(self, data: str) -> None:
        if self.dropping:
            if self.dropping[-1][0] == "title":
                self.title.append(data)
        elif self.pre:
            self._write(data)
        else:
            self._flow(data)

    def _separate(self, tag: str) -> None:
        if tag in _PARAGRAPH:
            self._owe("\n\n")
        elif tag == "br":
            self.gap = self.gap + "\n" if set(self.gap) == {"\n"} else "\n"
        elif tag in _LINE:
            self._owe("\n")
        elif tag in _CELL and self.parts and "\n" not in self.gap:
            self.gap = "\t"

    def _owe(self, gap: str) -> None:
        if self.gap.count("\n") < len(gap):
            self.gap = gap

    def _flow(self, data: str) -> None:
        # Only HTML's own white space folds; a no-break space or an ideographic space is text.
        words = re.split(r"[ \t\n\r\f]+", data)
        for number, word in enumerate(words):
            if number and not self.gap:
                self.gap = " "
            if word:
                self._write(word)

    def _write(self, data: str) -> None:
        if self.gap and self.parts:
            self.parts.append(self.gap)
        self.gap = ""
        self.parts.append(data)

    def text(self) -> str:
        return "".join(self.parts).strip("\n\t ")
