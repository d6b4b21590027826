"""The text of a label: one text for one label, however a file writes it."""

import json
import re
import unicodedata
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from handscroll.base.errors import DataError

_WHOLE = re.compile(r"([+-]?\d+)\.0+")


def spelled(value: Any) -> Any:
    """A value as the text of a label, written as in JSON: 1, true, good. Blanks at its ends do not count.

    Tables with an empty cell turn whole numbers into 1.0; this is 1, also where it is a text. A fraction becomes text,
    and what is no label (nothing, an object) stays as it is.
    """
    if isinstance(value, str):
        text = value.strip()
        whole = _WHOLE.fullmatch(text)
        return str(int(whole[1])) if whole else text
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return json.dumps(value) if isinstance(value, int | float) else value


def label_text(value: Any, name: str) -> str:
    """A label as text (`spelled`).

    Raises:
        DataError: it is no text, whole number or truth value, or blank.
    """
    whole = not isinstance(value, float) or value.is_integer()
    if not isinstance(value, str | int | float) or not whole:
        raise DataError(f"{name} is a {type(value).__name__}, not a label (text, a whole number, true or false)")
    label = spelled(value)
    if not label:
        raise DataError(f"no {name} (it is blank)")
    return label


def look_alike(labels: Iterable[str]) -> list[tuple[str, ...]]:
    """The labels that differ only in case, width, blanks, the normal form of their characters, or how a number is
    written."""
    found: dict[str, list[str]] = {}
    for label in dict.fromkeys(labels):
        key = " ".join(unicodedata.normalize("NFKC", label).casefold().split())
        with suppress(ValueError):
            key = repr(float(key))
        found.setdefault(key, []).append(label)
    return [tuple(same) for same in found.values() if len(same) > 1]


def alike_note(labels: Iterable[str], name: str) -> str:
    """What is said of labels that look alike; "" where there are none."""
    pairs = [" and ".join(map(repr, same)) for same in look_alike(labels)]
    what = f"{name}: labels that look alike and stay apart: {'; '.join(pairs[:10])}"
    return what + (f"; and {len(pairs) - 10:,} more" if len(pairs) > 10 else "") if pairs else ""
