"""`Store`: saved readings in a folder, found by their first tokens, verified when opened, evicted when room runs out.

    root/<owner>/parts/<number>/   about.json, tokens.bin (int32), layer-000.bin ..., manifest.json (SHA-256 of each)
    root/<owner>/names/            what names stand for, and documents that chat templates stand around (`names.py`)
    root/<owner>/used/<number>     when it was last used (the file's time)

A part's number is the SHA-256 of its owner, the model's identity and its tokens, so the same text is stored once. A
part that continues another one names it and holds only its own tokens. If the text of a part is forgotten, and another
part continues its beginning, it is cut to that beginning, under its number: nothing is left that only the forgotten
text had. (If the text comes back, its part gets another number.) Owners never see each other's parts, so that nobody
learns from a fast answer what another owner has read.
"""

import hashlib
import json
import logging
import os
import shutil
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from handscroll.base.errors import CapacityError, CheckpointError, ConfigError, DataError
from handscroll.base.runs import MANIFEST, saving, sync_folder, verify_folder, write_folder
from handscroll.cache.buffered import Buffered
from handscroll.cache.reading.about import About, described
from handscroll.cache.reading.files import files_of, joined, later
from handscroll.cache.reading.identity import Identity
from handscroll.cache.reading.known import Known
from handscroll.cache.reading.names import Names, Origin, check_name
from handscroll.cache.reading.reading import Document, Part, Reading, mapped

LIMIT = 20 << 30  # bytes of all readings of an owner
_log = logging.getLogger("handscroll.readings")
CUT = ".cut"  # behind the number of a part that is about to take the place of a longer one
SHARED = 64  # tokens that a text must share with another to continue from it


