"""What would retrieval have seen? The answer from the whole of a document beside the one from passages of a search."""

import asyncio
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request

from handscroll.explain.why import Explanation
from handscroll.serve.answering import Answering, Asked, place, whole
from handscroll.serve.documents.choosing import one_prompt, writer
from handscroll.serve.documents.gathering import Wish
from handscroll.serve.documents.shelf import Entry
from handscroll.serve.errors import ApiError
from handscroll.serve.models import Served
from handscroll.serve.policy import policy
from handscroll.serve.prompts import Prompt, check_form, requests, spoken_limit
from handscroll.serve.routes.explaining import explanation
from handscroll.serve.schemas.chat import AskRequest, ChatMessage, Compared, ExplainRequest, RetrievalRequest
from handscroll.serve.serving import of
from handscroll.serve.streaming import until_gone

router = APIRouter()
HELD = 0.5  # of a mark that must lie in the passages for them to hold it


@router.post("/v1/documents/{number}/retrieval")
@policy("key", takes="answer")
async def retrieval(
    number: Annotated[str, Path(max_length=64, description="the id of a document")],
    body: RetrievalRequest,
    request: Request,
) -> dict[str, Any]:
    """The answer from the whole document, and what a search would have passed on, with the answer from that alone."""
    serving, owner = of(request)
    entry, served = writer(serving, owner, number, body.model)
    check_alone(body)
    return await compared(request, body, served, entry, body, body.answer)


def check_alone(body: RetrievalRequest | AskRequest) -> None:
    """Refuse what two answers side by side have no form for.

    Raises:
        ApiError: a stream, several answers, log-probabilities, or a reading by passages, which is the other side.
    """
    if body.stream or body.stream_options or body.count > 1 or body.logprobs or body.top_logprobs:
        why = "two answers are set side by side: leave out stream, n and logprobs"
        raise ApiError(400, why, "invalid_value", "stream" if body.stream else "n" if body.count > 1 else "logprobs")
    if isinstance(body, AskRequest) and body.reading not in (None, "whole"):
        why = "retrieval compares passages with the whole document: leave out reading"
        raise ApiError(400, why, "invalid_value", "reading")


async def compared(
    request: Request,
    body: RetrievalRequest | AskRequest,
    served: Served,
    entry: Entry,
    how: Compared,
    answer: str | None,
) -> dict[str, Any]:
    """What a search would have seen of a document, beside the `answer` from the whole, which is made if it is None.

    Raises:
        ApiError: the document is not read. The errors of `gathered`, but a search that finds nothing is an answer too.
    """
    serving, owner = of(request)
    check_form(body.response_format, serving.settings.limits.schema_bytes)
    messages = [*body.history, ChatMessage(role="user", content=body.question)]
    made = partial(one_prompt, serving, served, entry, messages=messages, variables=body.chat_template_kwargs)

    total = await serving.prepare(partial(serving.library.tokens, entry, served))

    def tokens(prompt: Prompt) -> dict[str, int]:
        by_passages = prompt.document["how"] == "passages"
        return {"prompt": len(prompt.ids), "seen": prompt.document["seen"] if by_passages else total, "document": total}

    async def said(prompt: Prompt, known: str | None) -> dict[str, Any]:
        if known is not None:
            return {"answer": known, "tokens": tokens(prompt)}
        most = spoken_limit(served, body, prompt, serving.settings.answer)
        asked = await serving.prepare(lambda: Asked(prompt, requests(served, body, prompt, most, None)))
        answering = Answering(serving, owner, served, [asked], body.user or "")
        (pieces,) = await whole(answering)
        record = {"answer": "".join(one.text for one in pieces), "finish_reason": pieces[-1].finish}
        return record | {"tokens": tokens(prompt), "handscroll": answering.contract()}

    async def both() -> tuple[Prompt, Prompt, dict[str, Any], dict[str, Any] | None]:
        read = await serving.prepare(partial(made, wish=Wish()))
        found = await serving.prepare(partial(made, wish=Wish("passages", how.passages), strict=False))
        if not found.document["seen"]:  # there is nothing to answer from
            return read, found, await said(read, answer), None
        return read, found, *await asyncio.gather(said(read, answer), said(found, None))

    with place(serving, owner, 2):
        read, found, full, retrieved = await until_gone(request.receive, both())
        seen = found.document
        record: dict[str, Any] = {
            "object": "retrieval",
            "model": served.name,
            "document": entry.number,
            "question": body.question,
            "searched": seen["searched"],
            "passages": await serving.prepare(
                lambda: [_told(serving.shelf.text(entry).text, one) for one in seen["passages"]]
            ),
            "retrieved": retrieved,
            "whole": full,
            "same": retrieved is not None and _plain(full["answer"]) == _plain(retrieved["answer"]),
        }
        if how.explain and full["answer"].strip():
            asked = ExplainRequest(question=body.question, answer=full["answer"])
            why = await explanation(request, served, entry, read, asked)
            record["rests"] = rests(why, seen["passages"])
    return record


def rests(why: Explanation, passages: list[dict[str, Any]]) -> dict[str, Any]:
    """Which of the passages that an answer from the whole rests on the search has passed on."""
    marks = []
    for one in why.causes:
        within = sum(max(0, min(one.end, p["end"]) - max(one.start, p["start"])) for p in passages)
        share = within / max(1, one.end - one.start)
        told = {"start": one.start, "end": one.end, "text": one.text, "effect": one.effect}
        marks.append(told | {"within": round(share, 3), "held": share >= HELD})
    return {"marks": marks, "held": sum(one["held"] for one in marks), "of": len(marks), "whole": why.rests}


def _told(text: str, passage: dict[str, Any]) -> dict[str, Any]:
    return passage | {"text": text[passage["start"] : passage["end"]]}


def _plain(answer: str) -> str:
    """An answer without regard to capitals, blanks and the full stop."""
    return " ".join(answer.lower().split()).rstrip(".。")
