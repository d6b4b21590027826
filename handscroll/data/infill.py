"""Filling a gap in the middle (Bavarian et al. 2022, arXiv:2207.14255): a text with a hole, as code models read it.

The model reads what stands before and after the hole, marked by tokens of its own, and then writes the middle and its
end token. Only the middle and the end are trained.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

import numpy as np

from handscroll.base.errors import ConfigError, DataError
from handscroll.data.encoded import Encoded
from handscroll.text.document import Document
from handscroll.text.tokenizer import Tokenizer

# The names of the tokens before prefix, suffix and middle, and of the one that ends the middle ("": the tokenizer's).
NAMES = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|endoftext|>"),  # Qwen
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|file_separator|>"),  # CodeGemma
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", ""),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<|endoftext|>"),  # StarCoder, Granite
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>", ""),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>", ""),  # SantaCoder
    ("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"),  # CodeLlama
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>", ""),  # DeepSeek-Coder
)
Order = Literal["psm", "spm"]
EXCERPT = "an excerpt of whole lines, since its file is longer than a row"


class Hole(NamedTuple):
    """A text in three parts."""

    prefix: str
    middle: str
    suffix: str


@dataclass(frozen=True)
class Cuts:
    """How texts are cut: at lines or characters, the most of them in a middle (0: any), holes in each text, order."""

    level: Literal["line", "character"] = "line"
    most: int = 0
    each: int = 1
    order: Order = "psm"


@dataclass(frozen=True)
class Infill:
    """The tokens with which one model fills holes. `end` ends a middle."""

    tokenizer: Tokenizer
    prefix: int
    suffix: int
    middle: int
    end: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Self:
        """The tokens of a model that has them.

        Raises:
            ConfigError: it has none.
        """
        known = {name: number for number, name in enumerate(tokenizer.words) if name is not None}
        for *marks, end in NAMES:
            last = known.get(end) if end else tokenizer.eos
            if all(name in known for name in marks) and last is not None:
                prefix, suffix, middle = (known[name] for name in marks)
                return cls(tokenizer, prefix, suffix, middle, last)
        raise ConfigError(
            "the tokenizer has no tokens for filling in the middle (such as <|fim_prefix|>, <|fim_suffix|>, "
            "<|fim_middle|>): the model was not made for it. Take a code model that has them (Qwen2.5-Coder, "
            "StarCoder, CodeLlama, DeepSeek-Coder), or let it continue the text before the hole"
        )

    def prompt(self, prefix: str, suffix: str, order: Order = "psm") -> list[int]:
        """What the model reads before it writes the middle; tokens that are written in the texts stay text.

        In the order "psm" prefix, suffix, middle follow each other; in "spm" the middle goes on from the prefix without
        a token between them.

        Raises:
            ConfigError: an unknown order.
        """
        if order not in ("psm", "spm"):
            raise ConfigError(f"order {order!r}; allowed are 'psm' (prefix first) and 'spm' (suffix first)")
        before, _ = self.tokenizer.frame()
        first, second = self._plain(prefix), self._plain(suffix)
        if order == "psm":
            return [*before, self.prefix, *first, self.suffix, *second, self.middle]
        return [*before, self.prefix, self.suffix, *second, self.middle, *first]

    def encode(self, hole: Hole, order: Order = "psm", place: str = "", note: str = "") -> Encoded:
        """A hole and what fills it. Its three parts are encoded apart, as when the model is asked.

        Raises:
            DataError: the middle is empty.
        """
        asked, said = self.prompt(hole.prefix, hole.suffix, order), self._plain(hole.middle)
        if not said:
            raise DataError(f"{place}: the middle is empty")
        return Encoded([*asked, *said, self.end], [False] * len(asked) + [True] * (len(said) + 1), place, note)

    def _plain(self, text: str) -> list[int]:
        """Token ids of a text in which the tokens of this class are ordinary letters."""
        marks = (self.prefix, self.suffix, self.middle, self.end)
        names = [re.escape(name) for name in map(self.tokenizer.token, marks) if name]
        ids: list[int] = []
        start = 0
        for match in re.finditer("|".join(names), text):
            ids += self.tokenizer.encode(text[start : match.start() + 1], special=False, follows=True)
            start = match.start() + 1  # a name without its first letter is no token
        return ids + self.tokenizer.encode(text[start:], special=False, follows=True)


def hole_in(text: str, drawn: np.random.Generator, level: Literal["line", "character"], most: int = 0) -> Hole | None:
    """Cut a text at two random places: between lines, or between any characters. None: it has no two places.

    `most` is the most lines, or characters, of the middle; 0 sets no limit. A middle is never blank.

    Raises:
        ConfigError: an unknown level.
    """
    if level not in ("line", "character") or most < 0:
        raise ConfigError(f"level {level!r}, most {most}: allowed are 'line' or 'character', and most >= 0")
    edges = [0, *(match.end() for match in re.finditer("\n", text))] if level == "line" else range(len(text) + 1)
    edges = [*edges, len(text)] if level == "line" and edges[-1] != len(text) else edges
    for _ in range(16):  # a blank middle is drawn again
        if len(edges) < 3:
            return None
        first = int(drawn.integers(0, len(edges) - 1))
        furthest = len(edges) - 1 if not most else min(len(edges) - 1, first + most)
        last = int(drawn.integers(first + 1, furthest + 1))
        if last - first < len(edges) - 1 and text[edges[first] : edges[last]].strip():
            return Hole(text[: edges[first]], text[edges[first] : edges[last]], text[edges[last] :])
    return None


def infill_examples(
    infill: Infill,
    documents: Iterable[Document],
    length: int,
    seed: int,
    cuts: Cuts = Cuts(),
) -> tuple[list[Encoded], list[Encoded]]:
    """`cuts.each` examples of at most `length` tokens from every document, and those that are left out.

    A document that is longer gives excerpts of whole lines, from a random line on; `note` says so. One is left out if a
    single line is longer than a row, or if it is too short for two places; it is returned with what it holds.
    """
    kept: list[Encoded] = []
    left: list[Encoded] = []
    room = length - len(infill.prompt("", "")) - 1
    for number, document in enumerate(documents):
        for turn in range(cuts.each):
            drawn = np.random.default_rng([seed, number, turn])
            made = None
            for text, note in _excerpts(infill, document.text, room, drawn):
                hole = hole_in(text, drawn, cuts.level, cuts.most)
                made = None if hole is None else infill.encode(hole, cuts.order, document.source, note)
                if made is not None and len(made) <= length:
                    break
            if made is None or len(made) > length:
                ids = infill.tokenizer.encode(document.text, special=False)
                left.append(Encoded(ids, [False] * len(ids), document.source))
            else:
                kept.append(made)
    return kept, left


def _excerpts(infill: Infill, text: str, room: int, drawn: np.random.Generator) -> Iterator[tuple[str, str]]:
    """The text, or excerpts of it of about `room` tokens, each smaller than the one before: cutting adds tokens."""
    if len(text) <= room * 8:  # more characters than that a row of this length hardly holds
        yield text, ""
    lines = text.splitlines(keepends=True)
    sizes = np.array([len(infill.tokenizer.encode(line, special=False, follows=True)) for line in lines])
    after = np.cumsum(sizes[::-1])[::-1]  # tokens from a line on
    starts = max(1, int(np.count_nonzero(after >= room)))  # the lines after which there is enough for a row
    first = int(drawn.integers(0, starts))
    count = int(np.searchsorted(np.cumsum(sizes[first:]), room, side="right"))
    for kept in range(count, max(0, count - 4), -1):
        yield "".join(lines[first : first + kept]), EXCERPT
