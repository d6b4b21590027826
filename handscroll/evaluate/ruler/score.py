"""How answers are judged. Substrings, as RULER does it: an answer that repeats everything gets 1.

That is why every record keeps the answer and its length; a long answer with a full score proves little.
"""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

from handscroll.evaluate.ruler.ask import Ask

_CONTROL = re.compile(r"[\x00-\x1f]")
_SENTENCE = re.compile(r"[.\n。]")


def score(ask: Ask, answer: str) -> float:
    """The score of an answer in 0 .. 1."""
    said = _CONTROL.sub("\n", answer.strip()).strip()
    if ask.rule == "all":
        return all_parts(said, ask.references)
    if ask.rule == "part":
        return any_part(said, ask.references)
    if ask.rule == "alone":
        return alone(said, ask.references[0], ask.wrong)
    return alike(answer, ask.references[0], ask.references[1])


def all_parts(answer: str, references: Sequence[str]) -> float:
    """The share of references that stand in the answer, whatever the case of letters."""
    said = answer.lower()
    return sum(reference.lower() in said for reference in references) / len(references)


def any_part(answer: str, references: Sequence[str]) -> float:
    """1 if one of the references stands in the answer."""
    said = answer.lower()
    return float(any(reference.lower() in said for reference in references))


def alone(answer: str, right: str, wrong: Sequence[str]) -> float:
    """1 if the first sentence names the right one and no other (BABILong, Kuratov et al. 2024)."""
    first = _SENTENCE.split(answer.lower().strip(), maxsplit=1)[0]
    return float(right.lower() in first and not any(one.lower() in first for one in wrong if one != right))


def alike(answer: str, prefix: str, wanted: str) -> float:
    """How like the wanted text the answer is, 0 unless it begins with the prefix (MRCR's grader)."""
    said = answer.lstrip()
    if not said.startswith(prefix):
        return 0.0
    return SequenceMatcher(None, said.removeprefix(prefix).strip(), wanted.strip(), autojunk=False).ratio()


def settled(ask: Ask, answer: str) -> bool:
    """Whether more text cannot change the score of an answer: all of a substring score is there already."""
    return ask.rule in ("all", "part") and score(ask, answer) == 1.0
