"""The passages of a document that was read: where each stands in the text, and which tokens of the reading it is."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from handscroll.base.errors import DataError
from handscroll.generate.prefill import shared_beginning
from handscroll.text.pieces import sentences
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

    Every token of the document is in one passage; a sentence that is longer makes several.

    Raises:
        DataError: the document does not stand among the tokens as it is (a template that changes it).
    """
    encoding = tokenizer.encoding(document)
    first, starts = _place(ids, encoding.ids), [start for start, _ in encoding.offsets]
    edges, at = [0], 0  # tokens with which passages begin; the token behind the last sentence
    for sentence in sentences(document):
        # The blanks behind a sentence often begin the first token of the next one.
        end = bisect_left(starts, sentence.start + len(sentence.text.rstrip()), at)
        if end - edges[-1] > most and at > edges[-1]:
            edges.append(at)
        while end - edges[-1] > most:
            edges.append(edges[-1] + most)
        at = end
    places = [0, *(starts[edge] for edge in edges[1:]), len(document)]
    spans = zip(pairwise(places), pairwise([*edges, len(starts)]), strict=True)
    return [Passage(start, end, first + begin, first + last) for (start, end), (begin, last) in spans]


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
