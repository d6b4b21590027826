"""An uploaded file on its way to a document: hashed, read by a process of its own, checked, kept."""

import hashlib
import json
import secrets
import sys
from pathlib import Path
from typing import BinaryIO

from handscroll.base.runs import saving
from handscroll.serve.documents import extract
from handscroll.serve.documents.shelf import Entry, Shelf, name_of
from handscroll.serve.documents.stopping import Stop
from handscroll.serve.errors import ApiError
from handscroll.serve.settings import Limits
from handscroll.text.document import Document, Place
from handscroll.text.files import unreadable

BLOCK = 1 << 20


def arrive(shelf: Shelf, owner: str, given: str, stream: BinaryIO, limits: Limits, stop: Stop) -> Entry:
    """Keep the text of an uploaded file named `given`; the file itself is not kept.

    Raises:
        ApiError: a kind of file that is not read, an empty or damaged file, one that takes too much time or memory, or
            too many documents.
        ClientGoneError: it was stopped.
    """
    shelf.check_room(owner)
    name = name_of(given)
    suffix = "".join(Path(name).suffixes[-2:] if name.lower().endswith(".gz") else Path(name).suffixes[-1:])
    draft = shelf.drafts / f"{secrets.token_hex(8)}{suffix}"
    if problem := unreadable(Path(name)):
        raise ApiError(415, problem, "unknown_kind", "file")
    try:
        size, digest = _written(draft, stream)
        document, notes = _extracted(draft, name, limits, stop)
    finally:
        draft.unlink(missing_ok=True)
    if len(document.text) > limits.characters:
        count, most = len(document.text), limits.characters
        raise ApiError(
            413, f"{name} has {count:,} characters of text, and at most {most:,} are taken", "too_large", "file"
        )
    text_digest = hashlib.sha256(document.text.encode("utf-8", "surrogatepass")).hexdigest()
    about = {"bytes": size, "sha256": digest, "text_sha256": text_digest, "notes": notes}
    return shelf.add(owner, name, document, about)


def _written(draft: Path, stream: BinaryIO) -> tuple[int, str]:
    size, digest = 0, hashlib.sha256()
    with saving(draft), draft.open("wb") as out:
        while block := stream.read(BLOCK):
            size += len(block)
            digest.update(block)
            out.write(block)
    return size, digest.hexdigest()


def _extracted(draft: Path, name: str, limits: Limits, stop: Stop) -> tuple[Document, list[str]]:
    """The document in a file, and what was left out of it."""
    seconds = int(max(1, limits.extract_seconds))
    # -P: no module of the folder where the server was started.
    command = [sys.executable, "-P", "-m", extract.__name__, str(draft), str(seconds)]
    written = stop.written(command, seconds + 10)
    if written is None:
        why = f"{name} takes more than {seconds} s or {extract.MEMORY >> 30} GB to open, or is damaged; save it again"
        raise ApiError(422, why, "unreadable", "file")
    found = json.loads(written)
    if "error" in found:
        raise ApiError(422, f"{name}: {found['error']}", "unreadable", "file")
    places = tuple(Place(*place) for place in found["places"])
    return Document(found["text"], name, places=places), found["notes"]
