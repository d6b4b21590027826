"""/v1/models/{name}/report: what a model finds in a long text, measured while somebody waits (`evaluate/brief.py`)."""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response

from handscroll.base.errors import CapacityError
from handscroll.cache.table import DEFAULT, footprint
from handscroll.evaluate.brief import LEAST, Brief, MeasuredOn, brief, measured_on
from handscroll.evaluate.haystack import haystack
from handscroll.plan.choose import gigabytes
from handscroll.plan.machine import spare
from handscroll.serve.answering import place
from handscroll.serve.documents.eta import seconds_left
from handscroll.serve.errors import ApiError, ClientGoneError
from handscroll.serve.keys import Owner
from handscroll.serve.models import Served
from handscroll.serve.policy import policy
from handscroll.serve.schemas.others import ReportRequest
from handscroll.serve.serving import Serving, of
from handscroll.serve.streaming import Events

router = APIRouter()
USUAL = 2048  # tokens of the longest text where the request names none
OWN = "modules of Python's standard library"  # the text where the request names no document
LOOK = 0.25  # seconds between two looks at how far it is


@router.post("/v1/models/{name:path}/report")
@policy("key", takes="answer")
async def report(name: str, body: ReportRequest, request: Request) -> Response:
    """Needles and the loss by position: events with the tokens read so far, then one with the records."""
    serving, owner = of(request)
    served = serving.models.find(name)
    served.writing  # noqa: B018 - refuses a model that is not ready or writes no text
    longest = body.longest or max(LEAST, min(USUAL, served.loaded.context))
    if longest > served.loaded.context:
        why = f"longest is {longest:,} tokens and the context of '{name}' {served.loaded.context:,}: ask for less"
        raise ApiError(400, why, "context_length_exceeded", "longest")
    how = Brief(longest=longest, needles=body.needles)
    _afford(served, how)
    text = await serving.prepare(partial(_measured_on, serving, owner.number, served, body.document, longest))
    return Events(_events(serving, owner, served, text, how), place(serving, owner, 1))


def _afford(served: Served, how: Brief) -> None:
    """Refuse what the free memory does not hold: the text before a needle, and the rows that go on from it.

    Raises:
        CapacityError: there is less memory.
    """
    model, tokens = served.loaded.model, how.longest + max(how.longest, how.grid().batch_tokens)
    needed = footprint(DEFAULT, model.config, model.cache_dtype.itemsize).held(tokens)
    free = spare(model.device)[0]
    if needed > free:
        raise CapacityError(
            f"a report on texts of {how.longest:,} tokens takes {gigabytes(needed)} for keys and values, and "
            f"{gigabytes(free)} are free: ask for a shorter one"
        )


def _measured_on(serving: Serving, owner: str, served: Served, document: str | None, longest: int) -> MeasuredOn:
    """The document that is named, or code that everybody has. It is encoded here and not where answers are computed."""
    tokenizer = served.loaded.tokenizer
    if document is None:
        return MeasuredOn(OWN, haystack(tokenizer, None, 2 * longest, most=2 * longest), "en")
    entry = serving.shelf.get(owner, document)
    return measured_on(tokenizer, entry.name, serving.shelf.text(entry).text)


async def _events(
    serving: Serving, owner: Owner, served: Served, text: MeasuredOn, how: Brief
) -> AsyncGenerator[dict[str, Any]]:
    """How far the work is, four times a second, and its records; it ends when nobody listens any more."""
    gone, chunks = threading.Event(), [(0, 0, 0.0)]
    work = serving.worker.begin(partial(_measured, serving, served, text, how, gone, chunks))
    try:
        while not work.done():
            done = chunks[-1][1]
            left = seconds_left(chunks[1:], max(how.tokens, done)) if done else None
            yield {"done": done, "total": max(how.tokens, done), "seconds_left": left}
            await asyncio.sleep(LOOK)
        yield {"model": served.name, "text": text.name, "records": work.result()}
    finally:
        gone.set()
        work.cancel()  # if it still waits for its turn
        serving.admission.use(owner, chunks[-1][1])


def _measured(
    serving: Serving,
    served: Served,
    text: MeasuredOn,
    how: Brief,
    gone: threading.Event,
    chunks: list[tuple[int, int, float]],
) -> list[dict[str, Any]]:
    """Runs on the thread that computes; after every chunk answers and explanations of others have their turns."""
    last = time.monotonic()

    def on_read(count: int) -> None:
        nonlocal last
        if gone.is_set() or serving.worker.stopping:
            raise ClientGoneError
        spent, before = time.monotonic() - last, chunks[-1][1]
        chunks.append((before, before + count, spent))
        serving.worker.breathe(spent)
        serving.worker.give_way()
        last = time.monotonic()

    return brief(served.loaded, text, how, on_read)
