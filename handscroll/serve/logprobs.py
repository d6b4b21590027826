"""Log-probabilities in the two forms of OpenAI's interface."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from handscroll.generate.chooser import Scored
from handscroll.generate.stream import TextStream
from handscroll.serve.models import Served


def of_chat(served: Served, number: int, scored: Scored, top: int) -> dict[str, Any]:
    """One token as /v1/chat/completions tells it."""
    likeliest = [_told(served, *pair) for pair in scored.top[:top]]
    return {**_told(served, number, scored.logprob), "top_logprobs": likeliest}


class Offsets:
    """Where the text of each token begins in a whole, after the tokens `before` and `start` characters.

    Special tokens have no text, and all tokens of one character begin where it does.
    """

    def __init__(self, served: Served, before: Sequence[int] = (), start: int = 0):
        self._stream, self._at = TextStream(served.loaded.tokenizer, before), start

    def take(self, number: int, end: int) -> int:
        """The place of the next token, at most `end`: the text may be cut at a stop string, or written differently."""
        found, self._at = self._at, self._at + len(self._stream.push(number))
        return min(found, end)


def of_completion(
    served: Served, numbers: Sequence[int], scored: Sequence[Scored | None], top: int, offsets: Sequence[int]
) -> dict[str, Any]:
    """Tokens as /v1/completions tells them; `offsets` are where their texts begin in the whole.

    The first token of a text has no probability. Two of the likeliest tokens that are written alike count as the
    likelier one.
    """
    word = cache(lambda number: served.loaded.tokenizer.decode([number], special=True))
    tokens = [word(number) for number in numbers]
    tops: list[dict[str, float] | None] = []
    for token, one in zip(tokens, scored, strict=True):
        likeliest: dict[str, float] = {}
        for number, logprob in () if one is None else one.top[:top]:
            likeliest.setdefault(word(number), logprob)
        if one is not None and top:
            likeliest.setdefault(token, one.logprob)
        tops.append(None if one is None else likeliest)
    return {
        "tokens": tokens,
        "token_logprobs": [None if one is None else one.logprob for one in scored],
        "top_logprobs": tops if top else None,
        "text_offset": list(offsets),
    }


def _told(served: Served, number: int, logprob: float) -> dict[str, Any]:
    spelled = served.spelling
    word = spelled[number] if number < len(spelled) else None
    token = served.loaded.tokenizer.decode([number], special=True)
    return {"token": token, "logprob": logprob, "bytes": None if word is None else list(word)}
