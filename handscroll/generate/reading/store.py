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
import os
import re
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from handscroll.base.errors import CapacityError, CheckpointError, ConfigError, DataError, nearest
from handscroll.base.runs import MANIFEST, Entry, verify_folder, write_chunks, write_file, write_folder
from handscroll.generate.reading.identity import Identity
from handscroll.generate.reading.reading import LAYER, Part, Reading, mapped
from handscroll.nn.cache import Cache

LIMIT = 20 << 30  # bytes of all readings of an owner
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
        best, shared = None, SHARED - 1
        for about in self.parts():
            if about.identity != identity:
                continue
            same = _shared(wanted, self.tokens(about.number))
            if same > shared or (same == shared and best is not None and about.length < best.length):
                best, shared = about, same
        if best is None:
            return None
        return self.open(best.number).part(shared)

    def save(self, identity: Identity, tokens: Tensor, cache: Cache, before: Reading | None, source: str) -> str:
        """Keep what `cache` holds of `tokens` (S,), of which `before` had read the beginning; returns the number.

        Raises:
            CapacityError: it is larger than the limit. CheckpointError: the disk refused; nothing is left behind.
        """
        state = cache.state_dict()
        first = before.length if before is not None else 0
        layers, shape = cache.layers, state["0.keys"].shape
        about = About(
            number=self._number(identity, tokens),
            identity=identity,
            first=first,
            length=len(tokens),
            parent="" if before is None else before.number,
            layers=layers,
            kv_heads=shape[1],
            head_size=shape[3],
            source=source,
        )
        if first + shape[2] != len(tokens):
            raise DataError(f"the cache holds {first + shape[2]} tokens, the text {len(tokens)}")
        if (self.folder / "parts" / about.number).exists():
            self.touch(about.number)
            return about.number
        if about.nbytes > self.limit:
            raise CapacityError(
                f"the reading takes {about.nbytes / 1e6:,.0f} MB, more than the store's limit of "
                f"{self.limit / 1e6:,.0f} MB: raise the limit, or read a shorter text"
            )
        files: dict[str, Any] = {
            "about.json": (json.dumps(asdict(about), indent=1, sort_keys=True) + "\n").encode(),
            "tokens.bin": tokens.to(torch.int32).numpy().tobytes(),
        }
        for layer in range(layers):
            names = ("keys", "values", "key_scales", "value_scales")
            files[LAYER.format(layer)] = _writer([state[key] for name in names if (key := f"{layer}.{name}") in state])
        with self._lock():
            self._make_room(about.nbytes, keep=about.parent)
            write_folder(self.folder / "parts" / about.number, files, about.nbytes)
            self.touch(about.number)
        return about.number

    def open(self, number: str) -> Reading:
        """Verify the hashes of a part and of what it goes on from, and map them.

        Raises:
            CheckpointError: a file is damaged, or a part is missing.
        """
        chain, parts = [self.about(number)], []
        while chain[-1].parent:
            chain.append(self.about(chain[-1].parent))
        for about, after in zip(chain, [None, *chain], strict=False):
            folder = self.folder / "parts" / about.number
            verify_folder(folder)
            last = about.length if after is None else after.first
            parts.append(Part(folder, about.first, last, about.length - about.first))
            self.touch(about.number)
        dtype, shape = chain[0].kept, (chain[0].kv_heads, chain[0].head_size)
        tokens = torch.from_numpy(self.tokens(number).astype(np.int64))
        return Reading(number, chain[0].identity, tokens, mapped(parts[::-1], chain[0].layers, shape, dtype))

    def name(self, name: str, number: str, length: int) -> None:
        """Let `name` stand for the first `length` tokens of a part; a name that stood for another is moved.

        Raises:
            ConfigError: the name is no plain word.
        """
        if not NAME.fullmatch(name):
            raise ConfigError(f"reading name {name!r}: use letters, digits, '.', '-' and '_', at most 100 of them")
        write_file(
            self.folder / "names" / f"{name}.json", (json.dumps({"number": number, "length": length}) + "\n").encode()
        )

    def named(self, name: str) -> tuple[About, int]:
        """The part that a name stands for, and how many of its tokens.

        Raises:
            ConfigError: there is no such name. CheckpointError: its part was evicted.
        """
        known = self.names()
        if name not in known:
            raise ConfigError(
                f"no reading is named '{name}': {nearest(name, known) if known else 'none is saved here'}"
            )
        number, length = known[name]
        if not (self.folder / "parts" / number).exists():
            raise CheckpointError(f"reading '{name}' was evicted to make room; read the text again (handscroll read)")
        return self.about(number), length

    def names(self) -> dict[str, tuple[str, int]]:
        """Number of the part and length in tokens by name."""
        found = {}
        for path in sorted((self.folder / "names").glob("*.json")):
            value = json.loads(path.read_text(encoding="utf-8"))
            found[path.stem] = (value["number"], value["length"])
        return found

    def forget(self, name: str) -> None:
        """Remove a name; its part goes when no other name stands for it and nothing goes on from it."""
        known = self.names()
        if name not in known:
            raise ConfigError(
                f"no reading is named '{name}': {nearest(name, known) if known else 'none is saved here'}"
            )
        number = known.pop(name)[0]
        with self._lock():
            (self.folder / "names" / f"{name}.json").unlink()
            held = number in {other for other, _ in known.values()} or self._children(number)
            if not held and (self.folder / "parts" / number).exists():
                self._delete(number)

    def _look_up(self, name: str) -> tuple[str, int]:
        known = self.names()
        if name not in known:
            near = nearest(name, known) if known else "none is saved here"
            raise ConfigError(f"no reading is named '{name}': {near}")
        return known[name]

    def parts(self) -> Iterator[About]:
        """All parts, in no order."""
        for path in (self.folder / "parts").iterdir():
            if (path / MANIFEST).exists() and ".tmp-" not in path.name:
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
        while self.nbytes + size > self.limit:
            kept = {keep, *self._ancestors(keep)}
            loose = [about for about in self.parts() if about.number not in kept and not self._children(about.number)]
            if not loose:
                raise CapacityError(
                    f"the store's limit of {self.limit / 1e6:,.0f} MB does not hold {size / 1e6:,.0f} MB more beside "
                    "what the new reading goes on from: raise the limit"
                )
            self._delete(min(loose, key=lambda about: self._last_use(about.number)).number)

    def _last_use(self, number: str) -> float:
        path = self.folder / "used" / number
        return path.stat().st_mtime if path.exists() else 0.0

    def _children(self, number: str) -> list[str]:
        return [about.number for about in self.parts() if about.parent == number]

    def _ancestors(self, number: str) -> list[str]:
        found = []
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
        return np.fromfile(self.folder / "parts" / number / "tokens.bin", dtype=np.int32)

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
