"""/v1/chat/completions: an answer to messages, whole or as it is written."""

import secrets
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import ExitStack, aclosing
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from handscroll.serve.answering import Answering, Asked, Said, place, whole
from handscroll.serve.documents.choosing import prompting
from handscroll.serve.errors import ApiError
from handscroll.serve.logprobs import of_chat
from handscroll.serve.models import Served
from handscroll.serve.policy import policy
from handscroll.serve.prompts import Prompt, chat_prompt, check_form, requests, spoken_limit
from handscroll.serve.schemas.chat import ChatRequest, Speaking
from handscroll.serve.serving import Serving, of
from handscroll.serve.streaming import Events, until_gone

router = APIRouter()


@router.post("/v1/chat/completions")
@policy("key", takes="answer")
async def chat(body: ChatRequest, request: Request) -> Response:
    """An answer to messages by the model's own chat template."""
    serving, owner = of(request)
    served = serving.models.find(body.model)
    served.writing  # noqa: B018 - refuses a model that is not ready or writes no text
    tools = None if body.tool_choice == "none" else body.tools
    about = prompting(serving, owner, served, body, body.messages)
    free = partial(chat_prompt, served, body.messages, tools, body.chat_template_kwargs)
    return await answer(request, body, served, about or free)


async def answer(request: Request, body: Speaking, served: Served, prompted: Callable[[], Prompt]) -> Response:
    """The answer to a prompt that is made beside the event loop.

    Raises:
        ApiError: a setting is wrong, or there is no place. The errors of the package are those of `prompts.py`.
    """
    if not body.stream:
        return JSONResponse(await completed(request, body, served, prompted))
    held, asking = _asking(request, body, served, prompted)
    with ExitStack() as until:
        until.callback(held.close)
        answering = await asking
        until.pop_all()
        return Events(_chunks(answering, body), held)


async def completed(request: Request, body: Speaking, served: Served, prompted: Callable[[], Prompt]) -> dict[str, Any]:
    """The whole answer to a prompt; the errors are those of `answer`."""
    held, asking = _asking(request, body, served, prompted)
    with held:
        answering = await asking
        said = await until_gone(request.receive, whole(answering))
        return await answering.serving.prepare(partial(_completion, answering, body, said))


def _asking(
    request: Request, body: Speaking, served: Served, prompted: Callable[[], Prompt]
) -> tuple[ExitStack, Coroutine[Any, Any, Answering]]:
    """A place for the answers, and what asks for them."""
    serving, owner = of(request)
    check_logprobs(body)
    check_form(body.response_format, serving.settings.limits.schema_bytes)
    held = place(serving, owner, body.count)

    async def asking() -> Answering:
        asked = await until_gone(request.receive, serving.prepare(partial(_asked, serving, body, served, prompted)))
        return Answering(serving, owner, served, [asked], body.user or "", held)

    return held, asking()


def _asked(serving: Serving, body: Speaking, served: Served, prompted: Callable[[], Prompt]) -> Asked:
    prompt = prompted()
    most = spoken_limit(served, body, prompt, serving.settings.answer)
    return Asked(prompt, requests(served, body, prompt, most, body.top_logprobs or 0))


def check_logprobs(body: Speaking) -> None:
    """Refuse likeliest tokens without log-probabilities, and stream options without a stream.

    Raises:
        ApiError: they are asked for.
    """
    if body.top_logprobs and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", "invalid_value", "top_logprobs")
    check_stream(body.stream, body.stream_options is not None)


def check_stream(stream: bool | None, options: bool) -> None:
    """Refuse options of a stream where there is none."""
    if options and not stream:
        raise ApiError(400, "stream_options needs stream: true", "invalid_value", "stream_options")


def _completion(answering: Answering, body: Speaking, said: list[list[Said]]) -> dict[str, Any]:
    choices = []
    for number, pieces in enumerate(said):
        thought = "".join(one.thought for one in pieces)
        message: dict[str, Any] = {"role": "assistant", "content": "".join(one.text for one in pieces)}
        message |= {"reasoning_content": thought} if thought else {}
        choices.append(
            {
                "index": number,
                "message": message,
                "logprobs": _logprobs(answering, body, pieces),
                "finish_reason": pieces[-1].finish,
            }
        )
    return {
        **_about(answering, "chat.completion"),
        "choices": choices,
        "usage": answering.usage(),
        "handscroll": answering.contract(),
    }


async def _chunks(answering: Answering, body: Speaking) -> AsyncGenerator[dict[str, Any]]:
    about = _about(answering, "chat.completion.chunk")
    usage = body.stream_options is not None and body.stream_options.include_usage
    more = {"usage": None} if usage else {}

    def chunk(number: int, delta: dict[str, Any], finish: str | None = None, logprobs: Any = None) -> dict[str, Any]:
        choice = {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return {**about, "choices": [choice], **more}

    for number in range(len(answering.prompts)):
        yield chunk(number, {"role": "assistant", "content": ""})
    left = len(answering.prompts)
    async with aclosing(answering.said()) as pieces:
        async for one in pieces:
            delta = {"content": one.text} if one.text else {}
            delta |= {"reasoning_content": one.thought} if one.thought else {}
            left -= one.finish is not None
            if delta or body.logprobs or one.finish:
                made = chunk(one.number, delta, one.finish, _logprobs(answering, body, [one]))
                yield made if left else made | {"handscroll": answering.contract()}
    if usage:
        yield {**about, "choices": [], "usage": answering.usage()}


def _about(answering: Answering, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": answering.served.name,
        "system_fingerprint": answering.served.fingerprint,
    }


def _logprobs(answering: Answering, body: Speaking, said: list[Said]) -> dict[str, Any] | None:
    if not body.logprobs:
        return None
    top, served = body.top_logprobs or 0, answering.served
    return {"content": [of_chat(served, one.token.number, one.token.scored, top) for one in said], "refusal": None}
