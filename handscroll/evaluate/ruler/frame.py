"""What a template puts around a text and its question: nothing, or a user's turn of the model's own chat template."""

from dataclasses import dataclass

from handscroll.evaluate.ruler.bench import Piece
from handscroll.generate.asked import NOW
from handscroll.generate.chat import Speaker
from handscroll.generate.prefill import shared_beginning
from handscroll.text.tokenizer import Tokenizer

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
    one, other = (speaker.render([{"role": "user", "content": word}], now=NOW) for word in _PROBES)
    first = shared_beginning(one.ids, other.ids)
    last = shared_beginning(one.ids[first:][::-1], other.ids[first:][::-1])
    before, after = one.ids[:first], one.ids[len(one.ids) - last :]
    text_before, _, text_after = one.text.rpartition(_PROBES[0])
    return Frame(Piece(text_before, before), Piece(text_after, after), chat=True)
