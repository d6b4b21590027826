"""`Names`: what the names of a store stand for, and the documents that were read under them.

    <name>.json            the number of the part and the length in tokens; the place of the model that read it, and its
                           adapters; of a document also when it was read, and the SHA-256 of its text
    <name>~<16 digits>.txt the text of the document, named by its SHA-256

The record says which text is meant, so that replacing it, at once, replaces both. Earlier versions wrote <name>.txt and
no SHA-256, and no model, which is still read. Whoever writes holds the lock of the store.
"""

import hashlib
import json
import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from handscroll.base.errors import CheckpointError, ConfigError, nearest
from handscroll.base.runs import write_file
from handscroll.cache.reading.reading import Document

NAME = re.compile(r"[\w][\w.-]{0,99}")
BYTES = 200  # of a name; file systems take 255, with all that stands behind it
_TEMPORARY = re.compile(r".+\.(json|txt)\.tmp-\d+-[0-9a-f]{8}")  # what a kill leaves of `write_file`
_log = logging.getLogger("handscroll.readings")


class Origin(NamedTuple):
    """The place of the model that read a text, and of the adapters that were on it."""

    source: str
    adapters: tuple[str, ...] = ()


@dataclass(frozen=True)
class Names:
    """The names in a folder."""

    folder: Path

    def all(self) -> dict[str, tuple[str, int]]:
        """By name: the number of the part, and the length in tokens."""
        found = {}
        for path in sorted(self.folder.glob("*.json")):
            try:
                value = json.loads(path.read_text(encoding="utf-8"))
                found[path.stem] = (str(value["number"]), int(value["length"]))
            except (OSError, ValueError, TypeError, KeyError, RecursionError):
                _log.warning("%s is damaged: the name is skipped; read the text again", path)
        return found

    def find(self, name: str) -> tuple[str, int]:
        """The number of the part and the length in tokens of one name.

        Raises:
            ConfigError: there is no such name.
            CheckpointError: its record is damaged.
        """
        known = self.all()
        if name not in known and self.holds(name):
            raise CheckpointError(
                f"the record of the reading '{name}' is damaged ({self._path(name)}); read the text again under this "
                "name, or forget it (handscroll readings --forget)"
            )
        if name not in known:
            near = nearest(name, known) if known else "none is saved here"
            raise ConfigError(f"no reading is named '{name}': {near}")
        return known[name]

    def holds(self, name: str) -> bool:
        """Whether there is a record of a name, damaged or not."""
        return any(path.stem == name for path in self.folder.glob("*.json"))

    def put(self, name: str, number: str, length: int, document: Document | None, origin: Origin | None) -> None:
        """Let a name stand for the first `length` tokens of a part, and for a document if they hold one."""
        value: dict[str, Any] = {"number": number, "length": length} | (origin._asdict() if origin else {})
        if document is not None:
            text = document.text.encode()
            value |= {"when": document.when, "sha256": hashlib.sha256(text).hexdigest()}
            write_file(self._text(name, value), text)
        self._write(name, value)
        self._tidy(name, self._texts(name))

    def move(self, name: str, number: str, length: int) -> None:
        """Let a name stand for another part; all else that it says stays."""
        self._write(name, self._record(name) | {"number": number, "length": length})

    def origin(self, name: str) -> Origin | None:
        """By which model a name was read; None in records of earlier versions, where the part alone tells it.

        Raises:
            CheckpointError: the record is missing or damaged.
        """
        value = self._record(name)
        source, adapters = value.get("source"), value.get("adapters")
        if not isinstance(source, str) or not isinstance(adapters, list):
            return None
        return Origin(source, tuple(map(str, adapters)))

    def document(self, name: str) -> Document | None:
        """The document that was read under a name, if there is one.

        Raises:
            CheckpointError: its text is missing or was changed.
        """
        try:
            return self._document(name)
        except CheckpointError:  # another text may have got the name at this moment
            return self._document(name)

    def _document(self, name: str) -> Document | None:
        value = self._record(name)
        if value.get("when") is None:
            return None
        path = self._text(name, value)
        try:
            text = path.read_bytes()
            if value.get("sha256") not in (None, hashlib.sha256(text).hexdigest()):
                raise ValueError("its SHA-256 differs from that of the text that was read")
            return Document(text.decode(), value["when"])
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} is missing or damaged ({error}); read the text again") from None

    def remove(self, name: str) -> None:
        """Remove a name and its document; after a kill the name is still there, and can be removed again."""
        for path in self._texts(name):
            path.unlink()
        self._path(name).unlink()

    def sweep(self) -> None:
        """Remove what killed processes left behind."""
        texts: dict[str, list[Path]] = defaultdict(list)
        for path in list(self.folder.iterdir()):
            if _TEMPORARY.fullmatch(path.name):
                path.unlink(missing_ok=True)
            elif path.suffix == ".txt":
                texts[path.stem.partition("~")[0]].append(path)
        for name, beside in texts.items():
            self._tidy(name, beside)

    def _tidy(self, name: str, texts: Iterable[Path]) -> None:
        """Remove those of the texts beside a name that are not the one that it names."""
        try:
            value = self._record(name) if self._path(name).exists() else {}
        except CheckpointError:  # perhaps it can be read again
            return
        kept = None if value.get("when") is None else self._text(name, value)
        for path in texts:
            if path != kept:
                path.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _text(self, name: str, value: dict[str, Any]) -> Path:
        """The file of the text that a record names."""
        digest = value.get("sha256")
        return self.folder / (f"{name}.txt" if digest is None else f"{name}~{digest[:16]}.txt")

    def _texts(self, name: str) -> Iterator[Path]:
        """All texts that stand beside a name."""
        yield from (path for path in [self.folder / f"{name}.txt"] if path.exists())
        yield from list(self.folder.glob(f"{name}~*.txt"))

    def _record(self, name: str) -> dict[str, Any]:
        path = self._path(name)
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{path} is missing or damaged ({error}); read the text again") from None

    def _write(self, name: str, value: dict[str, Any]) -> None:
        write_file(self._path(name), (json.dumps(value) + "\n").encode())


def check_name(name: str) -> None:
    """Refuse a name with characters that are not allowed, or a longer one than a file system takes.

    Raises:
        ConfigError: the name is not allowed.
    """
    if not NAME.fullmatch(name) or len(name.encode()) > BYTES:
        raise ConfigError(
            f"reading name {name!r}: use letters, digits, '.', '-' and '_', at most 100 of them and {BYTES} bytes "
            "in UTF-8"
        )