class Store:
    """Readings of one `owner` under `root`, which take at most `limit` bytes.

    A folder that may only be read is only read.

    Raises:
        ConfigError: the folder cannot be made.
    """

    def __init__(self, root: str | Path | None = None, owner: str = "", limit: int = LIMIT):
        root = Path(root) if root is not None else default_root()
        self.owner, self.limit = owner, limit
        self.folder = root / hashlib.sha256(f"owner {owner}".encode()).hexdigest()[:16]
        self._names = Names(self.folder / "names")
        try:
            for name in ("parts", "names", "used"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"readings cannot be kept in {root}: {error.strerror}; give a folder that you may write to (--store)"
            ) from None

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
        first = before.length if before is not None else 0
        if (cache.before, cache.length) != (first, len(tokens)):
            raise DataError(
                f"the cache continues {cache.before} tokens and holds {cache.length}, but the reading has {first} and "
                f"the text {len(tokens)}"
            )
        about = described(self.number(identity, tokens), identity, cache, [columns["keys"] for columns in state])
        about = replace(about, source=source, adapters=adapters)
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
            self._chain(number)
            return self.about(number)
        return None

    def _publish(self, about: About, tokens: Tensor, state: list[dict[str, Tensor]]) -> str:
        """Write a part unless it already exists undamaged; the caller holds the lock."""
        while (self.folder / "parts" / about.number).exists():
            try:
                if self._opened(self._chain(about.number)).length == about.length:
                    return about.number
            except CheckpointError:
                self._delete(about.number)  # damaged: it is written again
                break
            again = hashlib.sha256(about.number.encode()).hexdigest()[:32]  # what is there was cut
            about = replace(about, number=again)
        self.afford(about.nbytes)
        self._make_room(about.nbytes, keep=about.parent)
        layers = [tuple(columns.values()) for columns in state]
        write_folder(self.folder / "parts" / about.number, files_of(about, tokens, layers), about.nbytes)
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
        try:
            return self._opened(self._chain(number))
        except CheckpointError:  # somebody may be cutting a part at this moment
            if not os.access(self.folder, os.W_OK):
                raise
            with self._lock():
                self._sweep()
                return self._opened(self._chain(number))

    def _opened(self, chain: Sequence[About]) -> Reading:
        """The reading of a chain of parts, the last first."""
        whole, last, parts = chain[0], chain[0].length, []
        for about in chain:
            folder = self.folder / "parts" / about.number
            verify_folder(folder)
            if not about.first < last <= about.length:
                raise CheckpointError(
                    f"{folder} holds tokens {about.first} to {about.length}, but the part after it begins at {last}"
                )
            parts.append(Part(folder, about.first, last, about.length - about.first, about.counts))
            last = about.first
            self.touch(about.number)
        if last:
            raise CheckpointError(f"{folder} continues a part that is missing; read the text again")
        tokens = torch.from_numpy(self.tokens(whole.number).astype(np.int64))
        try:
            spans = mapped(parts[::-1], whole.windows, (whole.kv_heads, whole.head_size), whole.kept)
        except RuntimeError as error:  # evicted or cut between the check and the mapping
            raise CheckpointError(f"{folder} cannot be mapped: {error}") from None
        if len(tokens) != whole.length:
            raise CheckpointError(f"{folder} changed while it was opened; read the text again")
        return Reading(whole.number, whole.identity, tokens, spans, whole.windows)

    def name(
        self, name: str, number: str, length: int, document: Document | None = None, origin: Origin | None = None
    ) -> None:
        """Let `name` stand for the first `length` tokens of a part; an existing name is moved.

        `document` is the text in them, if they are a chat template around it. `origin` is the model that read them for
        this name: the part itself may have been read earlier, from another folder with the same weights.

        Raises:
            ConfigError: the name is not allowed. CheckpointError: the disk refused; the name stands for what it did.
        """
        check_name(name)
        with self._lock():
            self._names.put(name, number, length, document, origin)

    def document(self, name: str) -> Document | None:
        """The document that was read under a name, if it was read within a chat template.

        Raises:
            ConfigError: there is no such name. CheckpointError: its text is missing or damaged.
        """
        self._names.find(name)
        return self._names.document(name)

    def named(self, name: str) -> tuple[About, int]:
        """The part that a name stands for, and the number of its tokens that belong to the name.

        The model and the adapters in it are those that read the text under this name.

        Raises:
            ConfigError: there is no such name.
            CheckpointError: its part was evicted.
        """
        number, length = self._names.find(name)
        if not (self.folder / "parts" / number).exists():
            raise CheckpointError(f"reading '{name}' was evicted to make room; read the text again (handscroll read)")
        about, origin = self.about(number), self._names.origin(name)
        return (about if origin is None else replace(about, **origin._asdict())), length

    def names(self) -> dict[str, tuple[str, int]]:
        """By name: the number of the part, and the length in tokens."""
        return self._names.all()

    def forget(self, name: str) -> None:
        """Remove a name, and of its part all that no other name stands for and no other part continues.

        A name whose record is damaged is removed too; what it stood for goes when room is needed.

        Raises:
            ConfigError: there is no such name.
            CheckpointError: the disk refused the shorter part that others need; `prune` tries it again.
        """
        with self._lock():
            number = self._names.all().get(name, ("", 0))[0]
            if not self._names.holds(name):
                self._names.find(name)  # says so
            self._names.remove(name)
            self._sweep()
            known = self._known()
            while number in known.parts:  # the part, and those before it
                parent = known.parts[number].parent
                if self._reduce(number, known):
                    return
                number = parent
            if number and (self.folder / "parts" / number).exists():
                self._delete(number)  # its description is damaged: nobody can use it

    def _known(self) -> Known:
        return Known(self.parts(), self.names())

    def _reduce(self, number: str, known: Known) -> bool:
        """Cut a part to what names and other parts need, or delete it; whether something of it stays."""
        about, path = known.parts[number], self.folder / "parts" / number
        needed = self._needed(about, known)
        if needed >= about.length:
            return True
        if not needed or not _sound(path):
            self._delete(number)
            known.remove(number)
            return False
        new, used = about.cut(needed), self._last_use(number)
        part = Part(path, about.first, needed, about.length - about.first, about.counts)
        layers = mapped([part], about.windows, (about.kv_heads, about.head_size), about.kept)
        columns = [(span.keys, span.values, *(span.scales or ())) for (span,) in layers]
        shorter = path.with_name(f"{number}{CUT}")
        tokens = torch.from_numpy(self.tokens(number)[:needed].astype(np.int64))
        write_folder(shorter, files_of(new, tokens, columns), new.nbytes)
        self._delete(number)
        shorter.rename(path)  # `_sweep` does it after a kill
        sync_folder(path.parent)
        self.touch(number)
        os.utime(self.folder / "used" / number, (used, used))
        known.parts[number] = new
        return True

    def _needed(self, about: About, known: Known) -> int:
        """The first tokens of a part that names stand for or other parts continue; 0 if nobody needs its own tokens."""
        needed = known.continued(about.number)
        for name, length in known.named(about.number).items():
            if length > about.first:
                needed = max(needed, length)
            elif holder := known.holder(about, length):  # it stands for tokens of parts before this one alone
                self._names.move(name, holder.number, length)
                known.move(name, about.number, holder.number)
            else:  # a windowed layer can be continued from this part only
                needed = about.length
        return needed

    def parts(self) -> Iterator[About]:
        """All parts with a readable description, in any order."""
        for path in list((self.folder / "parts").iterdir()):
            if (path / MANIFEST).exists() and "." not in path.name:
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
        return sum(about.nbytes for about in self._chain(number))

    def prune(self) -> int:
        """Delete what no named reading needs, such as parts of readings never finished; returns the bytes."""
        with self._lock():
            self._sweep()
            known = self._known()
            before = known.nbytes
            for number in [number for number in known.parts if not known.complete(number)]:
                self._delete(number)
                known.remove(number)
            for number in sorted(
                known.parts, key=lambda one: -known.parts[one].first
            ):  # those that continue others first
                self._reduce(number, known)
            return before - known.nbytes

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values in the store."""
        return sum(about.nbytes for about in self.parts())

    def touch(self, number: str) -> None:
        """Record that a part is used now, where the folder may be written."""
        with suppress(OSError):
            (self.folder / "used" / number).touch()

    def _make_room(self, size: int, keep: str) -> None:
        """Evict the least recently used parts that no other part continues, until `size` more bytes fit."""
        kept, known = {about.number for about in self._chain(keep)}, self._known()
        if sum(about.nbytes for about in known.parts.values() if about.number in kept) + size > self.limit:
            raise CapacityError(
                f"the store's limit of {self.limit / 1e6:,.0f} MB does not hold {size / 1e6:,.0f} MB more beside "
                "the parts that the new reading continues: raise the limit"
            )
        while known.nbytes + size > self.limit:
            loose = [one for one in known.parts if one not in kept and not known.continued(one)]
            parent = known.parts[evicted := min(loose, key=self._last_use)].parent
            self._delete(evicted)
            known.remove(evicted)
            if parent in known.parts and parent not in kept and self._needed(known.parts[parent], known):
                self._reduce(parent, known)

    def _last_use(self, number: str) -> float:
        path = self.folder / "used" / number
        return path.stat().st_mtime if path.exists() else 0.0

    def _parent(self, before: Reading) -> str:
        """The part that holds the last token of `before`; "" if one of its chain was evicted, or cut before it."""
        try:
            chain = self._chain(before.number)
        except CheckpointError:
            return ""
        holder = next(about for about in chain if about.first < before.length)
        return holder.number if holder.length >= before.length else ""

    def _sweep(self) -> None:
        """Put right what killed processes left behind; the caller holds the lock, so no one else is writing."""
        for path in (self.folder / "parts").glob("*.tmp-*"):
            shutil.rmtree(path, ignore_errors=True)
        for path in (self.folder / "parts").glob(f"*{CUT}"):
            if (part := path.with_suffix("")).exists():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.rename(part)
        self._names.sweep()

    def _chain(self, number: str) -> list[About]:
        """The part and all parts before it.

        Raises:
            CheckpointError: one of them is missing.
        """
        found: list[About] = []
        while number:
            found.append(self.about(number))
            number = found[-1].parent
        return found

    def _delete(self, number: str) -> None:
        """Delete a part. It is renamed first, so that a killed process leaves no half part under its name."""
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
        with saving(self.folder), FileLock(str(self.folder / "lock")):
            yield


def default_root() -> Path:
    """`$XDG_DATA_HOME/handscroll/readings`."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "handscroll" / "readings"


def _sound(folder: Path) -> bool:
    """Whether the files of a part are as they were written."""
    with suppress(CheckpointError):
        verify_folder(folder)
        return True
    return False


def _shared(a: np.ndarray, b: np.ndarray) -> int:
    """The length of the common beginning of two arrays."""
    length = min(len(a), len(b))
    differ = np.flatnonzero(a[:length] != b[:length])
    return int(differ[0]) if len(differ) else length
