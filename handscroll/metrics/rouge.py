"""ROUGE of summaries (Lin 2004, "ROUGE: a package for automatic evaluation of summaries"), in English and Chinese.

On English it equals the package rouge-score without its stemmer. On Chinese, where that package finds no words and
gives 0 to a perfect copy, words are characters or those of jieba.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal, get_args

from handscroll.base.errors import ConfigError, DataError, nearest
from handscroll.metrics.scores import PrecisionRecall, Scores, mean
from handscroll.metrics.sequences import places, subsequence
from handscroll.metrics.texts import pairs, splitter

Kind = Literal["1", "2", "l", "lsum"]
_SENTENCES = {"en": re.compile(r"\n"), "zh": re.compile(r"\n|(?<=[。！？；])")}


def rouge(
    references: Sequence[str | Sequence[str]],
    predictions: Sequence[str],
    kind: Kind = "l",
    language: str = "en",
    words: str = "characters",
) -> Scores:
    """Mean ROUGE F1 of predictions, each against its best reference. 0 for an empty prediction.

    `kind` is "1" or "2" (runs of words), "l" (longest common subsequence of the whole texts) or "lsum" (the union of
    those of each sentence; sentences end at line ends, Chinese ones at 。！？； too).

    Raises:
        DataError: counts that differ, no examples, what is not text, a reference without a word of the language.
        ConfigError: an unknown kind, language or kind of words.
    """
    score = overlap(kind, language, words)
    cut = splitter(language, words)
    examples = pairs(references, predictions)
    for number, (wanted, _) in enumerate(examples):
        if not all(cut(one) for one in wanted):
            other = "zh" if language == "en" else "en"
            raise DataError(
                f"reference {number} has no word of the language {language}; is it {other} (--language {other})?"
            )
    return mean([max(score(one, prediction).f1 for one in wanted) for wanted, prediction in examples])


def overlap(kind: Kind, language: str = "en", words: str = "characters") -> Callable[[str, str], PrecisionRecall]:
    """The function of (reference, prediction) that gives precision and recall of one pair: the shares of the
    prediction's units that were wanted, and of the reference's that were found.

    Raises:
        ConfigError: an unknown kind, language or kind of words.
    """
    cut = splitter(language, words)
    if kind in ("1", "2"):
        return lambda reference, prediction: _runs(cut(reference), cut(prediction), int(kind))
    if kind == "l":
        return lambda reference, prediction: _longest(cut(reference), cut(prediction))
    if kind == "lsum":
        ends = _SENTENCES[language]

        def score(reference: str, prediction: str) -> PrecisionRecall:
            wanted, given = ([cut(part) for part in ends.split(text) if part] for text in (reference, prediction))
            return _union(wanted, given)

        return score
    raise ConfigError(f"unknown kind of ROUGE '{kind}': {nearest(kind, get_args(Kind))}")


def _runs(wanted: list[str], given: list[str], size: int) -> PrecisionRecall:
    one, other = (Counter(zip(*(words[at:] for at in range(size)), strict=False)) for words in (wanted, given))
    return _shares((one & other).total(), one.total(), other.total())


def _longest(wanted: list[str], given: list[str]) -> PrecisionRecall:
    return _shares(subsequence(wanted, given), len(wanted), len(given))


def _union(wanted: list[list[str]], given: list[list[str]]) -> PrecisionRecall:
    """Hits of each wanted sentence in any given one; a word counts no more often than both texts have it."""
    left = Counter(word for sentence in wanted for word in sentence)
    right = Counter(word for sentence in given for word in sentence)
    sizes = left.total(), right.total()
    hits = 0
    for sentence in wanted:
        found = sorted({place for other in given for place in places(sentence, other)})
        for word in (sentence[place] for place in found):
            if left[word] > 0 and right[word] > 0:
                hits += 1
                left[word] -= 1
                right[word] -= 1
    return _shares(hits, *sizes)


def _shares(common: int, wanted: int, given: int) -> PrecisionRecall:
    return PrecisionRecall(common / max(1, given), common / max(1, wanted))
