"""Tells apart, in an answer as it arrives, what a reasoning model thinks and what it says."""

from collections.abc import Iterator
from typing import NamedTuple

# What stands around the thinking, in the order in which it is looked for in a template. The first pair is so usual
# that an answer which begins with it counts as thinking even if the template does not name it.
PAIRS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("◁think▷", "◁/think▷"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
)


class Piece(NamedTuple):
    """Some text of an answer, and whether it is part of the thinking."""

    text: str
    thinking: bool = False


class Thinking:
    """Splits one answer; `prompt` is the rendered text that it continues, `template` the source of the template."""

    def __init__(self, template: str, prompt: str = ""):
        self.open, self.close = next((pair for pair in PAIRS if pair[1] in template), PAIRS[0])
        self._inside = prompt.rstrip().endswith(self.open)  # some templates begin the thinking themselves
        self._begun = self._inside  # whether something was said or thought: an answer can only begin with thinking
        self._fresh = True  # whether blanks are dropped: at the start of the thinking, and between it and the answer
        self._held = ""

    def push(self, text: str, final: bool = False) -> Iterator[Piece]:
        """The pieces that `text` completes; the beginning of a mark is held back unless the text is `final`."""
        self._held += text
        if not self._begun and not final and self.open.startswith(self._held.lstrip()):
            return
        if not self._begun:
            self._begun = True
            rest = self._held.lstrip()
            if rest.startswith(self.open):
                self._inside, self._held = True, rest.removeprefix(self.open)
            else:
                self._fresh = False
        if self._inside and self.close in self._held:
            thought, _, self._held = self._held.partition(self.close)
            yield from self._given(thought.rstrip(), True)
            self._inside, self._fresh = False, True
        kept = "" if final else self._unsure()
        ready, self._held = self._held[: len(self._held) - len(kept)], kept
        yield from self._given(ready, self._inside)

    def _unsure(self) -> str:
        """The end of the held text that may begin the closing mark, with the blanks before it."""
        if not self._inside:
            return ""
        sizes = range(min(len(self.close) - 1, len(self._held)), 0, -1)
        begun = next((n for n in sizes if self._held.endswith(self.close[:n])), 0)
        sure = self._held[: len(self._held) - begun]
        return self._held[len(sure.rstrip()) :]

    def _given(self, text: str, thinking: bool) -> Iterator[Piece]:
        if self._fresh:
            text = text.lstrip()
        if text:
            self._fresh = False
            yield Piece(text, thinking)
