"""`Store`: saved readings in a folder, found by what they begin with, verified when opened, evicted when room runs out.

    root/<owner>/parts/<number>/   about.json, tokens.bin (int32), layer-000.bin ..., manifest.json (SHA-256 of each)
    root/<owner>/names/<name>.json the part a name stands for
    root/<owner>/used/<number>     when it was last used (the file's time)

A part's number is the SHA-256 of its owner, the model's identity and its tokens, so the same text is stored once. A
part that goes on from another names it and holds only its own tokens. Owners never see each other's parts: nobody
learns, from how soon an answer comes, what another has read.
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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from handscroll.base.errors import CapacityError, CheckpointError, ConfigError, DataError, nearest
from handscroll.base.runs import MANIFEST, Entry, verify_folder, write_chunks, write_file, write_folder
from handscroll.cache.full import Cache
from handscroll.cache.reading.identity import Identity
from handscroll.cache.reading.reading import LAYER, Part, Reading, mapped

LIMIT = 20 << 30  # bytes of all readings of an owner
_log = logging.getLogger("handscroll.readings")
SHARED = 64  # tokens that a text must share with another to go on from it
NAME = re.compile(r"[\w][\w.-]{0,99}")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@dataclass(frozen=True)
class About:
    """What a part is. `first` tokens before it are those of `parent` ("" where it begins a text)."""

    number: str
    identity: Identity
    first: int
    length: int
    parent: str
    layers: int
    kv_heads: int
    head_size: int
    source: str

    @property
    def nbytes(self) -> int:
        each = self.head_size * self.kept.itemsize + (4 if self.kept == torch.int8 else 0)
        return 2 * self.layers * self.kv_heads * (self.length - self.first) * each

    @property
    def kept(self) -> torch.dtype:
        """What keys and values are kept in."""
        return torch.int8 if self.identity.policy == "int8" else DTYPES[self.identity.dtype]


class Store:
    """Readings of one `owner` under `root`, at most `limit` bytes of them."""

    def __init__(self, root: str | Path | None = None, owner: str = "", limit: int = LIMIT):
        root = Path(root) if root is not None else default_root()
        self.owner, self.limit = owner, limit
        self.folder = root / hashlib.sha256(f"owner {owner}".encode()).hexdigest()[:16]
        for name in ("parts", "names", "used"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def find(self, identity: Identity, tokens: Tensor) -> Reading | None:
        """The longest saved beginning of `tokens` (S,), opened; None where nothing worth it is shared."""
        wanted = tokens.to(torch.int32).numpy()
        found = []
        for about in self.parts():
            if about.identity == identity:
                with suppress(CheckpointError):
                    found.append((_shared(wanted, self.tokens(about.number)), -about.length, about.number))
        for shared, _, number in sorted(found, reverse=True):
            if shared < SHARED:
                return None
            try:
                return self.open(number).part(shared)
            except CheckpointError as error:  # damaged, or evicted just now: another may do
                _log.warning("a saved reading is passed over: %s", error)
        return None

    def save(self, identity: Identity, tokens: Tensor, cache: Cache, before: Reading | None, source: str) -> str:
        """Keep what `cache` holds of `tokens` (S,), of which `before` had read the beginning; returns the number.

        Raises:
            CapacityError: it is larger than the limit. CheckpointError: the disk refused; nothing is left behind.
        """
        state = cache.state_dict()
        with self._lock():
            self._sweep()
            parent = "" if before is None else self._parent(before)
            if before is not None and not parent:  # evicted while the text was read: keep all of it
                state, before = _joined(before, state, cache.layers), None
            return self._publish(self._about(identity, tokens, state, before, source), parent, tokens, state)

    def _about(
        self, identity: Identity, tokens: Tensor, state: dict[str, Tensor], before: Reading | None, source: str
    ) -> About:
        first = before.length if before is not None else 0
        shape = state["0.keys"].shape
        layers = sum(name.endswith(".keys") for name in state)
        if first + shape[2] != len(tokens):
            raise DataError(f"the cache holds {first + shape[2]} tokens, the text {len(tokens)}")
        return About(
            number=self._number(identity, tokens),
            identity=identity,
            first=first,
            length=len(tokens),
            parent="",
            layers=layers,
            kv_heads=shape[1],
            head_size=shape[3],
            source=source,
        )

    def _publish(self, about: About, parent: str, tokens: Tensor, state: dict[str, Tensor]) -> str:
        """Write a part unless it is there and whole already; the lock is held."""
        folder, about = self.folder / "parts" / about.number, replace(about, parent=parent)
        if folder.exists():
            with suppress(CheckpointError):
                self.open(about.number)
                return about.number
            self._delete(about.number)  # damaged: written anew
        self.afford(about.nbytes)
        files: dict[str, Any] = {
            "about.json": (json.dumps(asdict(about), indent=1, sort_keys=True) + "\n").encode(),
            "tokens.bin": tokens.to(torch.int32).numpy().tobytes(),
        }
        for layer in range(about.layers):
            names = ("keys", "values", "key_scales", "value_scales")
            files[LAYER.format(layer)] = _writer([state[key] for name in names if (key := f"{layer}.{name}") in state])
        self._make_room(about.nbytes, keep=about.parent)
        write_folder(folder, files, about.nbytes)
        self.touch(about.number)
        return about.number

    def afford(self, size: int) -> None:
        """Refuse what is larger than the store may ever hold.

        Raises:
            CapacityError: it is.
        """
        if size > self.limit:
            raise CapacityError(
                f"the reading takes {size / 1e6:,.0f} MB, more than the store's limit of "
                f"{self.limit / 1e6:,.0f} MB: raise the limit, or read a shorter text"
            )

    def open(self, number: str) -> Reading:
        """Verify the hashes of a part and of what it goes on from, and map them.

        Raises:
            CheckpointError: a file is damaged, or a part is missing.
        """
        chain, parts = [self.about(one) for one in self._ancestors(number)], []
        last = chain[0].length
        for about in chain:
            folder = self.folder / "parts" / about.number
            verify_folder(folder)
            if about.first >= last:
                raise CheckpointError(f"{folder} begins at token {about.first}, past the {last} that go on from it")
            parts.append(Part(folder, about.first, last, about.length - about.first))
            last = about.first
            self.touch(about.number)
        if last:
            raise CheckpointError(f"{folder} goes on from a part that is missing; read the text again")
        dtype, shape = chain[0].kept, (chain[0].kv_heads, chain[0].head_size)
        tokens = torch.from_numpy(self.tokens(number).astype(np.int64))
        try:
            spans = mapped(parts[::-1], chain[0].layers, shape, dtype)
        except RuntimeError as error:  # evicted between the look and the mapping
            raise CheckpointError(f"{self.folder / 'parts' / number} cannot be mapped: {error}") from None
        return Reading(number, chain[0].identity, tokens, spans)

    def name(self, name: str, number: str, length: int) -> None:
        """Let `name` stand for the first `length` tokens of a part; a name that stood for another is moved.

        Raises:
            ConfigError: the name is no plain word.
        """
        check_name(name)
        value = json.dumps({"number": number, "length": length}) + "\n"
        write_file(self.folder / "names" / f"{name}.json", value.encode())

    def named(self, name: str) -> tuple[About, int]:
        """The part that a name stands for, and how many of its tokens.

        Raises:
            ConfigError: there is no such name. CheckpointError: its part was evicted.
        """
        number, length = self._look_up(name)
        if not (self.folder / "parts" / number).exists():
            raise CheckpointError(f"reading '{name}' was evicted to make room; read the text again (handscroll read)")
        return self.about(number), length

    def names(self) -> dict[str, tuple[str, int]]:
        """Number of the part and length in tokens by name."""
        found = {}
        for path in sorted((self.folder / "names").glob("*.json")):
            try:
                value = json.loads(path.read_text(encoding="utf-8"))
                found[path.stem] = (str(value["number"]), int(value["length"]))
            except (OSError, ValueError, TypeError, KeyError):
                _log.warning("%s is damaged: the name is passed over; read the text again", path)
        return found

    def forget(self, name: str) -> None:
        """Remove a name; its part goes when no other name stands for it and nothing goes on from it."""
        number, _ = self._look_up(name)
        with self._lock():
            (self.folder / "names" / f"{name}.json").unlink()
            self._sweep()
            while number and (self.folder / "parts" / number).exists():  # and what only it went on from
                if number in {other for other, _ in self.names().values()} or self._children(number):
                    return
                parent = ""
                with suppress(CheckpointError):
                    parent = self.about(number).parent
                self._delete(number)
                number = parent

    def _look_up(self, name: str) -> tuple[str, int]:
        known = self.names()
        if name not in known:
            near = nearest(name, known) if known else "none is saved here"
            raise ConfigError(f"no reading is named '{name}': {near}")
        return known[name]

    def parts(self) -> Iterator[About]:
        """All parts whose description can be read, in no order."""
        for path in list((self.folder / "parts").iterdir()):
            if (path / MANIFEST).exists() and ".tmp-" not in path.name:
                with suppress(CheckpointError):
                    yield self.about(path.name)

    def about(self, number: str) -> About:
        """What a part is.

        Raises:
            CheckpointError: it is missing, or its description is damaged.
        """
        path = self.folder / "parts" / number / "about.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return About(**values | {"identity": Identity(**values["identity"])})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{path} is missing or damaged ({error}); read the text again") from None

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values in the store."""
        return sum(about.nbytes for about in self.parts())

    def touch(self, number: str) -> None:
        """Note that a part is used now."""
        (self.folder / "used" / number).touch()

    def _make_room(self, size: int, keep: str) -> None:
        """Evict the least recently used parts that nothing goes on from, until `size` more bytes fit."""
        kept = set(self._ancestors(keep))
        if sum(about.nbytes for about in self.parts() if about.number in kept) + size > self.limit:
            raise CapacityError(
                f"the store's limit of {self.limit / 1e6:,.0f} MB does not hold {size / 1e6:,.0f} MB more beside "
                "what the new reading goes on from: raise the limit"
            )
        while self.nbytes + size > self.limit:
            loose = [about for about in self.parts() if about.number not in kept and not self._children(about.number)]
            self._delete(min(loose, key=lambda about: self._last_use(about.number)).number)

    def _last_use(self, number: str) -> float:
        path = self.folder / "used" / number
        return path.stat().st_mtime if path.exists() else 0.0

    def _children(self, number: str) -> list[str]:
        return [about.number for about in self.parts() if about.parent == number]

    def _parent(self, before: Reading) -> str:
        """The part that holds the last token of `before`; "" where one of the chain is gone."""
        number = before.number
        try:
            while self.about(number).first >= before.length:
                number = self.about(number).parent
            self._ancestors(number)
        except CheckpointError:
            return ""
        return number

    def _sweep(self) -> None:
        """Remove what kills left behind; with the lock held nobody else is writing."""
        for path in (self.folder / "parts").glob("*.tmp-*"):
            shutil.rmtree(path, ignore_errors=True)

    def _ancestors(self, number: str) -> list[str]:
        """The part and all that it goes on from.

        Raises:
            CheckpointError: one of them is missing.
        """
        found: list[str] = []
        while number:
            found.append(number)
            number = self.about(number).parent
        return found

    def _delete(self, number: str) -> None:
        """Out of sight first, so that a kill leaves no half part under its name."""
        path = self.folder / "parts" / number
        aside = path.with_name(f"{number}.tmp-{os.getpid()}-{os.urandom(4).hex()}")
        path.rename(aside)
        shutil.rmtree(aside)
        (self.folder / "used" / number).unlink(missing_ok=True)

    def tokens(self, number: str) -> np.ndarray:
        """Token ids (S,) of a part and of all that comes before it."""
        path = self.folder / "parts" / number / "tokens.bin"
        try:
            return np.fromfile(path, dtype=np.int32)
        except OSError as error:
            raise CheckpointError(f"{path} is missing or damaged ({error}); read the text again") from None

    def _number(self, identity: Identity, tokens: Tensor) -> str:
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
    """Refuse what is no plain word.

    Raises:
        ConfigError: it is not.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(f"reading name {name!r}: use letters, digits, '.', '-' and '_', at most 100 of them")


def _joined(before: Reading, state: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The state with what came before it, copied from the mapped files."""
    found = {}
    for layer in range(layers):
        spans = before.spans[layer]
        columns = {"keys": [s.keys for s in spans], "values": [s.values for s in spans]}
        if spans[0].scales is not None:
            columns["key_scales"] = [s.scales[0] for s in spans if s.scales]
            columns["value_scales"] = [s.scales[1] for s in spans if s.scales]
        for name, parts in columns.items():
            found[f"{layer}.{name}"] = torch.cat([*parts, state[f"{layer}.{name}"]], dim=2)
    return found


def default_root() -> Path:
    """`$XDG_DATA_HOME/handscroll/readings`."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "handscroll" / "readings"


def _shared(a: np.ndarray, b: np.ndarray) -> int:
    """How many numbers the two begin with alike."""
    length = min(len(a), len(b))
    differ = np.flatnonzero(a[:length] != b[:length])
    return int(differ[0]) if len(differ) else length


def _writer(tensors: list[Tensor]):
    """Writes one layer: keys, values and scales (1, K, S, ...) one after the other."""

    def write(path: Path) -> Entry:
        parts = [x[0].cpu().contiguous().view(-1).view(torch.uint8).numpy() for x in tensors]
        return write_chunks(path, [part.data for part in parts])

    return write
