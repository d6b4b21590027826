"""The rows of a table or of JSON lines: each is a place of its own, and short ones are shown together.

Whoever cites names the row; whoever turns the text over would drown in a hundred thousand of them.
"""

from collections.abc import Sequence

from handscroll.text.document import Place

ROW = "line "  # begins the name of a row
FEW = 100  # rows that are shown one by one
CHARACTERS = 2000  # of the rows that are shown together


def row(number: str) -> str:
    """The name of a row."""
    return f"{ROW}{number}"


def together(places: Sequence[Place]) -> list[Place]:
    """The places of a text as they are shown: many rows in parts of about `CHARACTERS`, all others as they are."""
    if len(places) <= FEW or not all(place.name.startswith(ROW) for place in places):
        return list(places)
    parts: list[list[Place]] = []
    for place in places:
        if parts and place.start - parts[-1][0].start < CHARACTERS:
            parts[-1].append(place)
        else:
            parts.append([place])
    return [part[0] if len(part) == 1 else Place(part[0].start, f"{part[0].name} to {part[-1].name}") for part in parts]
