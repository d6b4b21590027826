"""Documents in parts, so that a file larger than memory can be looked through from beginning to end."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from handscroll.base.errors import DataError
from handscroll.text.files import BOOKS, PAGES, ROWS, Files, Paths, characters, kind
from handscroll.text.pretokenizers import pieces
from handscroll.text.readers import Reader

PART = 1 << 16  # characters


@dataclass(frozen=True, slots=True)
class Part:
    """Some of a document's text, in order; `last` closes the document."""

    text: str
    source: str
    last: bool


def parts(paths: Paths | Files, reader: Reader | None = None, size: int = PART) -> Iterator[Part]:
    """The documents of `Reader.read`, each in parts of about `size` characters; joined they are its text.

    Parts end behind a letter before a space or a sign, where the tokens of byte-level tokenizers end too; text without
    such places is cut at a space, or anywhere, within four times the size. Memory is bounded for plain text, gzipped or
    not, and for lines and rows by the longest; a page or book is read whole. An encoding without a mark is judged by
    the first MiB.

    Raises:
        DataError: as `Reader.read`; bad bytes far down in a file when they are reached.
    """
    files = paths if isinstance(paths, Files) else Files.of(paths)
    files.begin()
    for file in files.paths:
        done, open_ = 0, ""
        try:
            for part in _parts(file, reader or Reader(), size):
                done, open_ = done + part.last, "" if part.last else part.source
                yield part
            files.used += 1
        except DataError as error:
            if open_:  # what was passed on is a document; what follows is left out
                yield Part("", open_, last=True)
            files.used += done > 0 or bool(open_)
            files.skip(error, done)
    files.close()


def _parts(file: Path, reader: Reader, size: int) -> Iterator[Part]:
    if kind(file) in ROWS | BOOKS | PAGES:
        for document in reader.documents(file):
            yield from _cut(iter([document.text]), document.source, size)
    else:
        yield from _cut(characters(file, reader.encoding), str(file), size)


def _cut(texts: Iterator[str], source: str, size: int) -> Iterator[Part]:
    held = ""
    for text in texts:
        held += text
        if len(held) < 2 * size:
            continue
        *whole, held = pieces(held, size)
        for piece in whole:
            yield Part(piece, source, last=False)
        while len(held) > 4 * size:  # no such place: at a space, or anywhere
            end = max(held.rfind(space, 0, 4 * size) for space in " \n\t\u3000")
            end = end if end > 0 else 4 * size
            yield Part(held[:end], source, last=False)
            held = held[end:]
    *whole, held = pieces(held, size)
    for piece in whole:
        yield Part(piece, source, last=False)
    yield Part(held, source, last=True)
