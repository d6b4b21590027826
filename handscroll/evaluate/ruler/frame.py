"""What a template puts around a text and its question: nothing, or a user's turn of the model's own chat template."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from handscroll.evaluate.ruler.bench import Piece
from handscroll.generate.chat import Speaker
from handscroll.text.tokenizer import Tokenizer

# Templates that write the date get this one, so that a sample has the same tokens on every day.
DAY = datetime(2026, 1, 1)
_PROBES = ("What", "谁")


@dataclass(frozen=True)
class Frame:
    """Token ids before the text, and between the question and the beginning of the answer."""

    before: Piece
    after: Piece
    chat: bool = False


def plain(tokenizer: Tokenizer) -> Frame:
    """A text that is continued: what the tokenizer puts before a text, if it does, and nothing else."""
    before, _ = tokenizer.frame()
    return Frame(Piece("", list(before)), Piece("", []))


def chat(speaker: Speaker) -> Frame:
    """A user's turn that holds text and question, up to where the answer begins.

    The two sides of the turn are what renderings of two different contents share.
    """
    one, other = (speaker.render([{"role": "user", "content": word}], now=DAY) for word in _PROBES)
    first = _shared(one.ids, other.ids, lambda ids, at: ids[at])
    last = _shared(one.ids, other.ids, lambda ids, at: ids[-1 - at])
    before, after = one.ids[:first], one.ids[len(one.ids) - last :] if last else []
    text_before, _, text_after = one.text.partition(_PROBES[0])
    return Frame(Piece(text_before, before), Piece(text_after, after), chat=True)


def _shared(one: list[int], other: list[int], get: Callable[[list[int], int], int]) -> int:
    """How many tokens two lists share, counted as `get` walks."""
    most = min(len(one), len(other))
    return next((at for at in range(most) if get(one, at) != get(other, at)), most)
