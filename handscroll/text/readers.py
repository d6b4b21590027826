"""Raw files to documents: plain text, source code, HTML and JSON lines, plain or gzipped, in folders and globs.

Nothing is lost in silence: what cannot be read is a `DataError` that names the file and the byte or line.
"""

import glob
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from handscroll.base.errors import DataError
from handscroll.text.encodings import decode
from handscroll.text.html import declared_encoding, page_text

_PLAIN_SUFFIXES = (
    ".txt .text .md .markdown .rst .tex .org .py .pyi .c .h .cc .cpp .hpp .cu .rs .go .java .js .mjs .ts .tsx .jsx "
    ".rb .sh .sql .toml .yaml .yml .ini .cfg .css .r .jl .lua .pl .php .kt .swift .scala .hs .ml .el .vim .m"
)
_PLAIN = frozenset(_PLAIN_SUFFIXES.split())
_PAGES = frozenset({".html", ".htm"})
_LINES = frozenset({".jsonl"})
SUFFIXES = _PLAIN | _PAGES | _LINES
_TEXT_KEYS = ("text", "content")


@dataclass(frozen=True, slots=True)
class Document:
    """One text and where it came from.

    `source` is the path, with `:line` for a line of a `.jsonl` file. `metadata` holds what came beside the text: the
    other keys of the JSON object, an HTML `title`, the `encoding` where it was not UTF-8.
    """

    text: str
    source: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


def read(
    paths: Sequence[str | Path] | str | Path, key: str | None = None, encoding: str | None = None
) -> Iterator[Document]:
    """Documents of files, folders (recursive, sorted, hidden names and unknown suffixes skipped) and globs.

    One file is one document, except `.jsonl`, where one line is one document, read line by line (blank lines are
    skipped). Any of them may be gzipped (`.gz`). Text is passed on exactly, newlines included; only a byte order mark
    is removed, and HTML is turned into its visible text. All paths are checked before the first document is read.

    Args:
        key: the key of a JSON line that holds the text; by default `text`, else `content`.
        encoding: overrides the detection (byte order mark, UTF-8, then gb18030 that reads like Chinese).

    Raises:
        DataError: a missing or empty file, a glob or folder with nothing to read, a file named twice, an unknown
            suffix, a binary file, undecodable bytes (with their offset), a JSON line without text.
    """
    return _documents(files_of(paths), key, encoding)


def files_of(paths: Sequence[str | Path] | str | Path) -> list[Path]:
    """The files that `read` reads for these paths, in its order.

    Raises:
        DataError: as `read`, for paths.
    """
    if isinstance(paths, str | Path):
        paths = [paths]
    if not paths:
        raise DataError("no files to read; name text files, folders or globs")
    return _distinct([file for path in paths for file in _expand(path)])


def streams(file: Path) -> bool:
    """Whether a file is one document of plain text, which can be read without its end."""
    return _kind(file) not in _LINES | _PAGES


def _documents(files: Sequence[Path], key: str | None, encoding: str | None) -> Iterator[Document]:
    for file in files:
        if _kind(file) in _LINES:
            yield from _json_lines(file, key, encoding)
        else:
            yield _whole(file, encoding)


def _expand(path: str | Path) -> list[Path]:
    here = Path(path).expanduser()
    if here.is_dir():
        found = sorted(file for file in here.rglob("*") if _wanted(file, here))
        if not found:
            raise DataError(f"folder {here} holds no text files; read are: {', '.join(sorted(SUFFIXES))} (also .gz)")
        return found
    if here.exists():
        return [_known(here)]
    if not glob.has_magic(str(here)):
        raise DataError(f"file {here} does not exist; check the path (relative paths start at {Path.cwd()})")
    # Path.glob takes no absolute pattern and matches hidden names.
    found = [Path(name) for name in sorted(glob.glob(str(here), recursive=True))]  # noqa: PTH207
    files = [_known(file) for file in found if file.is_file()]
    if not files:
        raise DataError(f"the pattern {here} matches no file; check it (** matches folders at any depth)")
    return files


