"""The process that opens a PDF: `python -m handscroll.text.pdf_worker FILE [PAGE ...]`, started by `pdf.py`.

PDFium is C++ and a file may come from anywhere, so it runs where a crash, a loop or a flood of memory ends this process
alone. Without pages it writes a JSON line for each page (its text, its label, whether it has pictures); with pages it
writes each one's picture: a JSON line with the width and height, then the bytes (RGB).
"""

import json
import resource
import signal
import sys
from collections.abc import Sequence
from typing import Any

from handscroll.text.pdf_filled import characters, filled, placed

MEMORY = 3 << 30  # bytes of address space, of which Python and PDFium take 0.3 GB
SECONDS = 60  # for a page
MOST_PAGES = 50_000
SIDE = 2000  # pixels of the longer side of a page's picture; letters of 8 points are then 18 pixels high
FEW = 50  # a page with fewer letters (a stamp, a page number) may be a scan; as many paths may be drawn letters
DEEP = 4  # forms (drawings by name) inside each other in which images are looked for
LOW = 0.6  # a gap between lines that is higher than this share of a line begins a paragraph
WIDE = 1.2  # a space that is wider than this many times the height of its letters parts the cells of a table


def main(arguments: list[str]) -> None:
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.alarm(SECONDS)
    import pypdfium2

    file, *pages = arguments
    try:
        document = pypdfium2.PdfDocument(file)
        document.init_forms()  # before the first page
    except pypdfium2.PdfiumError as error:
        return _write({"error": str(error)})
    if len(document) > MOST_PAGES:
        return _write({"error": f"{len(document):,} pages, more than are read ({MOST_PAGES:,})"})
    if not pages:
        _write({"pages": len(document)})
    for number in [int(page) for page in pages] or range(1, len(document) + 1):
        signal.alarm(SECONDS)
        try:
            page = document[number - 1]
            _picture(page) if pages else _write(_text(pypdfium2, document, page, number))
        except pypdfium2.PdfiumError as error:
            return _write({"error": f"page {number}: {error}"})
    return None


def _write(record: dict[str, Any]) -> None:
    sys.stdout.buffer.write(json.dumps(record).encode() + b"\n")
    sys.stdout.buffer.flush()


def _picture(page: Any) -> None:
    scale = SIDE / max(1.0, *page.get_size())
    bitmap = page.render(scale=min(scale, 10.0), rev_byteorder=True, prefer_bgrx=False)
    pixels = bitmap.to_numpy()[:, :, :3]
    _write({"width": pixels.shape[1], "height": pixels.shape[0]})
    sys.stdout.buffer.write(pixels.tobytes())
    sys.stdout.buffer.flush()


def _text(pdfium: Any, document: Any, page: Any, number: int) -> dict[str, Any]:
    raw, of_page = pdfium.raw, page.get_textpage()
    codes = [raw.FPDFText_GetUnicode(of_page, at) for at in range(of_page.count_chars())]
    printed = characters(codes).strip()
    picture = len(printed) < FEW and _picture_of_text(raw, page, not printed)
    text = _lines(of_page, codes, placed(of_page, codes, filled(raw, document, page, number)))
    return {"text": text, "label": document.get_page_label(number - 1), "picture": picture}


def _picture_of_text(raw: Any, page: Any, blank: bool) -> bool:
    """Whether a page with few letters may be a scan: images on most of it, or any image or drawing if it is blank."""
    objects = list(page.get_objects(max_depth=DEEP))
    width, height = page.get_size()
    covered = _areas(raw, objects)  # of all, since many scanners store a page in strips
    paths = sum(one.type == raw.FPDF_PAGEOBJ_PATH for one in objects)
    return sum(covered) > width * height / 2 or (blank and (bool(covered) or paths > FEW))


def _areas(raw: Any, objects: Sequence[Any]) -> list[float]:
    """The areas of the images. Inside a form (a drawing by name) an image has the form's own units of measure."""
    found, scales = [], [1.0] * (DEEP + 1)  # of areas, by the level of forms
    for one in objects:
        if one.type == raw.FPDF_PAGEOBJ_FORM:
            matrix = one.get_matrix()
            scales[one.level + 1] = scales[one.level] * abs(matrix.a * matrix.d - matrix.b * matrix.c)
        elif one.type == raw.FPDF_PAGEOBJ_IMAGE:
            left, bottom, right, top = one.get_bounds()
            found.append((right - left) * (top - bottom) * scales[one.level])
    return found


def _lines(page: Any, codes: list[int], more: dict[int, str]) -> str:
    """The text of a page: a tab for a gap as wide as between cells, a blank line for one as high as at paragraphs."""
    found: list[int] = []
    for at, code in enumerate(codes):
        found += map(ord, more.get(at, ""))
        if code == 0x20 and 0 < at < len(codes) - 1 and not {codes[at - 1], codes[at + 1]} & {0x20, 0x0A, 0x0D}:
            found.append(0x09 if _wide(page, at) else 0x20)
        elif code == 0x0A:
            found += [0x0A, 0x0A] if _apart(page, at, len(codes)) else [0x0A]
        elif code != 0x0D:
            found.append(code)
    return characters(found) + more.get(len(codes), "")


def _apart(page: Any, at: int, count: int) -> bool:
    """Whether the line after the break at `at` stands lower than the next line of a paragraph would."""
    if not 2 <= at < count - 1:  # a carriage return stands before the line feed
        return False
    _, bottom, _, top = page.get_charbox(at - 2, loose=True)
    after = page.get_charbox(at + 1, loose=True)
    return bottom - after[3] > LOW * max(top - bottom, after[3] - after[1])


def _wide(page: Any, at: int) -> bool:
    _, bottom, right, top = page.get_charbox(at - 1, loose=True)
    after = page.get_charbox(at + 1, loose=True)
    level = min(top, after[3]) - max(bottom, after[1]) > 0  # vertical writing and turned pages have no tables
    return level and after[0] - right > WIDE * (top - bottom)


if __name__ == "__main__":
    main(sys.argv[1:])
