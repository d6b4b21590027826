"""Where in a document an answer stands: word for word, or the sentence that is nearest to it."""

import re
from collections.abc import Sequence
from typing import Any

from handscroll.search.similar import Similar
from handscroll.text.pieces import Piece, sentences


def evidence(document: str, answer: str, question: str, read: Sequence[Piece] = ()) -> dict[str, Any] | None:
    """The place of an answer in a document, as characters: `found` says how it was found.

    "word for word": the answer itself, without regard to capitals and blanks. "nearest": the sentence that shares most
    with answer and question (BM25), which need not be what the model went by. Only what was `read` is searched (by
    default all of it). None where there is nothing in common.
    """
    parts = list(read) or [Piece(0, len(document), document)]
    said = answer.strip().rstrip(".。")
    words = [re.escape(word) for word in said.split()]
    for part in parts if words else []:
        found = re.search(_whole(r"\s+".join(words), said), part.text, re.IGNORECASE)
        if found:
            return _told(document, part.start + found.start(), part.start + found.end(), "word for word")
    each = [Piece(part.start + s.start, part.start + s.end, s.text) for part in parts for s in sentences(part.text)]
    ranked = Similar([one.text for one in each])
    # What the answer says counts most; the question decides between sentences that say it equally well.
    scores = ranked.scores(answer) + 0.5 * ranked.scores(question)
    if not len(each) or scores.max() <= 0:
        return None
    best = each[int(scores.argmax())]
    return _told(document, best.start, best.start + len(best.text.rstrip()), "nearest")


def _whole(pattern: str, answer: str) -> str:
    """The pattern of an answer that is no part of a longer word; Chinese words have no such edges."""
    edges = [r"\b" if re.match(r"[a-z0-9]", letter, re.IGNORECASE) else "" for letter in (answer[0], answer[-1])]
    return f"{edges[0]}{pattern}{edges[1]}"


def _told(document: str, start: int, end: int, found: str) -> dict[str, Any]:
    return {"text": document[start:end], "start": start, "end": end, "found": found}
