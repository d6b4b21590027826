"""Counting: /v1/count, /v1/tokenize, /v1/detokenize, by the model's own tokenizer and template."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from fastapi import APIRouter, Request

from handscroll.serve.documents.choosing import prompting
from handscroll.serve.errors import ApiError
from handscroll.serve.models import Served
from handscroll.serve.policy import policy
from handscroll.serve.prompts import Prompt, chat_prompt, text_prompt
from handscroll.serve.schemas.others import CountRequest, DetokeniseRequest, TokeniseRequest
from handscroll.serve.serving import of
from handscroll.serve.streaming import until_gone

router = APIRouter()
T = TypeVar("T")


@router.post("/v1/count")
@policy("key", takes="count")
async def count(body: CountRequest, request: Request) -> dict[str, Any]:
    """How many tokens a text or a conversation has, and how many the context leaves."""
    served, prompted = _prompted(body, request)
    return _counts(served, await _counted(request, prompted))


@router.post("/v1/tokenize")
@policy("key", takes="count")
async def tokenise(body: TokeniseRequest, request: Request) -> dict[str, Any]:
    """The same with the tokens."""
    served, prompted = _prompted(body, request)
    decode = served.loaded.tokenizer.decode

    def made() -> tuple[Prompt, list[str]]:
        prompt = prompted()
        return prompt, [decode([number], special=True) for number in prompt.ids]

    prompt, texts = await _counted(request, made)
    return _counts(served, prompt) | {"tokens": prompt.ids, "texts": texts}


@router.post("/v1/detokenize")
@policy("key", takes="count")
async def detokenise(body: DetokeniseRequest, request: Request) -> dict[str, Any]:
    """The text of some tokens."""
    lm = of(request)[0].models.find(body.model).loaded
    return {"text": await _counted(request, partial(lm.tokenizer.decode, body.tokens, special=True))}


async def _counted(request: Request, work: Callable[[], T]) -> T:
    """What `work` gives, in a place of its own kind; it is not begun for a client that has gone."""
    serving, owner = of(request)
    with serving.admission.beside(owner, "count"):
        return await until_gone(request.receive, serving.count(work))


def _prompted(body: CountRequest, request: Request) -> tuple[Served, Callable[[], Prompt]]:
    serving, owner = of(request)
    served = serving.models.find(body.model)
    if (body.text is None) == (body.messages is None):
        raise ApiError(400, "give a text, or messages, and one of them only", "invalid_value", "text")
    if body.messages is None and (body.tools or body.document or body.documents):
        raise ApiError(400, "tools and documents belong to messages", "invalid_value", "messages")
    about = prompting(serving, owner, served, body, body.messages or [], strict=False)
    return served, about or partial(_made, served, body)


def _made(served: Served, body: CountRequest) -> Prompt:
    if body.messages is None:
        return text_prompt(served, body.text or "", None)
    return chat_prompt(served, body.messages, body.tools)


def _counts(served: Served, prompt: Prompt) -> dict[str, Any]:
    found, context = len(prompt.ids), served.loaded.context
    counts = {"model": served.name, "count": found, "context": context, "left": max(0, context - found)}
    documents = [prompt.document] if prompt.document else list(prompt.documents)
    return counts | ({"documents": documents} if documents else {})
