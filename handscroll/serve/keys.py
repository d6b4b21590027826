"""Keys: kept as hashes, compared in constant time; each names an owner, who sees nothing of the others.

A file of keys is TOML, one table an owner:

    [ann]
    sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    requests_per_minute = 60
    tokens_per_day = 2_000_000
"""

import hashlib
import hmac
import os
import secrets
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import Field

from handscroll.base.config import Config
from handscroll.base.errors import ConfigError
from handscroll.base.runs import write_file

VARIABLE = "HANDSCROLL_KEY"  # of the environment: one key, whose owner is called "key"
LEAST = 16  # characters of a key that a person chooses


class Quota(Config):
    """What one key may use; 0 sets no limit."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    requests_per_minute: int = Field(default=0, ge=0)
    tokens_per_day: int = Field(default=0, ge=0)


@dataclass(frozen=True)
class Owner:
    """Who asks. `number` stands for the name wherever something is stored or shared."""

    name: str
    number: str
    quota: Quota | None = None


class Keys:
    """The keys of a server; without any, everybody who reaches it is the owner "local"."""

    def __init__(self, quotas: Mapping[str, Quota], salt: bytes):
        self._salt = salt
        self._owners = [(bytes.fromhex(one.sha256), self._owner(name, one)) for name, one in quotas.items()]
        self.local = self._owner("local", None)

    @classmethod
    def load(cls, file: Path | None, salt: bytes, given: str | None = None) -> Self:
        """The keys of a file, and the one `given` by the environment.

        Raises:
            ConfigError: the file cannot be read or names no hash, or the given key is too short.
        """
        quotas: dict[str, Quota] = {}
        if file is not None:
            quotas |= read_keys(file)
            if not quotas:
                raise ConfigError(f"{file} holds no keys: make one (handscroll serve --keys {file} --make-key NAME)")
        if given is not None:
            if len(given) < LEAST:
                raise ConfigError(f"the key in {VARIABLE} has {len(given)} characters; give at least {LEAST}")
            quotas["key"] = Quota(sha256=hashlib.sha256(given.encode()).hexdigest())
        return cls(quotas, salt)

    @property
    def required(self) -> bool:
        """Whether a request needs a key."""
        return bool(self._owners)

    @property
    def several(self) -> bool:
        """Whether there may be more than one owner."""
        return len(self._owners) > 1

    def find(self, header: str | None) -> Owner | None:
        """The owner of the key in an Authorization header. Every key is compared, each in constant time."""
        if not self._owners:
            return self.local
        scheme, _, key = (header or "").partition(" ")
        digest = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        found = None
        for known, owner in self._owners:
            if hmac.compare_digest(known, digest):
                found = owner
        return found if scheme.lower() == "bearer" else None

    def _owner(self, name: str, quota: Quota | None) -> Owner:
        number = hmac.new(self._salt, f"owner {name}".encode(), hashlib.sha256).hexdigest()
        return Owner(name, number, quota)


def read_keys(file: Path) -> dict[str, Quota]:
    """The quotas in a file of keys, by the names of their owners.

    Raises:
        ConfigError: the file is missing, is not TOML, or a table is wrong.
    """
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"keys {file} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise ConfigError(f"keys {file} is not TOML: {error}") from None
    if wrong := [name for name, table in tables.items() if not isinstance(table, dict)]:
        raise ConfigError(f"keys {file}: '{wrong[0]}' is no table; write [{wrong[0]}] and sha256 below it")
    return {name: Quota.parse(table, f"{file} [{name}]") for name, table in tables.items()}


def make_key(file: Path, name: str) -> str:
    """Add a new key to a file (made if it is not there), which keeps its hash; returns the key.

    Raises:
        ConfigError: the name is taken or no plain word.
    """
    if not name.replace("-", "").replace("_", "").isalnum() or not name.isascii():
        raise ConfigError(f"the owner {name!r}: use letters, digits, '-' and '_'")
    known = read_keys(file) if file.exists() else {}
    if name in known:
        raise ConfigError(f"{file} has a key of '{name}' already; remove its table first")
    key = f"hs-{secrets.token_urlsafe(32)}"
    before = file.read_text(encoding="utf-8").rstrip("\n") + "\n\n" if known else ""
    table = f'[{name}]\nsha256 = "{hashlib.sha256(key.encode()).hexdigest()}"\n'
    write_file(file, (before + table).encode())
    file.chmod(0o600)
    return key


def salt_in(folder: Path) -> bytes:
    """The secret of a store, made at its first use: names of owners are hashed with it."""
    file = folder / "salt"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
            stream.write(secrets.token_bytes(32))
            os.fsync(stream.fileno())
    return file.read_bytes()
