"""Answers against references: exact match and F1 of their words, in English and Chinese; code that was completed.

English answers are normalised as SQuAD does (Rajpurkar et al. 2016): small letters, no punctuation, no articles. The F1
is of their words as bags. Chinese ones are normalised as CMRC 2018 does (Cui et al. 2019): small letters, without its
list of signs. The F1 is of the longest run of characters that both have (a run of other letters and digits is one item,
where CMRC calls an English tokenizer). Of several references the best counts.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

from handscroll.metrics.scores import Scores, mean
from handscroll.metrics.sequences import run, subsequence
from handscroll.metrics.texts import Pairs, check_language, pairs, splitter

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_CMRC = str.maketrans("", "", "-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")  # the signs that CMRC leaves out


def exact_match(references: Sequence[str | Sequence[str]], predictions: Sequence[str], language: str = "en") -> Scores:
    """Share of predictions that are equal to a reference, both normalised. An empty prediction is right where a
    reference is empty, which says that there is no answer.

    Raises:
        DataError: counts that differ, no examples, what is not text. ConfigError: an unknown language.
    """
    check_language(language)
    plain = _english if language == "en" else _chinese
    return _best(pairs(references, predictions, empty=True), lambda one, other: float(plain(one) == plain(other)))


def token_f1(references: Sequence[str | Sequence[str]], predictions: Sequence[str], language: str = "en") -> Scores:
    """Mean F1 of the words that a prediction shares with its best reference; 1 where both are empty, 0 where one is.

    Errors as in `exact_match`.
    """
    check_language(language)
    if language == "en":
        cut, common = lambda text: _english(text).split(), _bag
    else:
        cut, common = splitter("zh"), run

    def score(reference: str, prediction: str) -> float:
        wanted, given = cut(reference), cut(prediction)
        if not wanted or not given:
            return float(wanted == given)
        return 2 * common(wanted, given) / (len(wanted) + len(given))

    return _best(pairs(references, predictions, empty=True), score)


def code_match(references: Sequence[str | Sequence[str]], predictions: Sequence[str]) -> Scores:
    """Share of completions that are equal to a reference but for spaces at the ends of lines and empty lines around.

    Errors as in `exact_match`.
    """
    return _best(pairs(references, predictions, empty=True), lambda one, other: float(_code(one) == _code(other)))


def edit_similarity(references: Sequence[str | Sequence[str]], predictions: Sequence[str]) -> Scores:
    """Mean share of characters that need no edit: 1 - (insertions + deletions) / characters of both, 1 where both are
    empty. It is the measure of CodeXGLUE and RepoBench (rapidfuzz's `ratio` over 100), on the texts of `code_match`.

    Errors as in `exact_match`.
    """

    def score(reference: str, prediction: str) -> float:
        one, other = _code(reference), _code(prediction)
        return 2 * subsequence(one, other) / (len(one) + len(other)) if one or other else 1.0

    return _best(pairs(references, predictions, empty=True), score)


def _best(examples: Pairs, score: Callable[[str, str], float]) -> Scores:
    return mean([max(score(one, prediction) for one in wanted) for wanted, prediction in examples])


def _bag(one: Sequence[str], other: Sequence[str]) -> int:
    return (Counter(one) & Counter(other)).total()


def _english(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _chinese(text: str) -> str:
    return text.lower().strip().translate(_CMRC)


def _code(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.split("\n")).strip("\n")
