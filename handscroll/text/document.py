"""A text with its source, and the places in it (pages, chapters) by which it can be cited."""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Place(NamedTuple):
    """The character at which a place begins, and its name, such as "page 12"."""

    start: int
    name: str


@dataclass(frozen=True, slots=True)
class Document:
    """One text and where it came from.

    `source` is the path, with `:line` for a line of a `.jsonl` file or a row of a table. `metadata` holds what came
    beside the text: the other keys of the JSON object, the `title`, the `encoding` where it was not UTF-8. `places` are
    the pages or chapters, in order.
    """

    text: str
    source: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    places: tuple[Place, ...] = ()

    def place(self, at: int) -> str:
        """The name of the place of a character, "" before the first.

        >>> Document("onetwo", "a.pdf", places=(Place(0, "page 1"), Place(3, "page 2"))).place(4)
        'page 2'
        """
        number = bisect_right(self.places, at, key=lambda place: place.start)
        return self.places[number - 1].name if number else ""

    def marked(self) -> str:
        """The text with the name of each place in brackets before it, so that a model can cite it."""
        ends = [*(place.start for place in self.places[1:]), len(self.text)]
        parts = [
            f"[{place.name}]\n{self.text[place.start : end]}" for place, end in zip(self.places, ends, strict=False)
        ]
        return self.text[: self.places[0].start if self.places else None] + "".join(parts)


class Writer:
    """Text that grows by blocks, with a blank line between them."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._close = False
        self.length = 0

    def block(self, text: str, close: bool = False) -> int:
        """Add a block and return the character at which it begins; two `close` blocks stand on lines of their own."""
        gap = "" if not self._parts else "\n" if close and self._close else "\n\n"
        self._parts += [gap, text]
        start, self._close = self.length + len(gap), close
        self.length = start + len(text)
        return start

    @property
    def text(self) -> str:
        return "".join(self._parts)
