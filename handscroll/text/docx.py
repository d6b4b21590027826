"""Text of a Word document (.docx): paragraphs, headings, numbered lists, tables, notes and text boxes, in order.

The XML is walked here rather than by python-docx, whose paragraphs leave out insertions of tracked changes, content
controls, footnotes and text boxes (tried with version 1.2). Deleted text is left out, as on the page.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from handscroll.base.errors import DataError
from handscroll.text.archive import Archive, opened
from handscroll.text.document import Document, Place, Writer
from handscroll.text.numerals import written

_MAIN = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
_STRICT = "http://purl.oclc.org/ooxml/wordprocessingml/main"
_HEADING = re.compile(r"(?:heading|überschrift|titre|标题|標題)\s*(\d)", re.IGNORECASE)
_SIGNS = {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "\u2011", "softHyphen": ""}
# Text that is not on the page: what was deleted or moved away, codes of fields, phonetic guides, fallbacks of pictures.
_DROPPED = frozenset("del moveFrom delText instrText rt Fallback pPr rPr sectPr tblPr".split())
_BASES = 12  # styles that stand on each other; Word itself takes no more


def read_docx(file: Path) -> Document:
    """The text of a document. A heading begins with as many # as it is deep, a row of a table has a tab between cells.

    Places are the pages at which Word last broke the text, where it recorded them, else the headings.

    Raises:
        DataError: it is no Word document, damaged, too large, or has no text.
    """
    with opened(file) as archive:
        main = _main_part(archive)
        walk = _Walk(_Styles(archive, main), _notes(archive, main))
        try:
            walk.blocks(archive.xml(main))
            walk.close()
        except RecursionError:
            raise DataError(f"{file}: its parts are nested too deeply; save the document again") from None
    text = walk.out.text
    if not text.strip():
        raise DataError(f"{file}: the document has no text (only pictures?); save it as .pdf and read that")
    places = walk.pages if len(walk.pages) > 1 else walk.headings
    return Document(text, str(file), {}, tuple(places))


def _main_part(archive: Archive) -> str:
    """The part that holds the text, as the relations of the package name it."""
    if "_rels/.rels" in archive.names:
        for one in archive.xml("_rels/.rels"):
            if one.get("Type", "").endswith("/officeDocument"):
                return one.get("Target", "").lstrip("/")
    raise DataError(f"{archive.file} is no Word document; save it as .docx again")


def _name(element: Element) -> str:
    """The tag without its namespace."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def _value(element: Element | None, name: str = "val") -> str:
    if element is None:
        return ""
    return element.get(f"{{{_MAIN}}}{name}") or element.get(f"{{{_STRICT}}}{name}") or element.get(name) or ""


def _child(element: Element | None, *path: str) -> Element | None:
    """The first child of a child of ... by tags."""
    for name in path:
        element = None if element is None else next((one for one in element if _name(one) == name), None)
    return element


def _notes(archive: Archive, main: str) -> dict[tuple[str, str], Element]:
    """Footnotes and endnotes by kind and id."""
    found = {}
    for kind in ("footnote", "endnote"):
        part = f"{main.rpartition('/')[0]}/{kind}s.xml".lstrip("/")
        for one in archive.xml(part) if part in archive.names else ():
            if _name(one) == kind and not _value(one, "type"):  # others draw the line above the notes
                found[kind, _value(one, "id")] = one
    return found


@dataclass
class _Level:
    """How a level of a list is numbered: format, text around the number, first number; `plain` numbers are digits."""

    form: str = "bullet"
    shape: str = ""
    start: int = 1
    plain: bool = False


