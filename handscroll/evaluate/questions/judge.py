"""What an answer says, by the kind of its question, and the metrics that score it (`handscroll.metrics`)."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from handscroll.evaluate.questions.item import Item
from handscroll.metrics import METRICS
from handscroll.metrics.scores import Measured, Scores, measured
from handscroll.metrics.table import Settings

_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?")
_SAYS = re.compile(r"(?:answer|choice|option)(?: is|:)?\s*\(?([A-Z])\b", re.IGNORECASE)
_LETTER = re.compile(r"^\W*([A-Z])(?![A-Za-z])")
_BRACKETS = re.compile(r"\(([A-Z])\)")


@dataclass(frozen=True)
class Judge:
    """`metrics` by name, the first of which decides; `pairs` gives (right, said) of an item and its answer.

    `most` is the largest number of tokens of an answer, unless the item says another.
    """

    metrics: tuple[str, ...]
    most: int
    pairs: Callable[[Item, str], list[tuple[Any, Any]]]


def number_in(text: str) -> str | None:
    """The number that an answer ends with: the one after ####, else the last; None where there is none.

    >>> number_in("so 1,250 of them. #### 1,250.0")
    '1250'
    """
    after = text.rpartition("####")[2] if "####" in text else text
    found = _NUMBER.findall(after) or _NUMBER.findall(text)
    if not found:
        return None
    plain = found[-1].replace(",", "").lstrip("+")
    return plain.rstrip("0").rstrip(".") if "." in plain else plain


def letter_in(text: str, choices: Sequence[str] = ()) -> str | None:
    """The letter of the choice that an answer names, or whose words it repeats; None where it names none.

    >>> letter_in("The answer is (B).")
    'B'
    """
    said = _SAYS.findall(text)
    if said:
        return said[-1].upper()
    if found := _LETTER.match(text) or _BRACKETS.search(text):
        return found[1]
    same = [at for at, choice in enumerate(choices) if choice.strip().casefold() == text.strip().casefold()]
    return chr(65 + same[0]) if same else None


def named_in(text: str, classes: Sequence[str]) -> str | None:
    """The class that an answer names first (the longest of those that begin there); None where it names none."""
    low = text.casefold()
    found = [(low.find(one.casefold()), -len(one), one) for one in classes if one.casefold() in low]
    return min(found)[2] if found else None


def blanks_in(text: str, marks: Sequence[str]) -> list[str]:
    """What an answer writes for each mark, "" where it writes nothing."""
    found = []
    for mark in marks:
        here = re.search(rf"{re.escape(mark)}\s*[:：=]?\s*(.*)", text)
        found.append(here[1].strip().strip("\"'“”") if here else "")
    return found


def _words(item: Item, text: str) -> list[tuple[Any, Any]]:
    return [(list(item.wanted), text.strip())]


def _blanks(item: Item, text: str) -> list[tuple[Any, Any]]:
    return list(zip(([one] for one in item.wanted), blanks_in(text, item.marks), strict=True))


JUDGES: Mapping[str, Judge] = {
    "words": Judge(("token-f1", "exact-match"), 48, _words),
    "summary": Judge(("rouge-l", "rouge-1"), 256, _words),
    "letter": Judge(("accuracy",), 16, lambda item, text: [(item.wanted[0], letter_in(text, item.choices))]),
    "class": Judge(("accuracy",), 32, lambda item, text: [(item.wanted[0], named_in(text, item.choices))]),
    "number": Judge(("accuracy",), 320, lambda item, text: [(number_in(item.wanted[0]), number_in(text))]),
    "blanks": Judge(("exact-match", "token-f1"), 128, _blanks),
    "code": Judge(("edit-similarity", "code-match"), 64, lambda item, text: [(list(item.wanted), text)]),
}


def scored(name: str, items: Sequence[Item], texts: Sequence[str]) -> Scores:
    """The scores of answers to items of one judge, by the metric `name`."""
    pairs = [pair for item, text in zip(items, texts, strict=True) for pair in JUDGES[item.judge].pairs(item, text)]
    wanted, said = ([pair[side] for pair in pairs] for side in (0, 1))
    return METRICS[name].score(wanted, said, Settings(language=items[0].language))


def measures(items: Sequence[Item], texts: Sequence[str]) -> dict[str, Measured]:
    """Every metric of the items' judge, with its interval over answers."""
    return {name: measured(scored(name, items, texts)) for name in JUDGES[items[0].judge].metrics}
