"""Whole answers with everything known of them: text, tokens, why they ended, log-probabilities."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from handscroll.generate.decode import decode
from handscroll.generate.rows import NewToken, Scored
from handscroll.generate.sample import Sampling
from handscroll.generate.stream import Decodes, TextStream
from handscroll.models.model import Model


@dataclass(frozen=True)
class Continuation:
    """One continuation of a prompt.

    `text` goes on where the prompt's ends, without what a stop string began; `tokens` are all that were generated.
    `finish` is "eos", "stop", "complete" (nothing can follow under the constraint) or "length". `scored` has one entry
    a token if log-probabilities were asked for. `score` is beam search's.
    """

    text: str
    tokens: tuple[int, ...]
    finish: str
    scored: tuple[Scored, ...] = ()
    score: float | None = None


def continuations(
    model: Model, tokenizer: Decodes, prompt: Sequence[int], sampling: Sampling, samples: int = 1, **how: Any
) -> list[Continuation]:
    """All `samples` of a prompt that is not empty, in the order of their rows; `how` is passed on to `decode`."""
    streams = [TextStream(tokenizer, before(model, prompt), sampling.stop) for _ in range(samples)]
    texts, rows = [""] * samples, [list[NewToken]() for _ in range(samples)]

    def push(row: int, token: int) -> bool:
        texts[row] += streams[row].push(token)
        return streams[row].stopped is not None

    for step in decode(model, [prompt], sampling, model.config.eos, push, samples=samples, **how):
        for item in step:
            rows[item.row].append(item)
    return [
        Continuation(
            text + stream.finish(),
            tuple(item.token for item in row),
            row[-1].finish or "",
            tuple(item.scored for item in row if item.scored is not None),
        )
        for text, stream, row in zip(texts, streams, rows, strict=True)
    ]


def before(model: Model, prompt: Sequence[int]) -> Sequence[int]:
    """The tokens that new ones go on from as text; those of an encoder-decoder begin a text of their own."""
    return () if model.spec.encoder else prompt


def text_of(tokenizer: Decodes, prompt: Sequence[int], tokens: Sequence[int]) -> str:
    """The text of `tokens` where they follow `prompt`."""
    stream = TextStream(tokenizer, prompt)
    return "".join([*(stream.push(token) for token in tokens), stream.finish()])


def streamed(
    model: Model, tokenizer: Decodes, ids: Sequence[int], sampling: Sampling, how: dict[str, Any]
) -> Iterator[str]:
    """The new text of one prompt, piece by piece; what is impossible is refused here and not at the first piece.

    `how` are further arguments of `decode`.
    """
    text = TextStream(tokenizer, before(model, ids), sampling.stop)
    pieces: list[str] = []

    def push(row: int, token: int) -> bool:
        pieces.append(text.push(token))
        return text.stopped is not None

    steps = decode(model, [ids], sampling, model.config.eos, push, **how)

    def flow() -> Iterator[str]:
        for _ in steps:
            yield from pieces
            pieces.clear()
        yield text.finish()

    return flow()
