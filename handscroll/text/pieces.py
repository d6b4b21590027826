"""A long text in pieces of whole sentences, so that together they are the text."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from handscroll.base.errors import ConfigError
from handscroll.text.tokenizer import Tokenizer

# A sentence with the blanks behind it: up to a full stop that blanks follow, a Chinese one, or the end of a line.
_SENTENCE = re.compile(r".+?(?:[.!?][\"')\]”’]*(?=\s)|[。！？；][”’」』）]*|\n|$)\s*|\s+", re.DOTALL)


class Piece(NamedTuple):
    """Characters `start` to `end` of a text."""

    start: int
    end: int
    text: str


def sentences(text: str) -> list[Piece]:
    """The sentences of a text with their places; joined they are the text."""
    return [Piece(*found.span(), found[0]) for found in _SENTENCE.finditer(text)]


def pieces(text: str, tokenizer: Tokenizer, most: int) -> list[Piece]:
    """Pieces of at most `most` tokens, of whole sentences where a sentence is not longer; joined they are the text.

    Raises:
        ConfigError: `most` is below 16.
    """
    if most < 16:
        raise ConfigError(f"pieces of {most} tokens hold no sentence; take at least 16")
    found: list[Piece] = []
    size = 0
    for sentence in (part for one in sentences(text) for part in _small(one, tokenizer, most)):
        count = _count(tokenizer, sentence.text)
        if found and size + count <= most:
            last = found.pop()
            found.append(Piece(last.start, sentence.end, last.text + sentence.text))
            size += count
        else:
            found.append(sentence)
            size = count
    assert "".join(one.text for one in found) == text, "a piece was lost"
    return found


def _small(piece: Piece, tokenizer: Tokenizer, most: int) -> Iterator[Piece]:
    """A sentence, or halves of it until each is small enough."""
    if len(piece.text) < 2 or (len(piece.text) <= 16 * most and _count(tokenizer, piece.text) <= most):
        yield piece
        return
    middle = len(piece.text) // 2
    middle = piece.text.rfind(" ", 1, middle) + 1 or middle
    yield from _small(Piece(piece.start, piece.start + middle, piece.text[:middle]), tokenizer, most)
    yield from _small(Piece(piece.start + middle, piece.end, piece.text[middle:]), tokenizer, most)


def _count(tokenizer: Tokenizer, text: str) -> int:
    return len(tokenizer.encode(text, special=False, follows=True))
