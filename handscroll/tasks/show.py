"""Shows what of an example is trained: in colour, and in marks that are read without colour."""

from itertools import groupby

from rich.text import Text

from handscroll.data.encoded import Encoded
from handscroll.data.row import IGNORED, Row
from handscroll.text.tokenizer import Tokenizer

OPEN, CLOSE = "⟦", "⟧"
TRAINED, UNTRAINED = "green", "dim"
SPECIAL = "bold"
BREAK = "⏎"  # stands before each line break that is trained, since colour does not show on one


def show(encoded: Encoded, tokenizer: Tokenizer) -> Text:
    """The text of an example: what is trained is green and between ⟦ and ⟧, the rest is dim, special tokens are bold.

    `.plain` is the same without colour. Nothing is left out.
    """
    shown = Text()
    pairs = list(zip(encoded.ids, encoded.trained, strict=True))
    known = tokenizer.special
    for trained, run in groupby(pairs, key=lambda pair: pair[1]):
        style = TRAINED if trained else UNTRAINED
        shown.append(OPEN if trained else "", style)
        for special, ids in groupby((number for number, _ in run), key=known.__contains__):
            text = tokenizer.decode(ids, special=True)
            text = text.replace("\n", f"{BREAK}\n") if trained else text
            shown.append(text, f"{SPECIAL} {style}" if special else style)
        shown.append(CLOSE if trained else "", style)
    return shown


def of_row(row: Row, place: str = "") -> Encoded:
    """A training row whose targets are next tokens, as an example again; padding is left out."""
    size = len(row.tokens) if row.segment is None else int((row.segment >= 0).sum())
    counted = (row.targets[: size - 1] != IGNORED).tolist()
    return Encoded(row.tokens[:size].tolist(), [False, *counted], place)


def headline(encoded: Encoded) -> str:
    """One line about an example: where it comes from, and how much of it is trained."""
    parts = [f"{len(encoded):,} tokens, {encoded.counted:,} trained", encoded.note]
    return ": ".join(filter(None, [encoded.place, "; ".join(filter(None, parts))]))
