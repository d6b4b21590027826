"""Raw files to documents: text, code, HTML, JSON lines, tables, PDF, Word and EPUB, in folders and globs.

Nothing is lost in silence: what cannot be read is a `DataError` that names the file and the byte, line or page. Where
several files are given, one that cannot be used is named, left out and counted (`files.py: Files`).
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from handscroll.base.errors import DataError
from handscroll.text.document import Document
from handscroll.text.docx import read_docx
from handscroll.text.encodings import decode, decode_labelled, same_encoding
from handscroll.text.epub import read_epub
from handscroll.text.files import BOOKS, PAGES, ROWS, Files, Paths, blocks, kind, looks_like
from handscroll.text.html import declared_encoding, page_text
from handscroll.text.pdf import read_pdf
from handscroll.text.rows import TEXT_KEYS, Row, rows, text_of, whole_row

__all__ = ["Document", "Reader", "files_of", "read"]
_log = logging.getLogger("handscroll.files")


@dataclass(frozen=True, slots=True)
class Reader:
    """How files are read.

    key: the key of a JSON line, or the column of a table, that holds the text; by default `text`, else `content`.
    encoding: overrides the detection (byte order mark, UTF-8, then gb18030 that reads like Chinese).
    skip_pictures: pages of a PDF that are only pictures are left out; otherwise they are read by OCR, or refused.
    whole_rows: without a `key`, a row that has neither `text` nor `content` is read with all its names and values, and
        the log says so; otherwise it is refused.
    """

    key: str | None = None
    encoding: str | None = None
    skip_pictures: bool = False
    whole_rows: bool = False

    def read(self, paths: Paths) -> Iterator[Document]:
        """Documents of files, folders (recursive, sorted, without hidden names and unknown suffixes) and globs.

        One file is one document, except `.jsonl` and tables, where one line or row is one, read one by one. Text files
        may be gzipped (`.gz`). Text is passed on exactly, newlines included; only a byte order mark is removed, and
        HTML, PDF, Word and EPUB are turned into their visible text. All paths are checked before the first is read.

        Raises:
            DataError: a missing or empty file, a glob or folder with nothing to read, a file named twice, an unknown
                suffix, a binary or damaged file, undecodable bytes (with their offset), a line or row without text.
        """
        return self._documents(Files.of(paths))

    def check(self, paths: Paths) -> None:
        """Refuse what `read` refuses by the paths alone, without reading a file.

        Raises:
            DataError: as `read`, for paths.
        """
        Files.of(paths)

    def _documents(self, files: Files) -> Iterator[Document]:
        files.begin()
        for file in files.paths:
            count = 0
            try:
                for count, document in enumerate(self.documents(file), start=1):  # noqa: B007
                    yield document
                files.used += 1
            except DataError as error:
                files.used += count > 0
                files.skip(error, count)
        files.close()

    def documents(self, file: Path) -> Iterator[Document]:
        """The documents of one file.

        Raises:
            DataError: as `read`.
        """
        what = kind(file)
        if what in ROWS:
            yield from self._rows(file)
        elif what in BOOKS:
            yield _BOOKS[what](file, self)
        else:
            yield self._whole(file)

    def _whole(self, file: Path) -> Document:
        source, data = str(file), b"".join(blocks(file))
        looks_like(data[:8], file)
        metadata: dict[str, Any] = {}
        if kind(file) in PAGES:
            label = None if self.encoding else declared_encoding(data)
            page, used = decode_labelled(data, source, label) if label else decode(data, source, self.encoding)
            text, title = page_text(page, source)
            metadata |= {} if title is None else {"title": title}
            metadata |= {} if label is None or same_encoding(label, used) else {"declared encoding": label}
        else:
            text, used = decode(data, source, self.encoding)
        return Document(text, source, metadata | ({} if used == "utf-8" else {"encoding": used}))

    def _rows(self, file: Path) -> Iterator[Document]:
        """A document a line or row. Empty cells of a table are counted; an empty text in JSON is refused."""
        names = TEXT_KEYS if self.key is None else (self.key,)
        empty, first, table, whole = 0, "", kind(file) != ".jsonl", 0
        for where, values in self._by_columns(file, names):
            name = next((one for one in names if one in values), "")
            if not name and self.whole_rows and self.key is None:
                whole += 1
                yield Document(whole_row(values, where), where, values)
                continue
            if table and name and where != str(file) and values[name] in (None, ""):
                empty, first = empty + 1, first or where
                continue
            yield Document(text_of(values, where, self.key), where, values)
        if empty:
            _log.warning("%s: %s rows without text were left out, the first is %s", file, f"{empty:,}", first)
        if whole:
            told = "%s: %s rows have no column named text or content; they are read with all their names and values"
            _log.warning(told, file, f"{whole:,}")

    def _by_columns(self, file: Path, names: Sequence[str]) -> Iterator[Row]:
        """The rows of a file; a Parquet file that has none of the names gives all its columns if they are asked for."""
        read = rows(file, names, self.encoding)
        where, values = next(read)
        if where == str(file) and self.whole_rows and self.key is None:
            yield from rows(file, None, self.encoding)
        else:
            yield from chain([(where, values)], read)


_BOOKS: dict[str, Callable[[Path, Reader], Document]] = {
    ".pdf": lambda file, reader: read_pdf(file, reader.skip_pictures),
    ".docx": lambda file, reader: read_docx(file),
    ".epub": lambda file, reader: read_epub(file),
}


def read(paths: Paths, key: str | None = None, encoding: str | None = None) -> Iterator[Document]:
    """`Reader(key, encoding).read(paths)`."""
    return Reader(key, encoding).read(paths)


def files_of(paths: Paths) -> list[Path]:
    """The files that `read` reads for these paths, in its order.

    Raises:
        DataError: as `read`, for paths.
    """
    return Files.of(paths).paths
