"""Counting: /v1/count, /v1/tokenize, /v1/detokenize, by the model's own tokenizer and template."""

from functools import partial
from typing import Any

from fastapi import APIRouter, Request

from handscroll.serve.documents.asking import document_prompt
from handscroll.serve.documents.shelf import Entry
from handscroll.serve.errors import ApiError
from handscroll.serve.models import Served
from handscroll.serve.policy import policy
from handscroll.serve.prompts import Prompt, chat_prompt, text_prompt
from handscroll.serve.schemas.others import CountRequest, DetokeniseRequest, TokeniseRequest
from handscroll.serve.serving import Serving, of

router = APIRouter()


@router.post("/v1/count")
@policy("key")
async def count(body: CountRequest, request: Request) -> dict[str, Any]:
    """How many tokens a text or a conversation has, and how many the context leaves."""
    served, prompt = await _prompt(body, request)
    return _counts(served, prompt)


@router.post("/v1/tokenize")
@policy("key")
async def tokenise(body: TokeniseRequest, request: Request) -> dict[str, Any]:
    """The same with the tokens."""
    served, prompt = await _prompt(body, request)
    decode = served.loaded.tokenizer.decode
    texts = await of(request)[0].prepare(lambda: [decode([number], special=True) for number in prompt.ids])
    return _counts(served, prompt) | {"tokens": prompt.ids, "texts": texts}


@router.post("/v1/detokenize")
@policy("key")
async def detokenise(body: DetokeniseRequest, request: Request) -> dict[str, Any]:
    """The text of some tokens."""
    serving, _ = of(request)
    lm = serving.models.find(body.model).loaded
    return {"text": await serving.prepare(partial(lm.tokenizer.decode, body.tokens, special=True))}


async def _prompt(body: CountRequest, request: Request) -> tuple[Served, Prompt]:
    serving, owner = of(request)
    served = serving.models.find(body.model)
    if (body.text is None) == (body.messages is None):
        raise ApiError(400, "give a text, or messages, and one of them only", "invalid_value", "text")
    if body.messages is None and (body.tools or body.document):
        raise ApiError(400, "tools and document belong to messages", "invalid_value", "messages")
    if body.tools and body.document:
        raise ApiError(400, "tools are not handed on beside a document: leave one out", "invalid_value", "tools")
    entry = None if body.document is None else serving.shelf.get(owner.number, body.document)
    return served, await serving.prepare(partial(_made, serving, served, body, entry))


def _made(serving: Serving, served: Served, body: CountRequest, entry: Entry | None) -> Prompt:
    if body.messages is None:
        return text_prompt(served, body.text or "", None)
    if entry is not None:
        return document_prompt(served, entry, partial(serving.readings.opened, entry, served), body.messages)
    return chat_prompt(served, body.messages, body.tools)


def _counts(served: Served, prompt: Prompt) -> dict[str, Any]:
    found, context = len(prompt.ids), served.loaded.context
    return {"model": served.name, "count": found, "context": context, "left": max(0, context - found)}
