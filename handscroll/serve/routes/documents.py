"""/v1/documents: upload, list, follow the reading, ask, delete. A document of another owner does not exist."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Path, Request, Response, UploadFile
from fastapi.responses import JSONResponse

from handscroll.base.errors import CheckpointError
from handscroll.serve.answering import place
from handscroll.serve.documents.arriving import arrive
from handscroll.serve.documents.choosing import one_prompt, wish_of, writer
from handscroll.serve.documents.readings import GOING
from handscroll.serve.documents.rows import together
from handscroll.serve.documents.shelf import Entry, absent
from handscroll.serve.documents.stopping import Stop
from handscroll.serve.errors import ApiError, ClientGoneError
from handscroll.serve.models import Served
from handscroll.serve.policy import policy
from handscroll.serve.routes.chat import answer, completed
from handscroll.serve.routes.retrieval import check_alone, compared
from handscroll.serve.schemas.chat import AskRequest, ChatMessage
from handscroll.serve.schemas.documents import ReadRequest
from handscroll.serve.serving import Serving, of
from handscroll.serve.streaming import Events, until_gone

router = APIRouter()
Number = Annotated[str, Path(max_length=64, description="the id of a document")]
LOOK = 0.5  # seconds between two looks at a reading


@router.post("/v1/documents", status_code=201)
@policy("key", takes="answer")
async def upload(
    request: Request,
    file: Annotated[UploadFile, File(description="text, Markdown, HTML, PDF, Word, EPUB, code, tables")],
    model: Annotated[str, Form(max_length=200, description="who reads it; the first model unless given")] = "",
) -> dict[str, Any]:
    """Keep the text of a file and let a model read it."""
    serving, owner = of(request)
    served = serving.models.find(model) if model else serving.models.first()
    served.writing  # noqa: B018 - refuses a model that is not ready or writes no text
    form = await request.form()
    if unknown := sorted(set(form) - {"file", "model"}):
        raise ApiError(400, f"the field '{unknown[0]}' is not known here: file, model", "unknown_field", unknown[0])
    if len(form.getlist("file")) > 1:
        raise ApiError(400, "one file at a time is taken; send the others after it", "invalid_value", "file")
    limits = serving.settings.limits
    work = partial(arrive, serving.shelf, owner.number, file.filename or "", file.file, limits)
    with place(serving, owner, 1):
        turn = serving.turn(owner)
        await until_gone(request.receive, turn.acquire())
        try:
            entry = await _arrived(request, served, work)
        finally:
            turn.release()
    return told(serving, entry)


async def _arrived(request: Request, served: Served, work: Callable[[Stop], Entry]) -> Entry:
    """The document that an uploaded file became, which the model reads; nothing is kept for a client that has gone.

    Raises:
        ClientGoneError: it has. The errors are those of `arrive` and `Readings.begin`, or that the document was
            deleted meanwhile.
    """
    serving, owner = of(request)
    entry, kept = await _opened(request, work), False
    try:
        tokens = await asyncio.wrap_future(serving.open_file(partial(serving.begin, entry, served)))
        if await request.is_disconnected():
            raise ClientGoneError
        kept = not entry.gone
    except CheckpointError:  # its text is missing
        if not entry.gone:
            raise
    finally:
        if not kept and not entry.gone:
            await serving.delete(entry)
    if not kept:
        raise absent(entry.number)
    serving.admission.use(owner, tokens)
    return entry


async def _opened(request: Request, work: Callable[[Stop], Entry]) -> Entry:
    """What `work` makes of a file; it is ended when the client goes away, so that the next file need not wait for it.

    Raises:
        ClientGoneError: it went away. The errors are those of `work`.
    """
    serving, stop = of(request)[0], Stop()
    opening = serving.open_file(partial(work, stop))
    opened = asyncio.wrap_future(opening)
    try:
        await until_gone(request.receive, asyncio.wait([opened]))
    except ClientGoneError:
        stop.set()
        if not opening.cancel():
            await asyncio.wait([opened])
            if opened.exception() is None and not opened.result().gone:  # it was ready before
                await serving.delete(opened.result())
        raise
    finally:
        stop.set()
    return opened.result()


@router.get("/v1/documents")
@policy("key")
async def listed(request: Request) -> dict[str, Any]:
    """The documents of who asks."""
    serving, owner = of(request)
    return {"object": "list", "data": [told(serving, entry) for entry in serving.shelf.all(owner.number)]}


@router.get("/v1/documents/{number}")
@policy("key")
async def one(number: Number, request: Request) -> dict[str, Any]:
    """One document, and how far its reading is."""
    serving, owner = of(request)
    return told(serving, serving.shelf.get(owner.number, number))


@router.get("/v1/documents/{number}/events")
@policy("key", takes="watch")
async def events(number: Number, request: Request) -> Response:
    """The same as it changes, until nothing is read any more."""
    serving, owner = of(request)
    entry = serving.shelf.get(owner.number, number)
    held = ExitStack()
    held.enter_context(serving.admission.beside(owner, "watch"))
    return Events(_changes(serving, entry), held)


@router.get("/v1/documents/{number}/text")
@policy("key")
async def text(number: Number, request: Request) -> dict[str, Any]:
    """The text of a document, with its pages or chapters; the short rows of a long table are joined."""
    serving, owner = of(request)
    entry = serving.shelf.get(owner.number, number)

    def shown() -> dict[str, Any]:
        document = serving.shelf.text(entry)
        places = [place._asdict() for place in together(document.places)]
        return {"id": entry.number, "name": entry.name, "text": document.text, "places": places}

    return await serving.prepare(shown)


@router.post("/v1/documents/{number}/read", status_code=202)
@policy("key", takes="count")
async def read(number: Number, body: ReadRequest, request: Request) -> dict[str, Any]:
    """Let a model read a document: another one, or again after its reading was evicted."""
    serving, owner = of(request)
    entry, served = serving.shelf.get(owner.number, number), serving.models.find(body.model)
    served.writing  # noqa: B018 - refuses a model that is not ready or writes no text
    serving.admission.check_quota(owner)
    with serving.admission.beside(owner, "count"):
        serving.admission.use(owner, await serving.count(partial(serving.readings.begin, entry, served)))
    return told(serving, entry)


@router.post("/v1/documents/{number}/stop")
@policy("key")
async def stop(number: Number, body: ReadRequest, request: Request) -> dict[str, Any]:
    """Stop the reading of a document; what was read is kept, and /read goes on from there.

    It ends after its piece of work, or after the long work of another that has its turn between two pieces.
    """
    serving, owner = of(request)
    entry = serving.shelf.get(owner.number, number)
    if body.model not in entry.readings:
        serving.models.find(body.model)  # refuses a name that stands for no model
    await serving.prepare(partial(serving.readings.stop, entry, body.model))
    return told(serving, entry)


@router.post("/v1/documents/{number}/ask")
@policy("key", takes="answer")
async def ask(number: Number, body: AskRequest, request: Request) -> Response:
    """An answer to a question about a document; it is read once, and only the question is read now."""
    serving, owner = of(request)
    entry, served = writer(serving, owner, number, body.model)
    messages = [*body.history, ChatMessage(role="user", content=body.question)]
    prompted = partial(one_prompt, serving, served, entry, wish_of(body), messages, body.chat_template_kwargs)
    if body.retrieval is None:
        return await answer(request, body, served, prompted)
    check_alone(body)
    made = await completed(request, body, served, prompted)
    message = made["choices"][0]["message"]["content"]
    made["retrieval"] = await compared(request, body, served, entry, body.retrieval, message)
    return JSONResponse(made)


@router.delete("/v1/documents/{number}")
@policy("key")
async def delete(number: Number, request: Request) -> dict[str, Any]:
    """Remove a document: its text, its readings, and whatever else was made of it."""
    serving, owner = of(request)
    entry = serving.shelf.get(owner.number, number)
    await serving.delete(entry)
    return {"id": entry.number, "object": "document", "deleted": True}


def told(serving: Serving, entry: Entry) -> dict[str, Any]:
    """A document as the interface tells it."""
    return entry.record() | {"readings": serving.readings.progress(entry)}


async def _changes(serving: Serving, entry: Entry) -> AsyncGenerator[dict[str, Any]]:
    last = None
    while not entry.gone:
        now = told(serving, entry)
        if now != last:
            yield now
            last = now
        if not any(one.get("state") in GOING for one in now["readings"].values()):
            return
        await asyncio.sleep(LOOK)
