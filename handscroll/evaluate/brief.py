"""A short report of a model for somebody who waits: needles hidden in a text, and the loss by position on that text.

It is the needle grid and the loss curve of the full evaluation (`needle.py`, `perplexity.py`) with few cells and one
window, so its records are theirs.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from pydantic import Field

from handscroll.base.config import Config
from handscroll.evaluate.needle import NeedleGrid, needle_grid, planned_tokens
from handscroll.evaluate.perplexity import Losses, token_nll
from handscroll.evaluate.samples import Sample
from handscroll.lm import LM
from handscroll.text.tokenizer import Tokenizer
from handscroll.text.words import HAN

DEPTHS = (0.1, 0.5, 0.9)
LEAST = 512  # tokens of the longest prompt: a quarter of it still has room for needle and question
_HAN = re.compile(f"[{HAN}]")


class Brief(Config):
    """`needles` are hidden at each of three depths, in texts of a quarter, a half and all of `longest` tokens."""

    longest: int = Field(default=2048, ge=LEAST)
    needles: int = Field(default=2, ge=1, le=16)
    seed: int = 0

    def grid(self, language: Literal["en", "zh"] = "en") -> NeedleGrid:
        """The cells."""
        lengths = (self.longest // 4, self.longest // 2, self.longest)
        few = {"samples": self.needles, "haystacks": 1, "seed": self.seed, "language": language}
        return NeedleGrid(lengths=lengths, depths=DEPTHS, **few)

    @property
    def tokens(self) -> int:
        """About how many tokens are read."""
        return planned_tokens(self.grid()) + self.longest


class MeasuredOn(NamedTuple):
    """The text of a report: its name, its token ids without special tokens, and the language of the questions."""

    name: str
    ids: Sequence[int]
    language: Literal["en", "zh"]


def measured_on(tokenizer: Tokenizer, name: str, text: str) -> MeasuredOn:
    """A text, encoded; one that is mostly Chinese is asked about in Chinese."""
    chinese = len(_HAN.findall(text)) > len(text) / 4
    return MeasuredOn(name, tokenizer.encode(text, special=False), "zh" if chinese else "en")


def brief(lm: LM, text: MeasuredOn, how: Brief, on_read: Callable[[int], None] | None = None) -> list[dict[str, Any]]:
    """The records of a report: of kind "needle", and of kind "perplexity" for the first `how.longest` tokens of `text`.

    `on_read(count)` is called after every chunk of `count` tokens.

    Raises:
        DataError: the text is shorter than `how.longest` tokens. ConfigError: the model does not read forward.
        CapacityError: a length exceeds a learned position table.
    """
    needles = needle_grid(lm, text.ids, how.grid(text.language), "needles", on_read=on_read)
    before, _ = lm.tokenizer.frame()
    sample = Sample([*before, *text.ids][: how.longest], text.name, 0)
    read = 0

    def counted(done: int) -> None:
        nonlocal read
        if on_read is not None:
            on_read(done - read)
        read = done

    losses = Losses("exact", token_nll(lm, sample.ids, on_read=counted)[None], [sample])
    return [needles, losses.record(lm)]