@dataclass
class _Styles:
    """What styles and numberings say: the depth of headings and the numbers of lists."""

    archive: Archive
    main: str
    bases: dict[str, str] = field(default_factory=dict)
    depths: dict[str, int] = field(default_factory=dict)
    lists: dict[str, tuple[str, int]] = field(default_factory=dict)
    levels: dict[str, tuple[str, dict[int, _Level]]] = field(default_factory=dict)
    restarts: dict[tuple[str, int], int] = field(default_factory=dict)  # that are still to come
    counts: dict[str, dict[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        folder = self.main.rpartition("/")[0]
        styles, numbering = (f"{folder}/{name}.xml".lstrip("/") for name in ("styles", "numbering"))
        for one in self.archive.xml(styles) if styles in self.archive.names else ():
            if _name(one) == "style":
                self._style(one)
        for table in (self.depths, self.lists):
            self._inherit(table)
        if numbering in self.archive.names:
            self._numbering(self.archive.xml(numbering))

    def _inherit(self, table: dict[str, Any]) -> None:
        """Give styles what those say on which they are based."""
        for name in self.bases:
            above = name
            for _ in range(_BASES):
                above = above if above in table else self.bases.get(above, "")
            if above in table:
                table[name] = table[above]

    def _style(self, style: Element) -> None:
        name, number = _value(style, "styleId"), _child(style, "pPr", "numPr")
        self.bases[name] = _value(_child(style, "basedOn"))
        found = _HEADING.match(_value(_child(style, "name")))
        outline = _value(_child(style, "pPr", "outlineLvl"))
        if found or outline.isdigit():
            self.depths[name] = int(found[1]) if found else int(outline) + 1
        elif _value(_child(style, "name")).lower() == "title":
            self.depths[name] = 1
        if number is not None:
            self.lists[name] = (_value(_child(number, "numId")), _whole(_value(_child(number, "ilvl"))))

    def _numbering(self, root: Element) -> None:
        kinds, linked = {}, {}
        for one in root:
            if _name(one) == "abstractNum":
                kind = _value(one, "abstractNumId")
                kinds[kind] = {_whole(_value(level, "ilvl")): _level(level) for level in one if _name(level) == "lvl"}
                linked[kind] = _value(_child(one, "numStyleLink"))
        for one in root:
            kind = _value(_child(one, "abstractNumId"))
            if _name(one) == "num" and kind in kinds:
                number = _value(one, "numId")
                self.levels[number] = (kind, dict(kinds[kind]))
                self._overrides(number, one)
        for number, (kind, levels) in self.levels.items():
            other, _ = self.lists.get(linked[kind], ("", 0))  # the style whose list this one is
            if not levels and other in self.levels:
                self.levels[number] = self.levels[other]

    def _overrides(self, number: str, num: Element) -> None:
        """What a list says otherwise than the kind that it is of: levels of its own, and where its numbers begin."""
        for one in num:
            if _name(one) == "lvlOverride":
                at, level, start = _whole(_value(one, "ilvl")), _child(one, "lvl"), _child(one, "startOverride")
                if level is not None:
                    self.levels[number][1][at] = _level(level)
                if start is not None:
                    self.restarts[number, at] = _whole(_value(start))

    def depth(self, paragraph: Element) -> int:
        """How deep a heading is, 0 for no heading."""
        outline = _value(_child(paragraph, "pPr", "outlineLvl"))
        deep = self.depths.get(_value(_child(paragraph, "pPr", "pStyle")), 0)
        deep = int(outline) + 1 if outline.isdigit() else deep
        return deep if deep <= 6 else 0  # level 10 of an outline is plain text

    def item(self, paragraph: Element) -> str:
        """The sign or number before a paragraph of a list, "" for none."""
        own = _child(paragraph, "pPr", "numPr")
        number, level = self.lists.get(_value(_child(paragraph, "pPr", "pStyle")), ("", 0))
        if own is not None:
            number, level = _value(_child(own, "numId")) or number, _whole(_value(_child(own, "ilvl")) or str(level))
        if number in ("", "0") or number not in self.levels:
            return "" if number in ("", "0") else "- "
        kind, levels = self.levels[number]
        here = levels.get(level, _Level())
        counts = self.counts.setdefault(kind, {})
        start = self.restarts.pop((number, level), None)
        counts[level] = counts.get(level, here.start - 1) + 1 if start is None else start
        for deeper in [at for at in counts if at > level]:
            del counts[deeper]
        if here.form in ("bullet", "none", ""):
            return "" if here.form == "none" else "  " * level + "- "
        shape = here.shape
        for at in range(level + 1):
            above = levels.get(at, _Level("decimal"))
            text = written(counts.get(at, above.start), "decimal" if here.plain else above.form)
            shape = shape.replace(f"%{at + 1}", text)
        return f"{shape} " if shape else ""


def _level(level: Element) -> _Level:
    start, plain = _value(_child(level, "start")), _child(level, "isLgl")
    return _Level(
        _value(_child(level, "numFmt")),
        _value(_child(level, "lvlText")),
        _whole(start or "1"),
        plain is not None and _value(plain) not in ("0", "false", "off"),
    )


def _whole(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 9 else 0


@dataclass
class _Walk:
    """Goes through the body and writes its blocks."""

    styles: _Styles
    notes: dict[tuple[str, str], Element]
    out: Writer = field(default_factory=Writer)
    pages: list[Place] = field(default_factory=lambda: [Place(0, "page 1")])
    headings: list[Place] = field(default_factory=list)
    cited: list[tuple[str, Element]] = field(default_factory=list)
    breaks: int = 0

    def blocks(self, element: Element) -> None:
        for one in element:
            name = _name(one)
            if name == "p":
                self._paragraph(one)
            elif name == "tbl":
                self._table(one)
            elif name not in _DROPPED:
                self.blocks(one)

    def close(self) -> None:
        """Write the notes that were cited, at the end."""
        for number, note in self.cited:
            self.out.block(f"[{number}] " + self._inside(note))

    def _paragraph(self, paragraph: Element) -> None:
        text = self._inside(paragraph).strip("\n ")
        depth, item = self.styles.depth(paragraph), self.styles.item(paragraph)
        if text.strip():
            start = self._block("#" * depth + (" " if depth else "") + item + text, close=bool(item) and not depth)
            if depth:
                self.headings.append(Place(start, f"under '{text.strip()[:80]}'"))
        self._boxes(paragraph)

    def _table(self, table: Element) -> None:
        lines = []
        for row in _below(table, "tr"):
            cells = _below(row, "tc")
            lines.append("\t".join(" ".join(self._inside(cell).split()) for cell in cells).rstrip("\t"))
        if any(lines):
            self._block("\n".join(lines))
        self._boxes(table)

    def _boxes(self, element: Element) -> None:
        for box in _below(element, "txbxContent"):
            self.blocks(box)

    def _block(self, text: str, close: bool = False) -> int:
        start = self.out.block(text, close)
        if self.pages[-1].name != (page := f"page {self.breaks + 1}"):
            self.pages.append(Place(start, page))
        return start

    def _inside(self, element: Element) -> str:
        """The text in an element, without that of text boxes; pages that end in it are counted."""
        parts: list[str] = []
        for one in self._leaves(element):
            name = _name(one)
            if name == "t":
                parts.append(one.text or "")
            elif name in ("footnoteReference", "endnoteReference"):
                parts.append(self._cite(one, name.removesuffix("Reference")))
            elif name == "sym":
                parts.append(_symbol(_value(one, "char")))
            elif name == "lastRenderedPageBreak":
                self.breaks += 1
            elif name in _SIGNS:
                parts.append("" if _value(one, "type") == "page" else _SIGNS[name])
            elif name == "p":  # of a cell or note
                parts.append((" " if parts else "") + self.styles.item(one))
        return "".join(parts)

    def _leaves(self, element: Element) -> Iterator[Element]:
        for one in element:
            name = _name(one)
            if name not in _DROPPED and name != "txbxContent":
                yield one
                yield from self._leaves(one)

    def _cite(self, reference: Element, kind: str) -> str:
        note = self.notes.get((kind, _value(reference, "id")))
        if note is None:
            return ""
        self.cited.append((str(len(self.cited) + 1), note))
        return f"[{len(self.cited)}]"


def _below(element: Element, wanted: str) -> Iterator[Element]:
    """The elements of a tag below another one, but not those inside each other."""
    for one in element:
        if _name(one) == wanted:
            yield one
        elif _name(one) not in _DROPPED:
            yield from _below(one, wanted)


def _symbol(code: str) -> str:
    """A sign of a symbol font; those of its private area have no letter of their own."""
    try:
        number = int(code, 16)
    except ValueError:
        return ""
    return "•" if 0xE000 <= number <= 0xF8FF or number > 0x10FFFF or 0xD800 <= number <= 0xDFFF else chr(number)
