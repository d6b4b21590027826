"""The documents of all owners on the disk: a folder each, which nobody else's request can name.

documents/<owner>/<id>/about.json   name, sizes, hashes, places, and which models have read it
                       text.txt     its text
                       vectors-*    vectors of its passages, by encoder
"""

import json
import logging
import re
import secrets
import shutil
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from handscroll.base.errors import CheckpointError
from handscroll.base.runs import make_folder, saving, write_file
from handscroll.serve.errors import ApiError
from handscroll.text.document import Document, Place

NUMBER = re.compile(r"doc-[0-9a-f]{24}")
ABOUT = "about.json"
STATES = ("waiting", "reading", "stopped", "read", "refused", "failed")
_log = logging.getLogger("handscroll.serve")


@dataclass(eq=False)
class Entry:
    """A document of an owner. `readings` are, by model, the state and the tokens; `gone` once it is deleted."""

    owner: str
    number: str
    name: str
    created: int
    bytes: int
    sha256: str  # of the file
    text_sha256: str
    characters: int
    places: list[tuple[int, str]]
    notes: list[str]
    readings: dict[str, dict[str, Any]] = field(default_factory=dict)
    gone: bool = False

    def record(self) -> dict[str, Any]:
        """The document as an answer of the interface, without its readings, which change under a lock."""
        return {
            "id": self.number,
            "object": "document",
            "name": self.name,
            "created": self.created,
            "bytes": self.bytes,
            "sha256": self.sha256,
            "text_sha256": self.text_sha256,
            "characters": self.characters,
            "places": len(self.places),
            "notes": self.notes,
        }


class Shelf:
    """All documents under `root`; an owner has at most `most`. Safe to use from several threads."""

    def __init__(self, root: Path, most: int):
        self._folder, self._most = root / "documents", most
        self._lock = threading.RLock()
        self._entries: dict[tuple[str, str], Entry] = {}
        self.drafts = root / "arriving"  # uploaded files until their text is made
        shutil.rmtree(self.drafts, ignore_errors=True)  # of a server that was killed
        for folder in (self._folder, self.drafts):
            with saving(folder):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for file in sorted(self._folder.glob(f"*/*/{ABOUT}")):
            self._open(file)

    def add(self, owner: str, name: str, document: Document, about: dict[str, Any]) -> Entry:
        """Keep a document; `about` are the size and hashes of its file.

        Raises:
            ApiError: the owner has too many. CheckpointError: the disk refused.
        """
        places = [(place.start, place.name) for place in document.places]
        made = Entry(
            owner=owner,
            number=f"doc-{secrets.token_hex(12)}",
            name=name,
            created=int(time.time()),
            characters=len(document.text),
            places=places,
            **about,
        )
        folder = self._of(made)
        try:
            with saving(folder):
                make_folder(folder)
            write_file(folder / "text.txt", document.text.encode("utf-8", "surrogatepass"))
            self.save(made)
            with self._lock:
                self.check_room(owner)
                self._entries[owner, made.number] = made
        except (ApiError, CheckpointError):
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return made

    def check_room(self, owner: str) -> None:
        """Refuse one document more than an owner may have.

        Raises:
            ApiError: he has as many.
        """
        if len(self.all(owner)) >= self._most:
            raise ApiError(429, f"{self._most} documents are kept for a key; delete one first", "too_many_documents")

    def get(self, owner: str, number: str) -> Entry:
        """A document of this owner.

        Raises:
            ApiError: he has none of that number, whoever else may.
        """
        found = self._entries.get((owner, number)) if NUMBER.fullmatch(number) else None
        if found is None or found.gone:
            raise absent(number)
        return found

    def all(self, owner: str | None = None) -> list[Entry]:
        """The documents of an owner, or of all, the oldest first."""
        with self._lock:
            return [one for one in self._entries.values() if not one.gone and owner in (None, one.owner)]

    def text(self, entry: Entry) -> Document:
        """The text of a document, with its places.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        file = self._of(entry) / "text.txt"
        try:
            text = file.read_bytes().decode("utf-8", "surrogatepass")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{file} is missing or damaged ({error}); upload the document again") from None
        return Document(text, entry.name, places=tuple(Place(*place) for place in entry.places))

    def save(self, entry: Entry) -> None:
        """Write what is known of a document."""
        with self._lock:
            if entry.gone:
                return
            about = {name: value for name, value in vars(entry).items() if name not in ("gone", "owner", "number")}
            write_file(self._of(entry) / ABOUT, (json.dumps(about, ensure_ascii=False) + "\n").encode())

    def keep(self, entry: Entry, name: str, content: bytes) -> None:
        """Keep what was made of a document beside it, unless it was deleted meanwhile.

        Raises:
            CheckpointError: the disk refused.
        """
        with self._lock:
            if not entry.gone:
                write_file(self._of(entry) / name, content)

    def kept(self, entry: Entry, name: str) -> bytes:
        """What was kept under that name.

        Raises:
            CheckpointError: there is nothing.
        """
        try:
            return (self._of(entry) / name).read_bytes()
        except OSError as error:
            raise CheckpointError(f"nothing is kept as {name} of a document ({error})") from None

    def has(self, entry: Entry, name: str) -> bool:
        """Whether something is kept under that name."""
        return (self._of(entry) / name).is_file()

    def hide(self, entry: Entry) -> None:
        """Let nobody find a document any more, nor the next server.

        Raises:
            CheckpointError: the disk refused, and nothing has changed.
        """
        file = self._of(entry) / ABOUT
        with self._lock, saving(file):
            file.unlink(missing_ok=True)
            entry.gone = True

    def remove(self, entry: Entry) -> None:
        """Delete the files of a hidden document."""
        with self._lock:
            shutil.rmtree(self._of(entry), ignore_errors=False)
            del self._entries[entry.owner, entry.number]

    def half(self) -> list[tuple[str, str]]:
        """The owners and numbers of folders that a server left while it added or deleted a document."""
        folders = [one for one in sorted(self._folder.glob("*/*")) if NUMBER.fullmatch(one.name)]
        return [(one.parent.name, one.name) for one in folders if one.is_dir() and not (one / ABOUT).exists()]

    def sweep(self, owner: str, number: str) -> None:
        """Remove such a folder."""
        shutil.rmtree(self._folder / owner / number)

    def _of(self, entry: Entry) -> Path:
        return self._folder / entry.owner / entry.number

    def _open(self, file: Path) -> None:
        owner, number = file.parent.parent.name, file.parent.name
        try:
            about = json.loads(file.read_text(encoding="utf-8"))
            about["places"] = [(int(start), str(name)) for start, name in about["places"]]
            self._entries[owner, number] = Entry(owner=owner, number=number, **about)
        except (OSError, ValueError, TypeError, KeyError) as error:
            _log.warning("the document %s is damaged and left out: %s", number, error)


def absent(number: str) -> ApiError:
    """A document that this owner does not have, or no more."""
    return ApiError(404, f"there is no document '{number[:64]}'", "document_not_found", "document")


def name_of(given: str) -> str:
    """The name of an uploaded file without folders and signs that no name has."""
    name = re.split(r"[/\\]", given)[-1]
    kept = "".join(letter for letter in name if letter.isprintable())
    return kept[-200:].strip() or "document.txt"
