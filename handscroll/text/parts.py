"""Documents in parts, so that a file larger than memory can be looked through from beginning to end."""

import codecs
import gzip
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from handscroll.base.errors import DataError
from handscroll.text.encodings import sniff
from handscroll.text.pretokenizers import pieces
from handscroll.text.readers import files_of, open_file, read, streams

PART = 1 << 16  # characters
_BLOCK = 1 << 20  # bytes that are read at a time; the first block decides the encoding


@dataclass(frozen=True, slots=True)
class Part:
    """Some of a document's text, in order; `last` closes the document."""

    text: str
    source: str
    last: bool


def parts(
    paths: Sequence[str | Path] | str | Path, key: str | None = None, encoding: str | None = None, size: int = PART
) -> Iterator[Part]:
    """The documents of `readers.read`, each in parts of about `size` characters; joined they are its text.

    Parts end behind a letter before a space or a sign, where the tokens of byte-level tokenizers end too; text without
    such places is cut at a space, or anywhere, within four times the size. Memory is bounded for plain text, gzipped or
    not, and for JSON lines by the longest line; an HTML page is read whole. An encoding without a mark is judged by the
    first MiB.

    Raises:
        DataError: as `readers.read`; bad bytes far down in a file when they are reached.
    """
    for file in files_of(paths):
        if streams(file):
            yield from _cut(_characters(file, encoding), str(file), size)
        else:
            for document in read(file, key, encoding):
                yield from _cut(iter([document.text]), document.source, size)


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


def _characters(file: Path, encoding: str | None) -> Iterator[str]:
    """The text of a plain file, block by block."""
    done = 0
    try:
        with open_file(file) as stream:
            block = stream.read(_BLOCK)
            name, skip = sniff(block, str(file), encoding)
            decoder = codecs.getincrementaldecoder(name)()
            block, done = block[skip:], skip
            while True:
                ended = len(block) == 0
                text = decoder.decode(block, final=ended)
                if "\0" in text:
                    raise DataError(f"{file}: not a text file (a NUL character after byte {done}); convert it first")
                yield text
                if ended:
                    return
                done += len(block)
                block = stream.read(_BLOCK)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file}: not valid {error.encoding} after byte {done} ({error.reason}); repair the file or name its real "
            "encoding"
        ) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{file}: damaged gzip file ({error}); compress it again") from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error}); check its permissions") from None