def _wanted(file: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
    return not hidden and file.is_file() and _kind(file) in SUFFIXES


def _kind(file: Path) -> str:
    name = file.with_suffix("") if file.suffix.lower() == ".gz" else file
    return name.suffix.lower()


def _known(file: Path) -> Path:
    kind = _kind(file)
    # Files without a suffix (README, LICENSE) are taken at their user's word; decoding still refuses binaries.
    if kind and kind not in SUFFIXES:
        raise DataError(
            f"{file}: unknown suffix '{kind}'; read are: {', '.join(sorted(SUFFIXES))} (also .gz). "
            "Rename a plain text file to .txt; convert tables and archives to .jsonl first"
        )
    return file


def _distinct(files: list[Path]) -> list[Path]:
    seen: dict[Path, Path] = {}
    for file in files:
        real = file.resolve()
        if real in seen:
            raise DataError(f"{file} is named twice (also as {seen[real]}); name it once")
        seen[real] = file
    return files


def open_file(file: Path) -> gzip.GzipFile | BinaryIO:
    """The bytes of a file, unzipped where its name ends in .gz."""
    return gzip.open(file, "rb") if file.suffix.lower() == ".gz" else file.open("rb")


def _whole(file: Path, encoding: str | None) -> Document:
    source = str(file)
    try:
        with open_file(file) as stream:
            data = stream.read()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{source}: damaged gzip file ({error}); compress it again") from None
    except OSError as error:
        raise DataError(f"{source}: cannot be read ({error.strerror or error}); check its permissions") from None
    metadata: dict[str, Any] = {}
    if _kind(file) in _PAGES:
        page, used = decode(data, source, encoding or declared_encoding(data))
        text, title = page_text(page, source)
        metadata |= {} if title is None else {"title": title}
    else:
        text, used = decode(data, source, encoding)
    return Document(text, source, metadata | ({} if used == "utf-8" else {"encoding": used}))


def _json_lines(file: Path, key: str | None, encoding: str | None) -> Iterator[Document]:
    count = 0
    try:
        with open_file(file) as stream:
            # Bytes iterate by \n only; decoded lines would also break at U+2028, which JSON allows inside strings.
            for number, line in enumerate(stream, start=1):
                source = f"{file}:{number}"
                if line.strip():
                    count += 1
                    yield _json_document(line, source, key, encoding)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{file}: damaged gzip file after {count} lines ({error}); compress it again") from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error}); check its permissions") from None
    if not count:
        raise DataError(f"{file}: the file is empty; remove it from the list or fill it")


def _json_document(line: bytes, source: str, key: str | None, encoding: str | None) -> Document:
    content, _ = decode(line, source, encoding or "utf-8")
    try:
        record = json.loads(content)
    except json.JSONDecodeError as error:
        raise DataError(f"{source}: not valid JSON ({error}); every line must be one JSON object") from None
    if not isinstance(record, dict):
        raise DataError(f'{source}: a JSON {type(record).__name__}, not an object; write {{"text": ...}} on each line')
    name = key if key is not None else next((k for k in _TEXT_KEYS if k in record), None)
    if name is None or name not in record:
        asked = f"no key '{key}'" if key else "neither 'text' nor 'content'"
        raise DataError(f"{source}: {asked} among the keys {', '.join(sorted(record))}; name the text's key (key=...)")
    text = record.pop(name)
    if not isinstance(text, str) or not text:
        what = "is empty" if text == "" else f"holds a {type(text).__name__}, not text"
        raise DataError(f"{source}: '{name}' {what}; remove the line or name another key (key=...)")
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise DataError(f"{source}: '{name}' holds a NUL or half a surrogate pair, which is not text; repair the line")
    return Document(text, source, record)
