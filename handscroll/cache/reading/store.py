"""`Store`: saved readings in a folder, found by their first tokens, verified when opened, evicted when room runs out.

    root/<owner>/parts/<number>/   about.json, tokens.bin (int32), layer-000.bin ..., manifest.json (SHA-256 of each)
    root/<owner>/names/<name>.json the part that a name stands for; <name>.txt: the document, if a chat template is
                                   around it
    root/<owner>/used/<number>     when it was last used (the file's time)
    root/<owner>/cut/<number>      the part that holds what is left of it

A part's number is the SHA-256 of its owner, the model's identity and its tokens, so the same text is stored once. A
part that continues another one names it and holds only its own tokens. If the text of a part is forgotten, and another
one continues its beginning, a shorter part takes its place: nothing is left that only the forgotten text had. Owners
never see each other's parts, so that nobody learns from a fast answer what another owner has read.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from handscroll.base.errors import CapacityError, CheckpointError, ConfigError, DataError, nearest
from handscroll.base.runs import MANIFEST, verify_folder, write_file, write_folder
from handscroll.cache.buffered import Buffered
from handscroll.cache.reading.about import About
from handscroll.cache.reading.files import files_of, joined, later
from handscroll.cache.reading.identity import Identity
from handscroll.cache.reading.reading import Document, Part, Reading, mapped

LIMIT = 20 << 30  # bytes of all readings of an owner
_log = logging.getLogger("handscroll.readings")
SHARED = 64  # tokens that a text must share with another to continue from it
NAME = re.compile(r"[\w][\w.-]{0,99}")


class Store:
    """Readings of one `owner` under `root`, which take at most `limit` bytes."""

    def __init__(self, root: str | Path | None = None, owner: str = "", limit: int = LIMIT):
        root = Path(root) if root is not None else default_root()
        self.owner, self.limit = owner, limit
        self.folder = root / hashlib.sha256(f"owner {owner}".encode()).hexdigest()[:16]
        for name in ("parts", "names", "used", "cut"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def find(self, identity: Identity, tokens: Tensor) -> Reading | None:
        """The longest saved beginning of `tokens` (S,) from which a text can continue, opened.

        None if no saved beginning is long enough.
        """
        for shared, number in self._beginnings(identity, tokens):
            try:
                return self.open(number).part(shared)
            except CheckpointError as error:  # damaged or just evicted; another may be usable
                _log.warning("a saved reading is skipped: %s", error)
        return None

    def kept(self, identity: Identity, tokens: Tensor) -> int:
        """How many of `tokens` (S,) were read before, by the descriptions of the parts alone."""
        return next(self._beginnings(identity, tokens), (0, ""))[0]

    def _beginnings(self, identity: Identity, tokens: Tensor) -> Iterator[tuple[int, str]]:
        """Lengths and numbers of the parts from which a text can continue, the longest beginning first."""
        wanted = tokens.to(torch.int32).numpy()
        found = []
        for about in self.parts():
            if about.identity == identity:
                with suppress(CheckpointError):
                    shared = about.reached(_shared(wanted, self.tokens(about.number)))
                    found.append((shared or 0, -about.length, about.number))
        return ((shared, number) for shared, _, number in sorted(found, reverse=True) if shared >= SHARED)

    def save(
        self,
        identity: Identity,
        tokens: Tensor,
        cache: Buffered,
        before: Reading | None,
        source: str,
        after: str = "",
        adapters: tuple[str, ...] = (),
    ) -> str:
        """Save the keys and values in `cache` of `tokens` (S,), of which `before` had read the beginning; return the
        number.

        `after` is the part that holds what this cache saved earlier; then only the tokens after it are written.

        Raises:
            CapacityError: the reading is larger than the limit.
            CheckpointError: the disk refused the files; nothing is left behind.
        """
        state = [cache.saving(layer) for layer in range(cache.layers)]
        about = replace(self._about(identity, tokens, cache, before, source), adapters=adapters)
        with self._lock():
            self._sweep()
            if after and (there := self._there(after)):
                state = later(state, about.windows, there.length - about.first)
                return self._publish(replace(about, first=there.length, parent=after), tokens, state)
            parent = "" if before is None else self._parent(before)
            if before is not None and not parent:  # it was evicted while the text was read: keep all tokens
                about, state = replace(about, first=0), joined(before, state, about.windows)
            return self._publish(replace(about, parent=parent), tokens, state)

    def _there(self, number: str) -> About | None:
        """The description of a part, if it and all parts before it still exist."""
        with suppress(CheckpointError):
            self._ancestors(number)
            return self.about(number)
        return None

    def _about(self, identity: Identity, tokens: Tensor, cache: Buffered, before: Reading | None, source: str) -> About:
        first = before.length if before is not None else 0
        if (cache.before, cache.length) != (first, len(tokens)):
            raise DataError(
                f"the cache continues {cache.before} tokens and holds {cache.length}, but the reading has {first} and "
                f"the text {len(tokens)}"
            )
        _, kv_heads, _, head_size = cache.saving(0)["keys"].shape
        return About(
            number=self.number(identity, tokens),
            identity=identity,
            first=first,
            length=len(tokens),
            parent="",
            windows=tuple(cache.windows) or (None,) * cache.layers,
            rewind=cache.rewind,
            kv_heads=kv_heads,
            head_size=head_size,
            source=source,
        )

    def _publish(self, about: About, tokens: Tensor, state: list[dict[str, Tensor]]) -> str:
        """Write a part unless it already exists undamaged; the caller holds the lock."""
        folder = self.folder / "parts" / about.number
        if folder.exists():
            with suppress(CheckpointError):
                self.open(about.number)
                return about.number
            self._delete(about.number, about.number)  # damaged: it is written again
        self.afford(about.nbytes)
        self._make_room(about.nbytes, keep=about.parent)
        write_folder(folder, files_of(about, tokens, [tuple(columns.values()) for columns in state]), about.nbytes)
        self.touch(about.number)
        return about.number

    def afford(self, size: int) -> None:
        """Refuse a size that the store may never hold.

        Raises:
            CapacityError: the size is above the limit.
        """
        if size > self.limit:
            raise CapacityError(
                f"the reading takes {size / 1e6:,.0f} MB, more than the store's limit of "
                f"{self.limit / 1e6:,.0f} MB: raise the limit, or read a shorter text"
            )

    def open(self, number: str) -> Reading:
        """Verify the hashes of a part and of the parts before it, and map them.

        Raises:
            CheckpointError: a file is damaged, or a part is missing.
        """
        chain, parts = [self.about(one) for one in self._ancestors(number)], []
        last = chain[0].length
        for about in chain:
            folder = self.folder / "parts" / about.number
            verify_folder(folder)
            if about.first >= last:
                raise CheckpointError(f"{folder} begins at token {about.first}, but the part after it begins at {last}")
            parts.append(Part(folder, about.first, last, about.length - about.first, about.counts))
            last = about.first
            self.touch(about.number)
        if last:
            raise CheckpointError(f"{folder} continues a part that is missing; read the text again")
        dtype, shape = chain[0].kept, (chain[0].kv_heads, chain[0].head_size)
        tokens = torch.from_numpy(self.tokens(number).astype(np.int64))
        try:
            spans = mapped(parts[::-1], chain[0].windows, shape, dtype)
        except RuntimeError as error:  # evicted between the check and the mapping
            raise CheckpointError(f"{self.folder / 'parts' / number} cannot be mapped: {error}") from None
        return Reading(number, chain[0].identity, tokens, spans, chain[0].windows)

    def name(self, name: str, number: str, length: int, document: Document | None = None) -> None:
        """Let `name` stand for the first `length` tokens of a part; an existing name is moved.

        `document` is the text in them, if they are a chat template around it.

        Raises:
            ConfigError: the name has characters that are not allowed.
        """
        check_name(name)
        record, text = (self.folder / "names" / f"{name}{suffix}" for suffix in (".json", ".txt"))
        value: dict[str, Any] = {"number": number, "length": length}
        if document is not None:
            write_file(text, document.text.encode())
            value["when"] = document.when
        write_file(record, (json.dumps(value) + "\n").encode())
        if document is None:
            text.unlink(missing_ok=True)

    def _stand(self, name: str, number: str, length: int) -> None:
        """Let a name stand for another part; all else that it says stays."""
        record = self.folder / "names" / f"{name}.json"
        value = json.loads(record.read_text(encoding="utf-8")) | {"number": number, "length": length}
        write_file(record, (json.dumps(value) + "\n").encode())

    def document(self, name: str) -> Document | None:
        """The document that was read under a name, if it was read within a chat template.

        Raises:
            CheckpointError: its text is missing.
        """
        self._look_up(name)
        record, text = (self.folder / "names" / f"{name}{suffix}" for suffix in (".json", ".txt"))
        when = json.loads(record.read_text(encoding="utf-8")).get("when")
        if when is None:
            return None
        try:
            return Document(text.read_bytes().decode(), when)
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{text} is missing or damaged ({error}); read the text again") from None

    def named(self, name: str) -> tuple[About, int]:
        """The part that a name stands for, and the number of its tokens that belong to the name.

        Raises:
            ConfigError: there is no such name.
            CheckpointError: its part was evicted.
        """
        number, length = self._look_up(name)
        if not (self.folder / "parts" / number).exists():
            raise CheckpointError(f"reading '{name}' was evicted to make room; read the text again (handscroll read)")
        return self.about(number), length

    def names(self) -> dict[str, tuple[str, int]]:
        """By name: the number of the part, and the length in tokens."""
        found = {}
        for path in sorted((self.folder / "names").glob("*.json")):
            try:
                value = json.loads(path.read_text(encoding="utf-8"))
                found[path.stem] = (str(value["number"]), int(value["length"]))
            except (OSError, ValueError, TypeError, KeyError, RecursionError):
                _log.warning("%s is damaged: the name is skipped; read the text again", path)
        return found

    def forget(self, name: str) -> None:
        """Remove a name, and of its part all that no other name stands for and no other part continues.

        Raises:
            ConfigError: there is no such name.
            CheckpointError: the disk refused the shorter part that others need; `prune` tries it again.
        """
        number, _ = self._look_up(name)
        with self._lock():
            (self.folder / "names" / f"{name}.json").unlink()
            (self.folder / "names" / f"{name}.txt").unlink(missing_ok=True)
            self._sweep()
            self._release(number)

    def _release(self, number: str) -> None:
        """Reduce a part, and those before it, to what names and other parts need of them."""
        while number and (self.folder / "parts" / number).exists():
            parent, needed = "", self._needs().get(number, 0)
            with suppress(CheckpointError):
                parent = self._parent_of(self.about(number))
            if needed:
                self._reduce(number, needed)
                return
            self._delete(number)
            number = parent

    def _needs(self) -> dict[str, int]:
        """By part: its first tokens that names stand for, or other parts continue."""
        needs = dict[str, int]()
        links = [(self._parent_of(about), about.first) for about in self.parts() if about.parent]
        for number, length in (*self.names().values(), *links):
            needs[number] = max(length, needs.get(number, 0))
        return needs

    def _reduce(self, number: str, length: int) -> None:
        """Put a part with the first `length` tokens of a part into its place, for all that need them."""
        try:
            about = self.about(number)
            if length >= about.length:
                return
            self.open(number)  # its hashes
        except CheckpointError:  # it is damaged: nobody can use it
            self._delete(number)
            return
        tokens = torch.from_numpy(self.tokens(number)[:length].astype(np.int64))
        new = about.cut(self.number(about.identity, tokens), length)
        part = Part(self.folder / "parts" / number, about.first, length, about.length - about.first, about.counts)
        layers = mapped([part], about.windows, (about.kv_heads, about.head_size), about.kept)
        columns = [(span.keys, span.values, *(span.scales or ())) for (span,) in layers]
        if not (self.folder / "parts" / new.number).exists():
            write_folder(self.folder / "parts" / new.number, files_of(new, tokens, columns), new.nbytes)
        for name, (other, kept) in self.names().items():
            if other == number:
                self._stand(name, new.number, kept)
        write_file(self.folder / "cut" / number, new.number.encode())
        self._delete(number, new.number)

    def _look_up(self, name: str) -> tuple[str, int]:
        known = self.names()
        if name not in known:
            near = nearest(name, known) if known else "none is saved here"
            raise ConfigError(f"no reading is named '{name}': {near}")
        return known[name]

    def parts(self) -> Iterator[About]:
        """All parts with a readable description, in any order."""
        for path in list((self.folder / "parts").iterdir()):
            if (path / MANIFEST).exists() and ".tmp-" not in path.name:
                with suppress(CheckpointError):
                    yield self.about(path.name)

    def about(self, number: str) -> About:
        """The description of a part.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        path = self.folder / "parts" / number / "about.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            lists = {name: tuple(values.get(name, ())) for name in ("windows", "adapters")}
            return About(**values | {"identity": Identity(**values["identity"]), **lists})
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise CheckpointError(f"{path} is missing or damaged ({error}); read the text again") from None

    def size(self, number: str) -> int:
        """Bytes of keys and values of a part and of all parts before it.

        Raises:
            CheckpointError: one of them is missing or damaged.
        """
        return sum(self.about(one).nbytes for one in self._ancestors(number))

    def prune(self) -> int:
        """Delete what no named reading needs, such as parts of readings never finished; returns the bytes."""
        with self._lock():
            self._sweep()
            before, needed = self.nbytes, set[str]()
            for number, _ in self.names().values():
                with suppress(CheckpointError):
                    needed |= set(self._ancestors(number))
            for about in list(self.parts()):
                if about.number not in needed:
                    self._delete(about.number)
            for number, length in self._needs().items():
                if (self.folder / "parts" / number).exists():
                    self._reduce(number, length)
        return before - self.nbytes

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values in the store."""
        return sum(about.nbytes for about in self.parts())

    def touch(self, number: str) -> None:
        """Record that a part is used now."""
        (self.folder / "used" / number).touch()

    def _make_room(self, size: int, keep: str) -> None:
        """Evict the least recently used parts that no other part continues, until `size` more bytes fit."""
        kept = set(self._ancestors(keep))
        if sum(about.nbytes for about in self.parts() if about.number in kept) + size > self.limit:
            raise CapacityError(
                f"the store's limit of {self.limit / 1e6:,.0f} MB does not hold {size / 1e6:,.0f} MB more beside "
                "the parts that the new reading continues: raise the limit"
            )
        while self.nbytes + size > self.limit:
            continued = {self._parent_of(about) for about in self.parts()}
            loose = [about for about in self.parts() if about.number not in kept and about.number not in continued]
            self._delete(min(loose, key=lambda about: self._last_use(about.number)).number)

    def _last_use(self, number: str) -> float:
        path = self.folder / "used" / number
        return path.stat().st_mtime if path.exists() else 0.0

    def _parent_of(self, about: About) -> str:
        """The part that a part continues; of one that was cut, what is left of it, if that is enough."""
        left = self._left(about.parent)
        if left is None or left.length < about.first:
            return about.parent
        while left.first >= about.first:  # the text had come back, and was cut at another place
            left = self.about(self._parent_of(left))
        return left.number

    def _left(self, number: str) -> About | None:
        """The part that holds what is left of a part."""
        with suppress(OSError, CheckpointError):
            return self.about((self.folder / "cut" / number).read_text(encoding="ascii"))
        return None

    def _parent(self, before: Reading) -> str:
        """The part that holds the last token of `before`; "" if one of its chain was evicted."""
        number = before.number
        try:
            while (about := self.about(number)).first >= before.length:
                number = self._parent_of(about)
            self._ancestors(number)
        except CheckpointError:
            return ""
        return number

    def _sweep(self) -> None:
        """Remove files that killed processes left behind; the caller holds the lock, so no one else is writing."""
        for path in (self.folder / "parts").glob("*.tmp-*"):
            shutil.rmtree(path, ignore_errors=True)

    def _ancestors(self, number: str) -> list[str]:
        """The part and all parts before it.

        Raises:
            CheckpointError: one of them is missing.
        """
        found: list[str] = []
        while number:
            found.append(number)
            number = self._parent_of(self.about(number))
        return found

    def _delete(self, number: str, instead: str = "") -> None:
        """Delete a part, in whose place `instead` stands, or else the part before it.

        It is renamed first, so that a killed process leaves no half part under its name.
        """
        with suppress(CheckpointError):
            instead = instead or self._parent_of(self.about(number))
        for path in (self.folder / "cut").iterdir():
            if path.read_text(encoding="ascii") == number:
                write_file(path, instead.encode()) if instead else path.unlink()
        path = self.folder / "parts" / number
        aside = path.with_name(f"{number}.tmp-{os.getpid()}-{os.urandom(4).hex()}")
        path.rename(aside)
        shutil.rmtree(aside)
        (self.folder / "used" / number).unlink(missing_ok=True)

    def tokens(self, number: str) -> np.ndarray:
        """Token ids (S,) of a part and of all parts before it."""
        path = self.folder / "parts" / number / "tokens.bin"
        try:
            return np.fromfile(path, dtype=np.int32)
        except OSError as error:
            raise CheckpointError(f"{path} is missing or damaged ({error}); read the text again") from None

    def number(self, identity: Identity, tokens: Tensor) -> str:
        """The number of the part that ends with `tokens` (S,), saved or not."""
        parts = [self.owner.encode(), identity.digest().encode(), tokens.to(torch.int32).numpy().tobytes()]
        whole = hashlib.sha256()
        for part in parts:
            whole.update(struct.pack("<q", len(part)) + part)
        return whole.hexdigest()[:32]

    @contextmanager
    def _lock(self) -> Iterator[None]:
        with FileLock(str(self.folder / "lock")):
            yield


def check_name(name: str) -> None:
    """Refuse a name with characters that are not allowed.

    Raises:
        ConfigError: the name is not allowed.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(f"reading name {name!r}: use letters, digits, '.', '-' and '_', at most 100 of them")


def default_root() -> Path:
    """`$XDG_DATA_HOME/handscroll/readings`."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "handscroll" / "readings"


def _shared(a: np.ndarray, b: np.ndarray) -> int:
    """The length of the common beginning of two arrays."""
    length = min(len(a), len(b))
    differ = np.flatnonzero(a[:length] != b[:length])
    return int(differ[0]) if len(differ) else length
