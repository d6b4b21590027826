"""The identity of a reading: its weights, positions, tokenizer and dtype. Keys of one identity are noise to another."""

import hashlib
import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Identity:
    """All settings that decide which keys and values a text has.

    `bucket` is the length bucket of a scaling that depends on the length, or 0. `dtype` is that of the computation.
    `policy` is that of the cache where it rounds keys and values (all exact policies keep the same ones, so they count
    as the default), and `kept` their dtype where it is another one.
    """

    model: str
    positions: str
    bucket: int
    tokenizer: str
    dtype: str
    policy: str = "full"
    kept: str = ""

    def differences(self, other: "Identity") -> list[str]:
        """Names of the fields that differ."""
        mine, theirs = asdict(self), asdict(other)
        return [name for name in mine if mine[name] != theirs[name]]

    def digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
