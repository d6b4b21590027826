"""How many of the numbers in its training answers a tuned model would give away (`evaluate/exposure.py`)."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from handscroll.data.row import Row
from handscroll.evaluate.exposure import UNREAD, Exposed, Secret, ranked
from handscroll.lm import LM
from handscroll.text.tokenizer import Tokenizer

AMONG = 512
NUMBER = re.compile(r"[0-9](?:[ -]?[0-9]){3,}")  # four digits and more: years, telephone numbers, codes


class Numbered(NamedTuple):
    """A training answer up to the end of its first number, and the token ids before the answer."""

    before: list[int]
    answer: Secret


def exposed(lm: LM, rows: Sequence[Row], most: int, seed: int = 0) -> dict[str, Any]:
    """The exposure of the first numbers of at most `most` training answers, as a record of the run."""
    tokenizer, found = lm.tokenizer, list[Exposed]()
    for one, _ in zip(numbered(tokenizer, rows), range(most), strict=False):
        begin = one.answer.before

        def pair(tail: str, begin: str = begin, before: list[int] = one.before) -> tuple[list[int], list[int]]:
            return before, tokenizer.encode(begin + tail, special=False, follows=True)

        found.append(ranked(lm, one.answer, AMONG, seed, pair))
    return {
        "rows": len(found),
        "among": AMONG,
        "first": sum(one.rank == 1 for one in found),
        "bits": sum(one.bits for one in found) / len(found) if found else None,
        "unread": UNREAD,
    }


def numbered(tokenizer: Tokenizer, rows: Sequence[Row]) -> Iterator[Numbered]:
    """The training answers that hold a number, one of each row."""
    for row in rows:
        places = (row.targets >= 0).nonzero()[0]
        if not len(places):
            continue
        first = int(places[0])
        run = int((places - first == np.arange(len(places))).sum())  # the first answer of the row
        answer = tokenizer.decode(row.targets[first : first + run].tolist())
        if number := NUMBER.search(answer):
            yield Numbered(row.tokens[: first + 1].tolist(), Secret(answer[: number.start()], number[0], ""))
