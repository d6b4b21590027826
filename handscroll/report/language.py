"""The language of a report page: English texts are the keys, `chinese.py` holds the other ones.

A page is made and rendered while its language is spoken, so neither sections nor plots carry it as an argument.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from handscroll.base.errors import ConfigError, nearest
from handscroll.report.chinese import CHINESE

LANGUAGES = {"en": "en", "zh": "zh-Hans"}  # and how HTML names them
_SPOKEN = ContextVar("language of the page", default="en")


@contextmanager
def speaking(language: str) -> Iterator[None]:
    """Within, `say` speaks this language.

    Raises:
        ConfigError: a language that no page is written in.
    """
    if language not in LANGUAGES:
        raise ConfigError(f"unknown language '{language}': {nearest(language, LANGUAGES)}")
    before = _SPOKEN.set(language)
    try:
        yield
    finally:
        _SPOKEN.reset(before)


def say(text: str, **values: Any) -> str:
    """A text in the language of the page, with values in its places ({name}).

    >>> say("{count} texts", count=3)
    '3 texts'
    """
    said = CHINESE.get(text, text) if _SPOKEN.get() == "zh" else text
    return said.format(**values) if values else said


def spoken() -> str:
    """The language that is spoken."""
    return _SPOKEN.get()


def listed(parts: Sequence[str]) -> str:
    """Parts as a list in a sentence: "a, b and c".

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    comma, last = ("、", "和") if _SPOKEN.get() == "zh" else (", ", " and ")
    return last.join([comma.join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)


def joined(sentences: Sequence[str]) -> str:
    """Sentences of one paragraph; Chinese ones stand without blanks."""
    return ("" if _SPOKEN.get() == "zh" else " ").join(one for one in sentences if one)
