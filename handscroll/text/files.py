"""Files by path, folder and glob, and their bytes, text and lines, plain or gzipped, in bounded memory."""

import codecs
import gzip
import logging
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from handscroll.base.errors import DataError
from handscroll.text.encodings import sniff
from handscroll.text.paths import distinct, home, is_folder, named, within

Paths = Sequence[str | Path] | str | Path

PLAIN = frozenset(
    (
        ".txt .text .md .markdown .rst .tex .org .py .pyi .c .h .cc .cpp .hpp .cu .rs .go .java .js .mjs .ts .tsx .jsx "
        ".rb .sh .sql .toml .yaml .yml .ini .cfg .css .r .jl .lua .pl .php .kt .swift .scala .hs .ml .el .vim .m"
    ).split()
)
PAGES = frozenset({".html", ".htm", ".xhtml"})
ROWS = frozenset({".jsonl", ".csv", ".tsv", ".parquet"})
BOOKS = frozenset({".pdf", ".docx", ".epub"})
SUFFIXES = PLAIN | PAGES | ROWS | BOOKS
WHOLE = BOOKS | {".parquet"}  # packed by themselves, so never gzipped

BLOCK = 1 << 20  # bytes that are read at a time; the first block decides the encoding
RATIO, SURELY = 200, 64 << 20  # a gzip file that unpacks to more than both is refused; text packs to a third or tenth
_MAGIC = {
    b"%PDF-": "is a PDF: name it .pdf",
    b"PK\x03\x04": "is a packed file: name a Word file .docx and a book .epub, and unpack an archive",
    b"PAR1": "is a Parquet table: name it .parquet",
    b"\x1f\x8b": "is gzipped: let its name end in .gz",
    b"\xd0\xcf\x11\xe0": "is an old office file: save it as .docx or .pdf",
    b"{\\rtf": "is a rich text file: save it as .docx or .txt",
}
_log = logging.getLogger("handscroll.files")


@dataclass
class Files:
    """The files that some paths stand for. One that cannot be used stops a request that names it alone.

    Of several files those that cannot be used are left out: each is named by the logger `handscroll.files`, counted in
    `skipped`, and all are an error if nothing is left. `other` counts the files of folders by suffixes that are not
    read, and `apart` names the folders that were not entered and the links to files that are read anyway.
    """

    paths: list[Path] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    apart: list[str] = field(default_factory=list)
    other: Counter[str] = field(default_factory=Counter)
    used: int = 0

    @classmethod
    def of(cls, paths: Paths) -> "Files":
        """
        Raises:
            DataError: no path, a missing file, a glob or folder with nothing to read, a file named twice, or a single
                file of a kind that is not read.
        """
        if isinstance(paths, str | Path):
            paths = [paths]
        if not paths:
            raise DataError("no files to read; name text files, folders or globs")
        found, refused = cls(), []
        for path in paths:
            for file in found._expand(path):
                if problem := unreadable(file):
                    refused.append(problem)
                else:
                    found.paths.append(file)
        distinct(found.paths)
        if refused and not found.paths:
            raise DataError(refused[0])
        found.skipped = refused
        return found

    def begin(self) -> None:
        """Name the files that are of no kind that is read, and the folders that were not entered."""
        for problem in self.skipped + self.apart:
            _log.warning("left out: %s", problem)

    def skip(self, error: DataError, documents: int = 0) -> None:
        """Leave out (the rest of) a file, or raise its `error` if it is the only one."""
        if len(self.paths) + len(self.skipped) == 1:
            raise error
        self._leave_out(str(error) + (f" ({documents:,} documents before that were used)" if documents else ""))

    def close(self) -> None:
        """Say at the end how much was left out.

        Raises:
            DataError: no file could be used.
        """
        if self.skipped and not self.used:
            raise DataError(f"none of the {len(self.skipped)} files can be used; the first: {self.skipped[0]}")
        if self.skipped:
            count = len(self.skipped)
            _log.warning("left out in all: %s", f"{count} file{'' if count == 1 else 's'} of {self.used + count}")
        if self.other:
            names = ", ".join(f"{count} {name or 'without a suffix'}" for name, count in self.other.most_common())
            _log.warning("files in folders that are of no kind that is read: %s", names)

    def _leave_out(self, problem: str) -> None:
        self.skipped.append(problem)
        _log.warning("left out: %s", problem)

    def _expand(self, path: str | Path) -> list[Path]:
        here = home(path)
        if not is_folder(here):
            found = named(here)
            self.apart += found.apart
            return found.files
        found = within(here)
        self.apart += found.apart
        taken = self._among(found.files)
        if not taken:
            told = "".join(f"; {problem}" for problem in found.apart[:1])
            raise DataError(f"folder {here} holds no text files; read are: {', '.join(sorted(SUFFIXES))}{told}")
        return taken

    def _among(self, files: Iterable[Path]) -> list[Path]:
        found = []
        for file in files:
            if kind(file) in SUFFIXES:
                found.append(file)
            else:
                self.other[kind(file)] += 1
        return found


