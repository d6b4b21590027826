"""Text of a PDF with its page numbers; pages that are pictures are read by OCR, or named in an error."""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from handscroll.base.errors import DataError
from handscroll.text import ocr, pdf_worker
from handscroll.text.document import Document, Place, Writer

_log = logging.getLogger("handscroll.files")
MOST = 64 << 20  # characters of a document


def read_pdf(file: Path, skip_pictures: bool = False) -> Document:
    """The text of a PDF, page by page, with a blank line between pages. Places are the pages, by number and label.

    Pages without text that hold pictures are read by OCR (`ocr.py`; `metadata` lists them), or left out with
    `skip_pictures`; blank pages are no loss.

    Raises:
        DataError: the file is damaged, locked or has no text; a page takes too much time or memory; or pages are
            pictures and OCR is not installed. The message names the pages.
    """
    pages = list(_pages(file))
    pictures = [number for number, page in enumerate(pages, start=1) if page["picture"]]
    metadata: dict[str, Any] = {}
    if pictures and not skip_pictures:
        if not ocr.installed():
            raise DataError(
                f"{file}: pages {_listed(pictures)} (of {len(pages)}) are pictures without text, as of a scan; to read "
                "them install OCR (pip install 'handscroll[ocr]'), or leave them out (--skip-pictures)"
            )
        metadata["ocr"] = tuple(pictures)
        _log.warning("%s: read by OCR, which may err: pages %s", file, _listed(pictures))
        for number, text in zip(pictures, ocr.texts(_pictures(file, pictures)), strict=True):
            pages[number - 1]["text"] = text
    out, places = Writer(), []
    for number, page in enumerate(pages, start=1):
        text = page["text"].strip("\n")
        if text.strip():
            label = page["label"].strip()
            printed = f" (printed as {label})" if label and label != str(number) else ""
            places.append(Place(out.block(text), f"page {number}{printed}"))
    if not out.length:
        raise DataError(f"{file}: none of its {len(pages)} pages has text; read it by OCR or leave it out")
    if pictures and skip_pictures:
        metadata["skipped pages"] = tuple(pictures)
        _log.warning("%s: pictures that were left out: pages %s", file, _listed(pictures))
    return Document(out.text, str(file), metadata, tuple(places))


def _listed(pages: Sequence[int]) -> str:
    """Page numbers as runs: "3, 7-9"."""
    runs: list[list[int]] = []
    for page in pages:
        if runs and page == runs[-1][1] + 1:
            runs[-1][1] = page
        else:
            runs.append([page, page])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _pages(file: Path) -> Iterator[dict[str, Any]]:
    total, length = -1, 0
    with _worker(file, []) as stream:
        for number, line in enumerate(stream):
            record = _checked(json.loads(line), file)
            if total < 0:
                total = record["pages"]
                continue
            length += len(record["text"])
            if length > MOST:
                raise DataError(f"{file} has more than {MOST:,} characters by page {number}, as no document does")
            yield record
    if not total:
        raise DataError(f"{file} has no pages; save it again")


def _pictures(file: Path, pages: Sequence[int]) -> Iterator[tuple[int, int, bytes]]:
    """Width, height and pixels (RGB) of pages."""
    with _worker(file, [str(page) for page in pages]) as stream:
        while line := stream.readline():
            about = _checked(json.loads(line), file)
            yield about["width"], about["height"], stream.read(3 * about["width"] * about["height"])


def _checked(record: dict[str, Any], file: Path) -> dict[str, Any]:
    if "error" in record:
        what = record["error"]
        advice = "save it without a password" if "password" in what.lower() else "save it again, or remove it"
        raise DataError(f"{file}: not a PDF that can be read ({what}); {advice}")
    return record


@contextmanager
def _worker(file: Path, pages: Sequence[str]) -> Iterator[IO[bytes]]:
    """The output of the process that opens the file (`pdf_worker.py`)."""
    if find_spec("pypdfium2") is None:
        raise DataError(
            f"{file}: PDF files need the package pypdfium2, which is not installed: pip install 'handscroll[documents]'"
        )
    try:
        with file.open("rb") as opened:
            if not opened.read(1):
                raise DataError(f"{file}: the file is empty; leave it out or fill it")
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error}); check its permissions") from None
    # -P: not from the folder where the user stands, which may hold a stranger's modules.
    command = [sys.executable, "-P", "-m", pdf_worker.__name__, str(file.resolve()), *pages]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        try:
            yield process.stdout
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise DataError(
            f"{file}: a page takes more than {pdf_worker.SECONDS} s or {pdf_worker.MEMORY >> 30} GB, or the file is "
            "damaged; save it again, or remove it"
        )
