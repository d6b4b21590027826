"""What an answer says, by the kind of its question, and the metrics that score it (`handscroll.metrics`)."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from handscroll.evaluate.questions.item import LETTERS, Item
from handscroll.metrics import METRICS
from handscroll.metrics.scores import Measured, Scores, measured
from handscroll.metrics.table import Settings
from handscroll.text.words import HAN

_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?")
# Where an answer names its choice, the surest place first: a letter is a capital, since "a" and "i" are words.
_SAYS = re.compile(r"(?i:answer|choice|option)(?i:\s+is)?\s*:?\s*(?:[*_\"'$(\[]|\\boxed\{)*([A-Z])(?![A-Za-z])")
_PLACES = (
    re.compile(r"^\W*([A-Z])(?=[.,:;)\]*]|\W*(?:\n|$))"),  # the first letter, which ends there
    re.compile(r"\(([A-Z])\)"),
    re.compile(r"^\W*([A-Z])(?![A-Za-z])"),
)
_BESIDE = rf"[^\W{HAN}]"  # beside such a character a class is a part of another word; Chinese has no blanks


@dataclass(frozen=True)
class Judge:
    """`metrics` by name, the first of which decides; `pairs` gives (right, said) of an item and its answer.

    `most` is the largest number of tokens of an answer, unless the item says another.
    """

    metrics: tuple[str, ...]
    most: int
    pairs: Callable[[Item, str], list[tuple[Any, Any]]]


def number_in(text: str) -> str | None:
    """The number that an answer ends with: the first one after ####, else the last; None where there is none.

    >>> number_in("so 1,250 of them. #### 1,250.0")
    '1250'
    """
    _, marked, after = text.rpartition("####")
    found = (_NUMBER.findall(after)[:1] if marked else []) or _NUMBER.findall(text)
    if not found:
        return None
    plain = found[-1].replace(",", "").lstrip("+")
    return plain.rstrip("0").rstrip(".") if "." in plain else plain


def letter_in(text: str, choices: Sequence[str] = ()) -> str | None:
    """The letter of the choice that an answer names, or whose words it repeats; None where it names none.

    Only letters of `choices` count; where these are not known, every letter does.

    >>> letter_in("The answer is (B).")
    'B'
    """
    letters = LETTERS[: len(choices)] or LETTERS
    for found in (_SAYS.findall(text)[::-1], *(place.findall(text) for place in _PLACES)):
        if named := next((letter for letter in found if letter in letters), None):
            return named
    same = [at for at, choice in enumerate(choices) if choice.strip().casefold() == text.strip().casefold()]
    return chr(65 + same[0]) if same else None


def named_in(text: str, classes: Sequence[str]) -> str | None:
    """The class that an answer names first (the longest of those that begin there); None where it names none.

    >>> named_in("I know: Yes", ["Yes", "No"])
    'Yes'
    """
    found = []
    for one in classes:
        before = f"(?<!{_BESIDE})" if re.match(_BESIDE, one) else ""
        behind = f"(?!{_BESIDE})" if re.search(f"{_BESIDE}$", one) else ""
        if here := re.search(f"{before}{re.escape(one.casefold())}{behind}", text.casefold()):
            found.append((here.start(), -len(one), one))
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