def kind(file: Path) -> str:
    """The suffix that tells what a file is: that before .gz, in small letters."""
    name = file.with_suffix("") if zipped(file) else file
    return name.suffix.lower()


def zipped(file: Path) -> bool:
    return file.suffix.lower() == ".gz"


def unreadable(file: Path) -> str:
    """Why a file is of no kind that is read, or nothing."""
    what = kind(file)
    # Files without a suffix (README, LICENSE) are taken at their user's word; decoding still refuses binaries.
    if what and what not in SUFFIXES:
        return (
            f"{file}: unknown suffix '{what}'; read are: {', '.join(sorted(SUFFIXES))} (also .gz). Name a plain text "
            "file .txt; save an office file as .docx or .pdf, and a table as .csv"
        )
    if what in WHOLE and zipped(file):
        return f"{file}: a {what} file is packed already and is not read out of .gz; unpack it (gunzip)"
    return ""


def blocks(file: Path, size: int | None = None) -> Iterator[bytes]:
    """The bytes of a file, unzipped where its name ends in .gz; the first block is b"" for an empty file.

    Raises:
        DataError: the file cannot be read, is a damaged gzip file, or unpacks to an unlikely size.
    """
    done, packed = 0, zipped(file)
    size = size or BLOCK
    try:
        with gzip.open(file, "rb") if packed else file.open("rb") as stream:
            most = max(SURELY, RATIO * file.stat().st_size)
            block = stream.read(size)
            yield block
            while block:
                done += len(block)
                if packed and done > most:
                    raise DataError(f"{file}: unpacks to more than {RATIO} times its size, as no text does; unpack it")
                if block := stream.read(size):
                    yield block
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{file}: damaged gzip file after {done:,} bytes ({error}); compress it again") from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error}); check its permissions") from None


def looks_like(head: bytes, file: Path) -> None:
    """
    Raises:
        DataError: a file that should be text begins as another kind does.
    """
    for mark, what in _MAGIC.items():
        if head.startswith(mark):
            raise DataError(f"{file} {what}")


def characters(file: Path, encoding: str | None, size: int | None = None) -> Iterator[str]:
    """The text of a plain file, block by block. An encoding without a mark is judged by the first block.

    Raises:
        DataError: as `blocks`; the file is empty, no text, or not in the encoding.
    """
    return decoded(blocks(file, size), file, encoding)


def decoded(found: Iterable[bytes], file: Path, encoding: str | None) -> Iterator[str]:
    """The text of some blocks of bytes, as `characters` of a file; `file` names them in errors."""
    decoder, done, marked, empty = None, 0, 0, True
    try:
        for block in found:
            if decoder is None:
                looks_like(block, file)
                name, marked = sniff(block, str(file), encoding)
                decoder = codecs.getincrementaldecoder(name)()
            at, done = done, done + len(block)
            text = decoder.decode(block[marked:])
            marked, empty = 0, empty and not text
            _no_nul(text, file, at)
            yield text
        assert decoder is not None
        yield (rest := decoder.decode(b"", final=True))
        if empty and not rest:
            raise DataError(f"{file}: the file holds a byte order mark and no text; leave it out or fill it")
    except UnicodeDecodeError as error:
        place = done - len(error.object) + error.start
        raise DataError(
            f"{file}: not valid {error.encoding}: byte 0x{error.object[error.start]:02x} at offset {place} "
            f"({error.reason}); repair the file or name its real encoding (--encoding)"
        ) from None


def _no_nul(text: str, file: Path, at: int) -> None:
    if "\0" in text:
        raise DataError(f"{file}: not a text file (a NUL character after byte {at}); convert it first")


def lines(file: Path, encoding: str | None) -> Iterator[tuple[int, str]]:
    """The lines of a text file without their ends, counted from 1; memory holds the longest line."""
    return lines_of(characters(file, encoding))


def lines_of(texts: Iterable[str]) -> Iterator[tuple[int, str]]:
    """The lines of a text that comes in pieces, without their ends, counted from 1.

    Only a line feed ends a line (with the carriage return before it): decoded lines also break at U+2028, which JSON
    allows inside strings.
    """
    number, held = 0, []
    for text in texts:
        first, *rest = text.split("\n")
        held.append(first)
        for part in rest:
            number += 1
            yield number, "".join(held).removesuffix("\r")
            held = [part]
    if last := "".join(held).removesuffix("\r"):
        yield number + 1, last
