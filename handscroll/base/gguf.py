"""Reads the header of a GGUF model: its metadata, and the place of each tensor in one file or several.

This module parses the header itself. The `gguf` library makes a numpy view of every token, so it takes 8 s for a
vocabulary of 150,000 tokens; this module takes 0.1 s (2026-11). `docs/gguf.md` in the ggml repository defines the
format.
"""

import json
import math
import mmap
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from handscroll.base.errors import CheckpointError

SUFFIX = ".gguf"
_PART = re.compile(r"^(.*)-(\d{5})-of-(\d{5})\.gguf$")
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_U64 = struct.Struct("<Q")
_VERSIONS = (2, 3)
_MOST_DIMENSIONS = 8


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its shape (outermost first), the number of its ggml type, and the offset of its bytes."""

    name: str
    shape: tuple[int, ...]
    kind: int
    path: Path
    offset: int


@dataclass(frozen=True, eq=False)
class GGUF:
    """The header of a GGUF model; `files` are the model's parts in order."""

    files: tuple[Path, ...]
    metadata: dict[str, Any]
    tensors: dict[str, Stored]

    @property
    def path(self) -> Path:
        """The (first) file."""
        return self.files[0]

    @property
    def architecture(self) -> str:
        """`general.architecture`.

        Raises:
            CheckpointError: the file does not name its architecture.
        """
        name = self.metadata.get("general.architecture")
        if not isinstance(name, str):
            raise CheckpointError(f"{self.path} has no key 'general.architecture', so it is not a model")
        return name

    def table(self, key: str) -> dict[str, Any]:
        """The JSON object in a text of the metadata; an empty one where there is none.

        Raises:
            CheckpointError: it is something else.
        """
        try:
            found = json.loads(self.metadata.get(key, "{}"))
        except (TypeError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{self.path}: '{key}' is not valid JSON ({error}); export the model again") from None
        if not isinstance(found, dict):
            raise CheckpointError(f"{self.path}: '{key}' holds a {type(found).__name__}, not an object")
        return found


def is_gguf(path: Path) -> bool:
    """Whether `path` is a file with the suffix `.gguf`."""
    return path.suffix == SUFFIX and path.is_file()


def found_in(folder: Path) -> Path | None:
    """The only GGUF model in a folder (the first part of a split model), or None if there is none.

    Raises:
        CheckpointError: the folder holds several models.
    """
    parts = [(path, _PART.match(path.name)) for path in sorted(folder.glob(f"*{SUFFIX}"))]
    first = [path for path, part in parts if part is None or int(part[2]) == 1]
    if len(first) > 1:
        names = ", ".join(path.name for path in first)
        raise CheckpointError(f"{folder} holds several models ({names}): give the path of one file")
    return first[0] if first else None


def read_gguf(path: Path) -> GGUF:
    """The header of a GGUF model, with all its parts if it is split. A header that is still in use is not read again.

    Raises:
        CheckpointError: the file is not a GGUF file of version 2 or 3, it is cut short, or a part is missing.
    """
    state = path.stat()
    key = (str(path.resolve()), state.st_mtime_ns, state.st_size)
    held = _held.get(key)
    if held is None:
        held = _held[key] = _read_parts(path)
    return held


_held: WeakValueDictionary[tuple[str, int, int], GGUF] = WeakValueDictionary()


def _read_parts(path: Path) -> GGUF:
    part = _PART.match(path.name)
    files = (path,)
    if part is not None:
        names = [f"{part[1]}-{number:05d}-of-{part[3]}{SUFFIX}" for number in range(1, int(part[3]) + 1)]
        files = tuple(path.with_name(name) for name in names)
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise CheckpointError(
                f"{path.parent} lacks {', '.join(missing)}: the model is split into {part[3]} files, and all are needed"
            )
    metadata: dict[str, Any] = {}
    tensors: dict[str, Stored] = {}
    for file in files:
        found, here = _read_file(file)
        metadata = metadata or found
        tensors |= here
    count = metadata.get("split.count", 1) or 1
    if count != len(files):
        raise CheckpointError(
            f"the header of {path} gives {count} as the number of its parts, but the file names give {len(files)}"
        )
    whole = metadata.get("split.tensors.count", len(tensors))
    if whole != len(tensors):
        raise CheckpointError(f"{path} and its parts hold {len(tensors)} tensors, but should hold {whole}")
    return GGUF(files, metadata, tensors)


def _read_file(path: Path) -> tuple[dict[str, Any], dict[str, Stored]]:
    with path.open("rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise CheckpointError(f"{path} is empty") from None
    with data:
        try:
            return _read_header(data, path)
        except (struct.error, IndexError, RecursionError):
            raise CheckpointError(f"{path} is cut short within its header: download or write it again") from None
        except UnicodeDecodeError as error:
            raise CheckpointError(f"the header of {path} holds text that is not UTF-8: {error.reason}") from None


def _read_header(data: mmap.mmap, path: Path) -> tuple[dict[str, Any], dict[str, Stored]]:
    if data[:4] != b"GGUF":
        raise CheckpointError(f"{path} is not a GGUF file: it begins with {data[:4]!r}, not with b'GGUF'")
    cursor = _Cursor(data, 4)
    version = cursor.number("I")
    if version not in _VERSIONS:
        raise CheckpointError(
            f"{path} has GGUF version {version}; supported are versions {' and '.join(map(str, _VERSIONS))}, "
            "little-endian"
        )
    count, keys = cursor.number("Q"), cursor.number("Q")
    metadata: dict[str, Any] = {}
    for _ in range(keys):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.number("I"))
    found = []
    for _ in range(count):
        name = cursor.string()
        shape = tuple(cursor.number("Q") for _ in range(cursor.number("I")))[::-1]
        found.append((name, shape, cursor.number("I"), cursor.number("Q")))
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 8 or alignment % 8:
        raise CheckpointError(
            f"{path}: general.alignment is {alignment!r}; expected a multiple of 8: the file is damaged"
        )
    start = -(-cursor.at // alignment) * alignment
    tensors = {name: Stored(name, shape, kind, path, start + offset) for name, shape, kind, offset in found}
    for stored in tensors.values():
        _check_place(stored, start, alignment, len(data))
    if len(tensors) != count:
        raise CheckpointError(f"{path} holds tensors of the same name: the file is damaged")
    return metadata, tensors


def _check_place(stored: Stored, start: int, alignment: int, size: int) -> None:
    """Refuse a tensor that cannot lie in its file. A number takes at least a sixteenth of a byte in every format."""
    empty = not 1 <= len(stored.shape) <= _MOST_DIMENSIONS or min(stored.shape) < 1
    if empty or (stored.offset - start) % alignment or math.prod(stored.shape) > 16 * (size - stored.offset):
        raise CheckpointError(
            f"{stored.path} is damaged or cut short: tensor '{stored.name}' has shape {stored.shape} and begins at "
            f"byte {stored.offset:,} of {size:,}"
        )


class _Cursor:
    """Reads values from bytes, one after the other."""

    def __init__(self, data: mmap.mmap, at: int):
        self.data, self.at = data, at

    def number(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def string(self) -> str:
        return self.strings(1)[0]

    def strings(self, count: int) -> list[str]:
        data, at, length, found = self.data, self.at, _U64.unpack_from, []
        for _ in range(count):
            (size,) = length(data, at)
            end = at + 8 + size
            if end > len(data):
                raise IndexError
            found.append(data[at + 8 : end].decode())
            at = end
        self.at = at
        return found

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.number(_number(kind))
        inner, count = self.number("I"), self.number("Q")
        if inner == _STRING:
            return self.strings(count)
        if inner == _ARRAY:
            return [self.value(_ARRAY) for _ in range(count)]
        code = f"<{count}{_number(inner)}"
        values = list(struct.unpack_from(code, self.data, self.at))
        self.at += struct.calcsize(code)
        return values


def _number(kind: int) -> str:
    if kind not in _NUMBERS:
        raise CheckpointError(f"a GGUF file holds a value of the unknown type {kind}; it is damaged")
    return _NUMBERS[kind]
