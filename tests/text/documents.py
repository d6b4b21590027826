"""Small PDF, DOCX and EPUB files for the tests, written by hand, so that each holds exactly what a test needs."""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PICTURE = "picture"

WORD = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
RELATIONS = (
    '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="r1" '
    'Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument" '
    'Target="word/document.xml"/></Relationships>'
)


def write_pdf(path: Path, pages: Sequence[Sequence[Any]], pixels: bytes = b"", size: tuple[int, int] = (8, 8)):
    """A PDF whose pages hold lines of text (x, y, text; 12 points on 612 x 792) and PICTURE, of these grey `pixels`.

    Bytes among the lines are drawn as they are; /Im1 is the picture, and /Fm1 a form that holds it.
    """
    objects: list[bytes] = [b"<< /Type /Catalog /Pages 2 0 R >>", b"", _FONT]
    width, height = size
    packed = zlib.compress(pixels or bytes(range(64)))
    head = f"<< /Type /XObject /Subtype /Image /Width {width} /Height {height} /ColorSpace /DeviceGray "
    objects.append(_stream(packed, head + "/BitsPerComponent 8 /Filter /FlateDecode"))
    objects.append(
        _stream(
            b"/Im1 Do", "<< /Type /XObject /Subtype /Form /BBox [0 0 1 1] /Resources << /XObject << /Im1 4 0 R >> >>"
        )
    )
    kids = []
    for page in pages:
        content = b"q 612 0 0 792 0 0 cm /Im1 Do Q\n" if PICTURE in page else b""
        content += b"".join(line if isinstance(line, bytes) else _shown(*line) for line in page if line != PICTURE)
        objects.append(_stream(content, "<< "))
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {len(objects)} 0 R "
            "/Resources << /Font << /F1 3 0 R >> /XObject << /Im1 4 0 R /Fm1 5 0 R >> >> >>".encode()
        )
        kids.append(f"{len(objects)} 0 R")
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>".encode()
    path.write_bytes(_file(objects))


_RESOURCES = "/Resources << /Font << /F1 3 0 R >> >>"
_FONT = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>"


def write_form(path: Path, lines: Sequence[tuple[float, float, str]], fields: Sequence[tuple[str, str, str]]):
    """A PDF of one page with lines of text, and annotations: keys, the rectangle, and the text that is drawn there."""
    shown = b"".join(_shown(*line) for line in lines)
    objects: list[bytes] = [b"", b"<< /Type /Pages /Kids [5 0 R] /Count 1 >>", _FONT, _stream(shown, "<< "), b""]
    notes = []
    for keys, rectangle, text in fields:
        left, bottom, right, top = map(float, rectangle.split())
        head = f"<< /Type /XObject /Subtype /Form /BBox [0 0 {right - left} {top - bottom}] {_RESOURCES}"
        drawn = b"".join(_shown(2, top - bottom - 15 - 15 * at, line) for at, line in enumerate(text.split("\n")))
        objects.append(_stream(drawn, head))
        drawing = f"/AP << /N {len(objects)} 0 R >>" if text else ""
        objects.append(f"<< /Type /Annot /Rect [{rectangle}] /DA (/F1 12 Tf 0 g) {keys} {drawing} >>".encode())
        notes.append(f"{len(objects)} 0 R")
    listed = f"[{' '.join(notes)}]"
    form = f"/AcroForm << /Fields {listed} /DR << /Font << /F1 3 0 R >> >> >>"
    objects[0] = f"<< /Type /Catalog /Pages 2 0 R {form} >>".encode()
    page = f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R {_RESOURCES} /Annots {listed} >>"
    objects[4] = page.encode()
    path.write_bytes(_file(objects))


def write_letters(path: Path, meant: str):
    """A PDF with a single line, whose letters A, B, ... stand for these characters (UTF-16, in hexadecimal digits)."""
    pairs = "\n".join(f"<{65 + at:02x}> <{code}>" for at, code in enumerate(meant.split()))
    table = f"begincmap 1 begincodespacerange <00> <ff> endcodespacerange {len(meant.split())} beginbfchar\n{pairs}\n"
    font = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /ToUnicode 6 0 R >>"
    line = "".join(chr(65 + at) for at in range(len(meant.split())))
    page = f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 5 0 R {_RESOURCES} >>".encode()
    pages, root = b"<< /Type /Pages /Kids [4 0 R] /Count 1 >>", b"<< /Type /Catalog /Pages 2 0 R >>"
    cmap = _stream(f"{table}endbfchar endcmap".encode(), "<< ")
    path.write_bytes(_file([root, pages, font, page, _stream(_shown(72, 700, line), "<< "), cmap]))


def _shown(x: float, y: float, text: str) -> bytes:
    escaped = text.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)")
    return f"BT /F1 12 Tf 1 0 0 1 {x} {y} Tm ({escaped}) Tj ET\n".encode("cp1252")


def _stream(data: bytes, head: str) -> bytes:
    return f"{head} /Length {len(data)} >>\nstream\n".encode() + data + b"\nendstream"


def _file(objects: Sequence[bytes]) -> bytes:
    out, places = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, start=1):
        places.append(len(out))
        out += f"{number} 0 obj\n".encode() + content + b"\nendobj\n"
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    head = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}"
    tail = f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(out)}\n%%EOF\n"
    return out + head.encode() + tail.encode()


def write_docx(path: Path, body: str, **parts: str):
    """A Word document with this XML in its body; `parts` are the insides of styles, numbering, footnotes, ..."""
    roots = {"styles": "styles", "numbering": "numbering", "footnotes": "footnotes", "endnotes": "endnotes"}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("_rels/.rels", RELATIONS)
        out.writestr("word/document.xml", f"<w:document {WORD}><w:body>{body}</w:body></w:document>")
        for name, inside in parts.items():
            out.writestr(f"word/{name}.xml", f"<w:{roots[name]} {WORD}>{inside}</w:{roots[name]}>")


def paragraph(text: str, style: str = "", properties: str = "") -> str:
    named = f'<w:pStyle w:val="{style}"/>' if style else ""
    return f"<w:p><w:pPr>{named}{properties}</w:pPr><w:r><w:t>{text}</w:t></w:r></w:p>"


def write_epub(
    path: Path, chapters: Sequence[str], extra: dict[str, str] | None = None, items: str = "", order: str = ""
):
    """A book whose chapters are these bodies of XHTML; more `items` of its list of parts and of its `order`."""
    items += "".join(
        f'<item id="c{n}" href="text/c%20{n}.xhtml" media-type="application/xhtml+xml"/>' for n in range(len(chapters))
    )
    order = "".join(f'<itemref idref="c{n}"/>' for n in range(len(chapters))) + order
    package = (
        '<package xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/"><metadata>'
        f"<dc:title>A book</dc:title></metadata><manifest>{items}</manifest><spine>{order}</spine></package>"
    )
    container = (
        '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
        '<rootfile full-path="OEBPS/book.opf"/></rootfiles></container>'
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("mimetype", "application/epub+zip")
        out.writestr("META-INF/container.xml", container)
        out.writestr("OEBPS/book.opf", package)
        for number, chapter in enumerate(chapters):
            page = f'<?xml version="1.0" encoding="utf-8"?><html><head/><body>{chapter}</body></html>'
            out.writestr(f"OEBPS/text/c {number}.xhtml", page)
        for name, content in (extra or {}).items():
            out.writestr(name, content)
