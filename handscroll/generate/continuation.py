"""Complete answers with their text, tokens, end reason and log-probabilities."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from handscroll.generate.beam import Beams, Hypothesis, beam_search
from handscroll.generate.chooser import NewToken, Scored
from handscroll.generate.decode import decode
from handscroll.generate.request import Request
from handscroll.generate.stream import Decodes, TextStream
from handscroll.models.model import Model
from handscroll.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Continuation:
    """One continuation of a prompt.

    `text` follows directly after the prompt, and ends before a stop string; `tokens` are all generated tokens. `finish`
    is "eos", "stop", "complete" (nothing can follow under the constraint) or "length". `scored` has one entry a token
    if the request asked for log-probabilities. `score` is the score of beam search.
    """

    text: str
    tokens: tuple[int, ...]
    finish: str
    scored: tuple[Scored, ...] = ()
    score: float | None = None


def continuations(model: Model, tokenizer: Decodes, request: Request) -> list[Continuation]:
    """All samples of a request, in order."""
    rows = [list[NewToken]() for _ in range(request.samples)]
    for step in decode(model, [request], tokenizer):
        for item in step:
            rows[item.row].append(item)
    return [
        Continuation(
            "".join(item.text for item in row),
            tuple(item.token for item in row),
            row[-1].finish or "",
            tuple(item.scored for item in row if item.scored is not None),
        )
        for row in rows
    ]


def streamed(model: Model, tokenizer: Decodes, request: Request) -> Iterator[str]:
    """The new text of a request, piece by piece; impossible requests are refused here, not at the first piece."""
    steps = decode(model, [request], tokenizer)
    return (item.text for step in steps for item in step if item.text)


def searched(model: Model, tokenizer: Decodes, request: Request, settings: Beams) -> list[Continuation]:
    """The continuations that beam search finds, best first, with their scores."""
    return [
        Continuation(_text_of(tokenizer, request.prompt, item), item.tokens, item.finish, score=item.score)
        for item in beam_search(model, request, settings)
    ]


def told(tokenizer: Tokenizer, tokens: Sequence[int], scored: Sequence[Scored]) -> list[dict[str, Any]]:
    """Log-probabilities as JSON: each token with its text, and the likeliest tokens at its place."""

    def one(number: int, logprob: float) -> dict[str, Any]:
        return {"token": tokenizer.decode([number], special=True), "id": number, "logprob": logprob}

    return [
        one(number, some.logprob) | {"top": [one(*pair) for pair in some.top]}
        for number, some in zip(tokens, scored, strict=True)
    ]


def _text_of(tokenizer: Decodes, prompt: Sequence[int], found: Hypothesis) -> str:
    """The text of a hypothesis, without the token that ends it."""
    stream = TextStream(tokenizer, prompt)
    tokens = found.tokens[:-1] if found.finish == "eos" else found.tokens
    return "".join([*(stream.push(token) for token in tokens), stream.finish()])
