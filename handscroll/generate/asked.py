"""Asks a model in its own form, as a chat by its template or as plain text, and takes several answers at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Literal

from handscroll.generate.chat import Rendered, Speaker
from handscroll.generate.decode import decode
from handscroll.generate.request import Request
from handscroll.models.model import Model
from handscroll.text.tokenizer import Tokenizer

Form = Literal["auto", "chat", "plain"]
# Some templates write the date. It is always this one, so that a model is asked as it was trained, on any day.
NOW = datetime(2024, 7, 26)


def speaker_of(tokenizer: Tokenizer, source: str, form: Form) -> Speaker | None:
    """How messages become text: by the template of the model, or None for plain text.

    Raises:
        ConfigError: the form is "chat" and the model has no template.
    """
    if form == "plain" or (form == "auto" and not tokenizer.settings.get("chat_template")):
        return None
    return _speaker(tokenizer, source)


@lru_cache(maxsize=2)
def _speaker(tokenizer: Tokenizer, source: str) -> Speaker:
    return Speaker(tokenizer, "", source)


@dataclass(frozen=True)
class Said:
    """An answer without what was thought before it; how it ended ("eos", "length", "stop"); its tokens, all of them."""

    text: str
    finish: str
    tokens: int


def replies(
    model: Model, tokenizer: Tokenizer, requests: Sequence[Request], speaker: Speaker | None, texts: Sequence[str]
) -> list[Said]:
    """The answers to requests, in order, read and written together where they can be (`decode`).

    `speaker` is whose template rendered the prompts, whose `texts` tell whether the answer begins with thinking.

    Raises:
        The errors of `decode`.
    """
    heard = [speaker.listening(Rendered([], text)) for text in texts] if speaker is not None else []
    shown = heard[0][1] if heard else tokenizer
    parts: list[list[str]] = [[] for _ in requests]
    finish, counts = [""] * len(requests), [0] * len(requests)
    for step in decode(model, requests, shown):
        for one in step:
            counts[one.row] += 1
            finish[one.row] = one.finish or ""
            if not heard:
                parts[one.row].append(one.text)
                continue
            pieces = heard[one.row][0].push(one.text, one.finish is not None)
            parts[one.row] += [piece.text for piece in pieces if not piece.thinking]
    return [Said("".join(part), end, count) for part, end, count in zip(parts, finish, counts, strict=True)]
