"""Counts of more keys than memory holds (adaptive sampling: Wegman 1984, described by Flajolet 1990)."""

from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(slots=True)
class Seen:
    """What was counted of one key: copies, documents, characters of one, where it stood first, the last document."""

    times: int
    documents: int
    size: int
    source: str
    document: int


@dataclass
class Sampled:
    """Counts of 64-bit keys. Past `most` of them every second key is given up, and those like it from then on.

    A key is kept by its value alone (`key % 2**level == 0`), so each that is kept was counted from its first time, all
    its copies are seen, and shares among the kept keys estimate those among all.
    """

    most: int = 200_000
    level: int = 0
    seen: dict[int, Seen] = field(default_factory=dict)

    def add(self, key: int, size: int, source: str, document: int) -> None:
        """One more copy of a key."""
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
        """Share of the keys that is kept."""
        return 0.5**self.level

    def repeated(self) -> float:
        """Share of the characters that are second and later copies; 0 where nothing was counted."""
        total = sum(one.times * one.size for one in self.seen.values())
        return sum((one.times - 1) * one.size for one in self.seen.values()) / total if total else 0.0

    def commonest(self, documents: int = 1) -> Iterator[Seen]:
        """Keys with at least two copies in at least so many documents, those that take most room first."""
        found = [one for one in self.seen.values() if one.times > 1 and one.documents >= documents]
        return iter(sorted(found, key=lambda one: (-(one.times - 1) * one.size, one.source)))
