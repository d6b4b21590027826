"""Counts more keys than fit into memory, by adaptive sampling (Wegman 1984, described by Flajolet 1990)."""

from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(slots=True)
class Seen:
    """The counts of one key.

    These are its copies, its documents, the characters of one copy, the source of its first copy, and the number of the
    last document with it.
    """

    times: int
    documents: int
    size: int
    source: str
    document: int


@dataclass
class Sampled:
    """Counts of 64-bit keys. Whenever there are more than `most`, half of the keys are dropped and then ignored.

    Only the value of a key decides whether it is kept (`key % 2**level == 0`). So all copies of a kept key are counted,
    and shares among the kept keys estimate the shares among all keys.
    """

    most: int = 200_000
    level: int = 0
    seen: dict[int, Seen] = field(default_factory=dict)

    def add(self, key: int, size: int, source: str, document: int) -> None:
        """Count one copy of a key."""
        if key & ((1 << self.level) - 1):
            return
        found = self.seen.get(key)
        if found is not None:
            found.times += 1
            found.documents += found.document != document
            found.document = document
            return
        self.seen[key] = Seen(1, 1, size, source, document)
        while len(self.seen) > self.most:
            self.level += 1
            odd = 1 << (self.level - 1)
            self.seen = {key: found for key, found in self.seen.items() if not key & odd}

    @property
    def share(self) -> float:
        """The share of the keys that are kept."""
        return 0.5**self.level

    def repeated(self) -> float:
        """The share of the characters in second and later copies; 0 if nothing was counted."""
        total = sum(one.times * one.size for one in self.seen.values())
        return sum((one.times - 1) * one.size for one in self.seen.values()) / total if total else 0.0

    def commonest(self, documents: int = 1) -> Iterator[Seen]:
        """Keys with two copies or more in at least `documents` documents; those with the most characters come first."""
        found = [one for one in self.seen.values() if one.times > 1 and one.documents >= documents]
        return iter(sorted(found, key=lambda one: (-(one.times - 1) * one.size, one.source)))
