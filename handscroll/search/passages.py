"""A document in passages of a few hundred words, each with the place and the heading under which it stands.

Passages are cut between sentences, best at the end of a paragraph, and begin anew at a heading. Together they are the
document, so what is passed on of it can be counted. Their size is the same for every model.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from handscroll.text.document import Document
from handscroll.text.pieces import Piece, sentences
from handscroll.text.words import HAN

MOST = 160  # words or Chinese characters of a passage: about 200 tokens
FULL = 0.6  # of `MOST`, from which a passage ends with its paragraph
HEAD = 90  # characters of a heading
# What counts as a word, so that no run of anything is a passage without an end: encoded bytes, rules, blanks.
_WORDS = re.compile(rf"[{HAN}]|[^\W{HAN}]{{1,12}}|[^\w\s]{{12}}|\s{{48}}")
_NUMBER = r"(?:\d+|[ivxlcdm]+|one|two|three|four|five|six|seven|eight|nine|ten)"
_HEADING = re.compile(
    r"\s*(?:#{1,6}[ ]+(?P<marked>\S.*)"
    rf"|(?P<named>(?:chapter|part|book|volume|section|act|scene|canto|appendix)[ ]+{_NUMBER}\b.*)"
    r"|(?P<single>prologue|epilogue|preface|introduction|appendix)"
    r"|(?P<chinese>第[〇零一二三四五六七八九十百千两\d]{1,8}[章回节節卷部篇集折](?:[\s:：、].*)?|楔子|序言|后记)"
    r")\s*",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Passage:
    """Characters `start` to `end` of a document, and the `place` (page, chapter of a file) and `heading` they have."""

    start: int
    end: int
    place: str
    heading: str


def passages(document: Document, most: int = MOST) -> list[Passage]:
    """A document in passages of at most `most` words; joined they are its text.

    A sentence that is longer makes several passages.
    """
    found: list[Passage] = []
    start, size, bare, heading = 0, 0, True, ""  # `bare`: there are headings only so far

    def close(end: int) -> None:
        nonlocal start, size, bare
        if end > start:
            found.append(Passage(start, end, _place(document, start, end), heading))
        start, size, bare = end, 0, True

    for one in _small(document.text, most):
        count, named = _size(one.text), heading_of(one.text)
        if (named and not bare) or (size and size + count > most):
            close(one.start)
        if named:
            heading = named
        size += count
        bare = bare and bool(named)
        if not bare and size >= FULL * most and "\n\n" in one.text[len(one.text.rstrip()) :]:
            close(one.end)
    close(len(document.text))
    assert sum(one.end - one.start for one in found) == len(document.text), "a passage was lost"
    return found


def heading_of(line: str) -> str:
    """The heading that a line is, "" if it is none.

    >>> heading_of("CHAPTER IV. The Sea-chest"), heading_of("## 三、方法"), heading_of("a part of it")
    ('CHAPTER IV. The Sea-chest', '三、方法', '')
    """
    bare = line.strip()
    if len(bare) > HEAD or "\n" in bare:
        return ""
    found = _HEADING.fullmatch(bare)
    return "" if found is None else next(text for text in found.groups() if text)


def _small(text: str, most: int) -> Iterator[Piece]:
    """The sentences of a text; one with too many words in parts."""
    for one in sentences(text):
        begin, size = 0, 0
        for word in _WORDS.finditer(one.text):
            if size == most:
                yield Piece(one.start + begin, one.start + word.start(), one.text[begin : word.start()])
                begin, size = word.start(), 0
            size += 1
        yield Piece(one.start + begin, one.end, one.text[begin:])


def _size(text: str) -> int:
    return len(_WORDS.findall(text))


def _place(document: Document, start: int, end: int) -> str:
    first, last = document.place(start), document.place(max(start, end - 1))
    return first if first == last or not first else f"{first} to {last}"
