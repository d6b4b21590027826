"""Counts signs of poor text quality, with an example of each. It does not judge the text."""

import re
from dataclasses import dataclass

import numpy as np

from handscroll.data.survey.letters import CONTROL, ODD

LONG_LINE = 10_000  # characters
SHORT = 100  # characters of a document
# UTF-8 read as Latin-1 or cp1252, twice-decoded Chinese (GBK), and uninitialised memory of Windows compilers.
_MOJIBAKE = re.compile(
    "[\u00c2\u00c3][\u0080-\u00bf]|\u00e2\u20ac[\u2122\u0153\u009d\u201c\u201d\u00a6\u02dc]|\u00ef\u00bb\u00bf|锟斤拷|烫烫烫|屯屯屯"
)
MARKUP = re.compile(
    r"</?(?:div|span|p|br|table|tr|td|a|img|script|font|b|i)\b[^<>\n]{0,200}>|&(?:nbsp|amp|lt|gt|quot);", re.I
)
_BOILERPLATE = re.compile(
    r"project gutenberg|all rights reserved|terms of (?:use|service)|privacy policy|cookie policy|enable javascript|"
    r"lorem ipsum|subscribe to our|click here|版权所有|未经授权|点击(?:这里|此处)|关注我们|本站声明",
    re.I,
)
WHAT = {
    "control characters": "characters below U+0020 or between U+007F and U+009F, except tab and line ends",
    "odd characters": "U+FFFD (bytes that could not be decoded), zero-width and private characters",
    "mojibake": "text decoded with the wrong encoding (Ã©, â€™, 锟斤拷)",
    "markup": "HTML tags or entities left in the text",
    "boilerplate": "phrases from licences, web pages and placeholder text",
    "very long lines": f"lines of more than {LONG_LINE:,} characters",
    "few letters": "parts in which fewer than half of the characters are letters (spaces do not count)",
    "short documents": f"documents of fewer than {SHORT} characters",
}


@dataclass
class Sign:
    """The number of times that a sign was seen, the number of documents with it, and the first of these documents."""

    count: int = 0
    documents: int = 0
    example: str = ""
    last: int = -1

    def add(self, count: int, document: int, source: str) -> None:
        """Count the sign `count` times in a document."""
        if not count:
            return
        self.example = self.example or source
        self.count += count
        self.documents += self.last != document
        self.last = document


def signs_of(text: str, scripts: np.ndarray) -> dict[str, int]:
    """The count of each sign in one part of a document; `scripts` (16,) counts its characters (`letters.SCRIPTS`)."""
    found = {"control characters": int(scripts[CONTROL]), "odd characters": int(scripts[ODD])}
    for name, pattern in (("mojibake", _MOJIBAKE), ("markup", MARKUP), ("boilerplate", _BOILERPLATE)):
        found[name] = sum(1 for _ in pattern.finditer(text))
    solid = int(scripts.sum()) - int(scripts[12])
    found["few letters"] = int(solid >= 200 and scripts[1:11].sum() < 0.5 * solid)
    return found
