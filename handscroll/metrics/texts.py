"""What scores of texts share: the checks, the two languages, and the words of a text."""

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal, get_args

from handscroll.base.errors import ConfigError, DataError, nearest
from handscroll.metrics.scores import paired
from handscroll.text.words import HAN, segmenter

Language = Literal["en", "zh"]
Words = Literal["characters", "jieba"]
Pairs = list[tuple[list[str], str]]

_HAN = re.compile(f"[{HAN}]")
_ENGLISH = re.compile(r"[a-z0-9]+")
_CHINESE = re.compile(rf"[{HAN}]|[^\W_{HAN}]+")
_CHINESE_RUNS = re.compile(rf"[{HAN}]+|[^\W_{HAN}]+")


def pairs(references: Sequence[Any], predictions: Sequence[Any], empty: bool = False) -> Pairs:
    """(references, prediction) of every example; a reference is a text or several. `empty` allows an empty reference,
    which says that there is no answer.

    Raises:
        DataError: counts that differ, no examples, what is not text, a reference that is missing or empty.
    """
    paired(references, predictions)
    found = []
    for number, (wanted, given) in enumerate(zip(references, predictions, strict=True)):
        several = [wanted] if isinstance(wanted, str) else wanted
        if not isinstance(several, list | tuple) or not several or not all(isinstance(one, str) for one in several):
            raise DataError(f"reference {number} is {wanted!r}; give a text, or a list of texts that are all right")
        if not isinstance(given, str):
            raise DataError(f'prediction {number} is {given!r}, not a text; write "" where the model gave none')
        if not empty and not all(one.strip() for one in several):
            raise DataError(
                f"reference {number} has an empty text, with which no prediction can be compared; leave the example out"
            )
        found.append((list(several), given))
    return found


def check_language(language: str) -> None:
    """
    Raises:
        ConfigError: a language that no score of texts knows.
    """
    if language not in get_args(Language):
        raise ConfigError(f"unknown language '{language}': {nearest(language, get_args(Language))}")


def language_of(texts: Sequence[str]) -> Language:
    """ "zh" where at least half of the letters that tell a language are Chinese characters, else "en"."""
    return language_told(texts) or "en"


def language_told(texts: Sequence[str]) -> Language | None:
    """The language that the letters of texts tell; None where there is no letter.

    Digits tell none, and words in capitals alone (WTO, GPT4), which stand in texts of both languages, only where there
    is nothing else.
    """
    letters = capitals = chinese = 0
    for text in texts:
        for run in _CHINESE_RUNS.findall(text):
            if _HAN.match(run):
                chinese += len(run)
            elif run.isupper():
                capitals += sum(map(str.isalpha, run))
            else:
                letters += sum(map(str.isalpha, run))
    if not letters and not chinese:
        return "en" if capitals else None
    return "zh" if chinese >= letters else "en"


def splitter(language: str, words: str = "characters") -> Callable[[str], list[str]]:
    """What cuts a text into words, in small letters and without punctuation.

    English words are runs of a-z and 0-9, as rouge-score cuts them. Chinese ones are single characters or words of
    jieba (an optional package), and runs of other letters and digits.

    Raises:
        ConfigError: an unknown language or kind of words, jieba for English, or jieba is not installed.
    """
    check_language(language)
    if words not in get_args(Words):
        raise ConfigError(f"unknown kind of words '{words}': {nearest(words, get_args(Words))}")
    if language == "en":
        if words == "jieba":
            raise ConfigError("jieba cuts Chinese: give the language zh, or the words 'characters'")
        return lambda text: _ENGLISH.findall(text.lower())
    if words == "characters":
        return lambda text: _CHINESE.findall(text.lower())
    return _by_jieba()


@cache
def _by_jieba() -> Callable[[str], list[str]]:
    _, jieba = segmenter("words of Chinese texts need", "or count characters")

    def cut(text: str) -> list[str]:
        runs = _CHINESE_RUNS.findall(text.lower())
        return [word for run in runs for word in (jieba.cut(run) if _HAN.match(run) else [run])]

    return cut
