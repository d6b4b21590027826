"""The passages of a document that was read: where each stands in the text, and which tokens of the reading it is."""

from collections.abc import Sequence
from dataclasses import dataclass

from handscroll.base.errors import DataError
from handscroll.generate.prefill import shared_beginning
from handscroll.text.pieces import pieces
from handscroll.text.tokenizer import Tokenizer

BORDER = 8  # tokens at both ends of a document that may be cut otherwise beside the text around it
LOOK = 32  # tokens by which a document is found among those that were read


@dataclass(frozen=True)
class Passage:
    """Characters `start` to `end` of the document, which are the tokens `first` to `last` - 1 of what was read."""

    start: int
    end: int
    first: int
    last: int


def passages(tokenizer: Tokenizer, ids: Sequence[int], document: str, most: int) -> list[Passage]:
    """The document in passages of whole sentences and at most `most` tokens, found among the tokens `ids`.

    Every token of the document is in one passage.

    Raises:
        DataError: the document does not stand among the tokens as it is (a template that changes it).
        ConfigError: `most` is below 16.
    """
    encoding = tokenizer.encoding(document)
    first = _place(ids, encoding.ids)
    found: list[Passage] = []
    at = 0  # the next token of the document
    for piece in pieces(document, tokenizer, most):
        begin = at
        while at < len(encoding.ids) and encoding.offsets[at][0] < piece.end:
            at += 1
        if at > begin:
            found.append(Passage(piece.start, piece.end, first + begin, first + at))
        elif found:  # less than a token: it belongs to the passage before
            last = found.pop()
            found.append(Passage(last.start, piece.end, last.first, last.last))
    return found


def _place(ids: Sequence[int], own: Sequence[int]) -> int:
    """Where the tokens of a document would begin among `ids`; a few at both ends may differ."""
    skipped = BORDER if len(own) > 2 * BORDER + LOOK else 0
    looked = list(own[skipped : skipped + LOOK])
    for at in range(skipped, len(ids) - len(looked) + 1):
        if list(ids[at : at + len(looked)]) == looked:
            same = shared_beginning(own[skipped:], ids[at:])
            if same >= len(own) - skipped - BORDER:
                return at - skipped
    raise DataError(
        "the document does not stand among the tokens that were read as it is: its chat template changes it, so no "
        "place in it can be shown. Read it as plain text (handscroll read --raw)"
    )
