"""Finds the scripts and the language of a text. Scripts are counted by character; languages are guessed."""

import unicodedata
from collections.abc import Sequence
from functools import cache

import numpy as np

SCRIPTS = (
    "other",
    "Latin",
    "Han",
    "Kana",
    "Hangul",
    "Cyrillic",
    "Greek",
    "Arabic",
    "Hebrew",
    "Indic",
    "Thai",
    "digits",
    "spaces",
    "signs",
    "control",
    "odd",
)
LETTERS = slice(1, 11)  # scripts whose characters are letters
CONTROL, ODD = SCRIPTS.index("control"), SCRIPTS.index("odd")
_RANGES = {
    "Latin": (
        *((0x41, 0x5B), (0x61, 0x7B), (0xAA, 0xAB), (0xBA, 0xBB), (0xC0, 0xD7), (0xD8, 0xF7), (0xF8, 0x250)),
        *((0x1E00, 0x1F00), (0xFF21, 0xFF3B), (0xFF41, 0xFF5B)),
    ),
    "Han": ((0x3400, 0x4DC0), (0x4E00, 0xA000), (0xF900, 0xFB00), (0x20000, 0x33480), (0x3005, 0x3008)),
    "Kana": ((0x3040, 0x3100), (0x31F0, 0x3200), (0xFF66, 0xFFA0)),
    "Hangul": ((0x1100, 0x1200), (0x3130, 0x3190), (0xAC00, 0xD7B0)),
    "Cyrillic": ((0x400, 0x530), (0x1C80, 0x1C90), (0x2DE0, 0x2E00), (0xA640, 0xA6A0)),
    "Greek": ((0x370, 0x400), (0x1F00, 0x2000)),
    "Arabic": ((0x600, 0x780), (0x8A0, 0x900), (0xFB50, 0xFE00), (0xFE70, 0xFEFF)),
    "Hebrew": ((0x590, 0x600), (0xFB1D, 0xFB50)),
    "Indic": ((0x900, 0xE00),),
    "Thai": ((0xE00, 0xE80),),
}
# A decoder writes U+FFFD for bytes that it cannot decode. Private and zero-width characters mostly come from markup.
_ODD = frozenset([0xFFFD, 0xFEFF, 0x2060, *range(0x200B, 0x2010), *range(0x202A, 0x202F)])
ENGLISH = frozenset(
    "the of and to in a is that it he was for on are as with his they at be this from i have or by one had not but "
    "what all were when we there can an your which their said if do will each about how up out them then she many "
    "some so these would other into has her him like time no could my than been its who now did made over more you "
    "me upon only very shall must any our where should such".split()
)
# A text is English if this share of its words are function words. Measured 2026-11: English books have 0.45-0.60,
# Python code has less than 0.10.
_FUNCTION = 0.25
_CODE = frozenset("{}()[];=<>_\\|&*+/")
_SIMPLE = "们个这来说时对会国过还没学样从头见书问开东长门车马风么为后发与关现经"
_FULL = "們個這來說時對會國過還沒學樣從頭見書問開東長門車馬風麼為後發與關現經"


@cache
def table() -> np.ndarray:
    """The index in `SCRIPTS` of every code point, (0x110000,) uint8."""
    found = np.zeros(0x110000, dtype=np.uint8)
    kinds = {"N": "digits", "Z": "spaces", "P": "signs", "S": "signs"}
    for code in range(0x30000):
        kind = unicodedata.category(chr(code))
        name = "control" if kind == "Cc" else "odd" if kind == "Co" else kinds.get(kind[0], "other")
        found[code] = SCRIPTS.index(name)
    for name, ranges in _RANGES.items():
        for first, last in ranges:
            letters = found[first:last]
            letters[letters == 0] = SCRIPTS.index(name)
    found[[9, 10, 13]] = SCRIPTS.index("spaces")
    found[list(_ODD)] = ODD
    found[0xF0000:] = ODD
    return found


def codes(text: str) -> np.ndarray:
    """The code points of a text, (T,) uint32."""
    return np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)


def language(text: str, scripts: np.ndarray, words: Sequence[str]) -> str:
    """A guess of the language of a text of some hundred characters or more; `scripts` (16,) counts its characters.

    Function words show English, and signs show code. Chinese is found by its script; characteristic forms decide
    between simplified and traditional. Every other text gets the name of its script.
    """
    letters = scripts[LETTERS]
    total = int(letters.sum())
    if total < 0.2 * max(1, int(scripts.sum() - scripts[SCRIPTS.index("spaces")])):
        return "no letters"
    if letters[2] > 0.05 * (letters[1] + letters[2]) and letters[1] + letters[2] > 0.5 * total:
        return "Japanese"
    most = SCRIPTS[1 + int(letters.argmax())]
    if most == "Han":
        return _chinese(text)
    if most != "Latin":
        return {"Hangul": "Korean"}.get(most, most)
    if sum(text.count(sign) for sign in _CODE) > 0.05 * len(text):
        return "code"
    latin = [word for word in words if word.isascii()]
    return "English" if sum(word in ENGLISH for word in latin) > _FUNCTION * len(latin) else "other Latin"


def _chinese(text: str) -> str:
    simple, full = (sum(map(text.count, forms)) for forms in (_SIMPLE, _FULL))
    return "Chinese, traditional" if full > simple else "Chinese, simplified"
