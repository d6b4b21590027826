"""The log-probabilities of prompts themselves (echo), as evaluations by /v1/completions need them."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import NamedTuple

from torch import Tensor

from handscroll.generate.chooser import Chooser, Scored, next_tokens
from handscroll.generate.request import Request
from handscroll.generate.score import scored
from handscroll.serve.answering import FINISH, Asked, Said
from handscroll.serve.charging import Pieces
from handscroll.serve.models import Served
from handscroll.serve.worker import Token, Worker

SHORT = 512  # tokens of a prompt that is scored in one piece


class Echo(NamedTuple):
    """Log-probabilities of all tokens of a prompt but its first. `whole`: `said` is all of the answer too."""

    scored: list[Scored]
    said: list[Said]
    whole: bool


async def echoes(worker: Worker, served: Served, asked: Sequence[Asked], most: int, pieces: Pieces) -> list[Echo]:
    """The echoes of some prompts. An answer of at most one token is chosen at once, since its logits are there."""
    return [
        await _run(worker, one)(partial(_echo, served, (number, one, most), pieces)) for number, one in enumerate(asked)
    ]


def _run(worker: Worker, asked: Asked) -> Callable[[Callable[[], Echo]], Awaitable[Echo]]:
    """How a prompt is scored: a short one between two steps, so that it waits for no document; others as long work."""
    return worker.call if len(asked.prompt.ids) <= SHORT else worker.long


def _echo(served: Served, work: tuple[int, Asked, int], pieces: Pieces) -> Echo:
    pieces.begin()
    (number, asked, most), before = work, 0

    def on_read(done: int) -> None:
        nonlocal before
        piece, before = done - before, done
        pieces.took(piece, breathes=len(asked.prompt.ids) > SHORT)

    request = asked.requests[0]
    known, logits = scored(served.loaded.model, asked.prompt.ids, request.logprobs or 0, on_read)
    if most > 1 or len(asked.requests) > 1:
        return Echo(known, [], False)
    return Echo(known, [_next(request, served, number, logits)] if most else [], True)


def _next(request: Request, served: Served, number: int, logits: Tensor) -> Said:
    """The one token of an answer."""
    chooser = Chooser(request, served.loaded.model, tokenizer=served.loaded.tokenizer)
    (token,) = next_tokens([chooser], logits)
    new = chooser.take(token, logits[0])
    assert new.scored is not None and new.finish is not None, "requests of the server ask for both"
    made = Token(new.token, new.text, new.scored, new.finish)
    return Said(number, new.text, "", made, FINISH[new.finish])
