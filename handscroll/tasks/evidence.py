"""Where in a document an answer stands: word for word, or the sentence that is nearest to it."""

import re
from collections.abc import Sequence
from typing import Any

from handscroll.tasks.pieces import Piece, sentences
from handscroll.tasks.similar import Similar


def evidence(document: str, answer: str, question: str, read: Sequence[Piece] = ()) -> dict[str, Any] | None:
    """The place of an answer in a document, as characters: `found` says how it was found.

    "word for word": the answer itself, without regard to capitals and blanks. "nearest": the sentence that shares most
    with answer and question (BM25), which need not be what the model went by. Only what was `read` is searched (by
    default all of it). None where there is nothing in common.
    """
    parts = list(read) or [Piece(0, len(document), document)]
    words = [re.escape(word) for word in answer.strip().rstrip(".。").split()]
    for part in parts if words else []:
        found = re.search(r"\s+".join(words), part.text, re.IGNORECASE)
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


def _told(document: str, start: int, end: int, found: str) -> dict[str, Any]:
    return {"text": document[start:end], "start": start, "end": end, "found": found}
