"""What a reading belongs to: the very weights, positions, tokenizer and dtype. Keys of one are noise to another."""

import hashlib
import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Identity:
    """Everything that decides what keys and values a text has.

    `bucket` is that of a length-dependent scaling, or 0; `policy` is the cache's, which rounds what is kept.
    """

    model: str
    positions: str
    bucket: int
    tokenizer: str
    dtype: str
    policy: str = "full"

    def differences(self, other: "Identity") -> list[str]:
        """Names of the fields that differ."""
        mine, theirs = asdict(self), asdict(other)
        return [name for name in mine if mine[name] != theirs[name]]

    def digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
