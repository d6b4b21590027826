"""Log-probabilities in the two forms of OpenAI's interface."""

from collections.abc import Sequence
from typing import Any

from handscroll.generate.chooser import Scored
from handscroll.serve.models import Served


def of_chat(served: Served, number: int, scored: Scored, top: int) -> dict[str, Any]:
    """One token as /v1/chat/completions tells it."""
    likeliest = [_told(served, *pair) for pair in scored.top[:top]]
    return {**_told(served, number, scored.logprob), "top_logprobs": likeliest}


def of_completion(
    served: Served, numbers: Sequence[int], scored: Sequence[Scored | None], top: int, start: int
) -> dict[str, Any]:
    """Tokens as /v1/completions tells them; `start` is where their text begins in the whole.

    The first token of a text has no probability. Two of the likeliest tokens that are written alike count as the
    likelier one.
    """
    decode = served.loaded.tokenizer.decode
    tokens = [decode([number], special=True) for number in numbers]
    tops: list[dict[str, float] | None] = []
    for token, one in zip(tokens, scored, strict=True):
        likeliest: dict[str, float] = {}
        for number, logprob in () if one is None else one.top[:top]:
            likeliest.setdefault(decode([number], special=True), logprob)
        if one is not None and top:
            likeliest.setdefault(token, one.logprob)
        tops.append(None if one is None else likeliest)
    offsets = []
    for token in tokens:
        offsets.append(start)
        start += len(token)
    return {
        "tokens": tokens,
        "token_logprobs": [None if one is None else one.logprob for one in scored],
        "top_logprobs": tops if top else None,
        "text_offset": offsets,
    }


def _told(served: Served, number: int, logprob: float) -> dict[str, Any]:
    spelled = served.spelling
    word = spelled[number] if number < len(spelled) else None
    token = served.loaded.tokenizer.decode([number], special=True)
    return {"token": token, "logprob": logprob, "bytes": None if word is None else list(word)}
