"""/v1/documents/ask and /search: several documents at once, or all of one's own."""

from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response

from handscroll.serve.answering import place
from handscroll.serve.documents.choosing import entries_of, wish_of
from handscroll.serve.documents.gathering import gathered
from handscroll.serve.documents.library import Found
from handscroll.serve.policy import policy
from handscroll.serve.routes.chat import answer
from handscroll.serve.schemas.chat import ChatMessage, LibraryRequest
from handscroll.serve.schemas.documents import SearchRequest
from handscroll.serve.serving import of
from handscroll.serve.streaming import until_gone

router = APIRouter()


@router.post("/v1/documents/ask")
@policy("key", takes="answer")
async def ask(body: LibraryRequest, request: Request) -> Response:
    """An answer from several documents: read whole, or what does not fit by passages that a search finds."""
    serving, owner = of(request)
    served = serving.models.find(body.model) if body.model else serving.models.first()
    served.writing  # noqa: B018 - refuses a model that is not ready or writes no text
    entries, messages = entries_of(serving, owner, body.documents), [*body.history]
    messages.append(ChatMessage(role="user", content=body.question))
    wish, variables = wish_of(body), body.chat_template_kwargs
    prompted = partial(gathered, serving, served, entries, wish, messages, variables)
    return await answer(request, body, served, prompted)


@router.post("/v1/documents/search")
@policy("key", takes="answer")
async def search(body: SearchRequest, request: Request) -> dict[str, Any]:
    """The passages of some documents that belong to a query, the best first, with their places and scores."""
    serving, owner = of(request)
    entries = entries_of(serving, owner, body.documents)
    with place(serving, owner, 1):
        searching = serving.prepare(partial(serving.library.search, entries, body.query))
        found: Found = await until_gone(request.receive, searching)
    listed = [
        {"document": hit.entry.number, "name": hit.entry.name, **hit.record(), "text": hit.text}
        for hit in found.hits[: body.count]
    ]
    notes = {"notes": list(found.notes)} if found.notes else {}
    return {"object": "list", "searched": list(found.by), "found": len(found.hits), "data": listed, **notes}
