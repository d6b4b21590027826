"""`Known`: the parts and names of a store at one moment, and which parts need which."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from handscroll.cache.reading.about import About


class Known:
    """All parts by number, and all names; whoever holds the store's lock keeps it true."""

    def __init__(self, parts: Iterable[About], names: Mapping[str, tuple[str, int]]):
        self.parts = {about.number: about for about in parts}
        self._children, self._names = defaultdict[str, set[str]](set), defaultdict[str, dict[str, int]](dict)
        for about in self.parts.values():
            self._children[about.parent].add(about.number)
        for name, (number, length) in names.items():
            self._names[number][name] = length

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values of all parts."""
        return sum(about.nbytes for about in self.parts.values())

    def remove(self, number: str) -> None:
        """A part is gone."""
        self._children[self.parts.pop(number).parent].discard(number)

    def move(self, name: str, number: str, other: str) -> None:
        """A name that stood for a part stands for another one."""
        self._names[other][name] = self._names[number].pop(name)

    def named(self, number: str) -> dict[str, int]:
        """The names that stand for a part, and how many tokens belong to each."""
        return dict(self._names[number])

    def continued(self, number: str) -> int:
        """The first tokens of a part that other parts continue; 0 if none does."""
        return max((self.parts[child].first for child in self._children[number]), default=0)

    def holder(self, about: About, length: int) -> About | None:
        """The part before one that holds the last of its first `length` tokens, if a text can end there."""
        found = self.parts.get(about.parent)
        while found is not None and found.first >= length:
            found = self.parts.get(found.parent)
        return found if found is not None and found.reached(length) == length else None

    def complete(self, number: str) -> bool:
        """Whether all parts before one are there, and hold what it continues."""
        about: About | None = self.parts[number]
        while about is not None and about.first:
            parent = self.parts.get(about.parent)
            about = parent if parent is not None and parent.length >= about.first else None
        return about is not None
