"""Where in a document an answer stands: word for word, or the sentence that is nearest to it."""

import re
from collections.abc import Sequence
from typing import Any

from handscroll.search.similar import Similar
from handscroll.text.pieces import Piece, sentences
from handscroll.text.words import HAN

LETTER = rf"[^\W{HAN}]"  # beside one, what was found is a part of a longer word


def evidence(document: str, answer: str, question: str, read: Sequence[Piece] = ()) -> dict[str, Any] | None:
    """The place of an answer in a document, as characters: `found` says how it was found.

    "word for word": the answer itself, without regard to capitals and blanks. "nearest": the sentence that shares most
    with answer and question (BM25), which need not be what the model went by. Only what was `read` is searched (by
    default all of it). None where there is nothing in common.
    """
    parts = list(read) or [Piece(0, len(document), document)]
    if found := place_of(answer, parts):
        return _told(document, *found, "word for word")
    each = [Piece(part.start + s.start, part.start + s.end, s.text) for part in parts for s in sentences(part.text)]
    ranked = Similar([one.text for one in each])
    # What the answer says counts most; the question decides between sentences that say it equally well.
    scores = ranked.scores(answer) + 0.5 * ranked.scores(question)
    if not len(each) or scores.max() <= 0:
        return None
    best = each[int(scores.argmax())]
    return _told(document, best.start, best.start + len(best.text.rstrip()), "nearest")


def place_of(answer: str, parts: Sequence[Piece]) -> tuple[int, int] | None:
    """Where an answer first stands in the parts of a document word for word, without regard to capitals and blanks."""
    said = answer.strip().rstrip(".。")
    words = [re.escape(word) for word in said.split()]
    for part in parts if words else []:
        found = re.search(_whole(r"\s+".join(words), said), part.text, re.IGNORECASE)
        if found:
            return part.start + found.start(), part.start + found.end()
    return None


def _whole(pattern: str, answer: str) -> str:
    """The pattern of an answer that is no part of a longer word; Chinese words have no such edges."""
    before, after = (rf"(?<!{LETTER})", rf"(?!{LETTER})")
    edged = [re.match(r"[a-z0-9]", letter, re.IGNORECASE) is not None for letter in (answer[0], answer[-1])]
    return f"{before if edged[0] else ''}{pattern}{after if edged[1] else ''}"


def _told(document: str, start: int, end: int, found: str) -> dict[str, Any]:
    return {"text": document[start:end], "start": start, "end": end, "found": found}
