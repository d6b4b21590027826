"""Text of a book in EPUB: its chapters in the order of reading, with headings, and printed pages where it has them."""

import logging
import posixpath
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree.ElementTree import Element

from handscroll.base.errors import DataError
from handscroll.text.archive import Archive, opened
from handscroll.text.document import Document, Place, Writer
from handscroll.text.encodings import decode_labelled
from handscroll.text.html import declared_encoding, visible

_DECLARED = re.compile(rb"""<\?xml[^>]{0,100}?encoding\s*=\s*["']([A-Za-z0-9_.-]+)""")
_PAGE_KINDS = "application/xhtml+xml text/html application/x-dtbook+xml text/x-oeb1-document text/xml application/xml"
_PAGES = frozenset([*_PAGE_KINDS.split(), "image/svg+xml"])
_IMAGE = re.compile(r"<(?:\w+:)?(?:img|image|svg)\b", re.IGNORECASE)
_FALLBACKS = 8  # parts that stand for each other, one after the other
_log = logging.getLogger("handscroll.files")


def read_epub(file: Path) -> Document:
    """The text of a book. Places are the pages of the printed edition if the book marks them, else its chapters.

    Raises:
        DataError: it is no book, damaged, protected against copying, too large, or has no text.
    """
    with opened(file) as archive:
        root = archive.xml("META-INF/container.xml")
        where = next((one.get("full-path", "") for one in root.iter() if _tag(one) == "rootfile"), "")
        package = archive.xml(where)
        names, left_out = _order(package, posixpath.dirname(where), archive)
        locked = _locked(archive) & set(names)
        if locked:
            raise DataError(f"{file} is protected against copying ({min(locked)}); only its seller's reader opens it")
        out, pages, chapters = Writer(), [], []
        for name in names:
            page = _decoded(archive, name)
            found = visible(page, f"{file}: {name}", headings=True)
            if not found.text:
                if name != names[0] and _IMAGE.search(page):  # the first is a picture of the cover
                    left_out.append(f"{name} (only pictures)")
                continue
            start = out.block(found.text)
            pages += [Place(start + at, page) for at, page in found.places]
            chapters.append(Place(start, f"chapter '{_heading(found.text, found.title)}'"))
    if not out.length:
        raise DataError(f"{file}: the book has no text, only pictures; save it as .pdf and read that")
    if left_out:
        _log.warning("%s: chapters that were left out: %s", file, ", ".join(left_out))
    about = {_tag(one): (one.text or "").strip() for one in package.iter() if _tag(one) in ("title", "creator")}
    metadata: dict[str, Any] = {key: value for key, value in about.items() if value}
    metadata |= {"skipped chapters": tuple(left_out)} if left_out else {}
    return Document(out.text, str(file), metadata, tuple(pages or chapters))


def _tag(element: Element) -> str:
    return element.tag.rpartition("}")[2].lower() if isinstance(element.tag, str) else ""


def _order(package: Element, folder: str, archive: Archive) -> tuple[list[str], list[str]]:
    """The names of the parts with text, in the order of reading, and those of others, with the reason."""
    items = {one.get("id", ""): one for one in package.iter() if _tag(one) == "item"}
    found, left_out = [], []
    for one in package.iter():
        if _tag(one) != "itemref":
            continue
        item = items.get(one.get("idref", ""))
        if item is None:
            left_out.append(f"{one.get('idref')} (not in its list of parts)")
        elif (page := _readable(item, items)) is None:
            left_out.append(f"{_part(item, folder)} ({item.get('media-type')})")
        else:
            found.append(_part(page, folder))
    if not found:
        raise DataError(f"{archive.file}: the book lists no chapters; save it again")
    return list(dict.fromkeys(found)), left_out


def _readable(item: Element, items: Mapping[str, Element]) -> Element | None:
    """The part itself if it is a page, else the page that the book names to be shown in its place."""
    for _ in range(_FALLBACKS):
        if item.get("media-type", "").partition(";")[0].strip().lower() in _PAGES:
            return item
        if item.get("fallback", "") not in items:
            return None
        item = items[item.get("fallback", "")]
    return None


def _part(item: Element, folder: str) -> str:
    return posixpath.normpath(posixpath.join(folder, unquote(item.get("href", ""))))


def _locked(archive: Archive) -> set[str]:
    """The encrypted parts. (Fonts often are, which does not matter.)"""
    if "META-INF/encryption.xml" not in archive.names:
        return set()
    root = archive.xml("META-INF/encryption.xml")
    return {posixpath.normpath(unquote(one.get("URI", ""))) for one in root.iter() if _tag(one) == "cipherreference"}


def _decoded(archive: Archive, name: str) -> str:
    data = archive.read(name)
    declared = _DECLARED.search(data[:200])
    label = declared.group(1).decode("ascii").lower() if declared else declared_encoding(data)
    return decode_labelled(data, f"{archive.file}: {name}", label)[0]


def _heading(text: str, title: str | None) -> str:
    first = text.partition("\n")[0]
    return (first.lstrip("# ") if first.startswith("#") or not title else title)[:80]
