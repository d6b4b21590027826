"""/v1/completions: texts that are continued, scored (echo) or filled in the middle (suffix)."""

import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack, aclosing
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from handscroll.generate.chooser import Scored
from handscroll.serve.answering import Answering, Asked, Said, place, whole
from handscroll.serve.charging import charging
from handscroll.serve.errors import ApiError
from handscroll.serve.logprobs import Offsets, of_completion
from handscroll.serve.models import Served
from handscroll.serve.policy import policy
from handscroll.serve.prompts import check_form, requests, text_prompt
from handscroll.serve.routes.chat import check_stream
from handscroll.serve.schemas.completions import CompletionRequest
from handscroll.serve.scoring import Echo, echoes
from handscroll.serve.serving import of
from handscroll.serve.streaming import Events, until_gone

router = APIRouter()


@router.post("/v1/completions")
@policy("key", takes="answer")
async def completions(body: CompletionRequest, request: Request) -> Response:
    """The continuation of one or several texts."""
    serving, owner = of(request)
    served = serving.models.find(body.model)
    served.writing  # noqa: B018 - refuses a model that is not ready or writes no text
    _check(body)
    check_form(body.response_format, serving.settings.limits.schema_bytes)
    held = place(serving, owner, body.count * len(body.prompts))
    with ExitStack() as until:
        until.callback(held.close)
        asked = await until_gone(request.receive, serving.prepare(partial(_asked, served, body)))
        answering = Answering(serving, owner, served, asked, body.user or "", held)
        if body.stream:
            until.pop_all()
            return Events(_chunks(answering, body), held)
        known: list[Echo | None] = [None] * len(asked)
        if body.echo and body.logprobs is not None:
            with charging(serving, owner) as pieces:
                scoring = echoes(serving.worker, served, asked, body.limit, pieces)
                known = list(await until_gone(request.receive, scoring))
        if all(one is not None and one.whole for one in known):
            said: list[list[Said]] = [one.said for one in known if one is not None]
            answering.new = sum(map(len, said))
            answering.settle(sum(len(one.prompt.ids) for one in asked))
        else:
            said = await until_gone(request.receive, whole(answering))
        return JSONResponse(await serving.prepare(partial(_completion, answering, body, said, known)))


def _check(body: CompletionRequest) -> None:
    """Refuse fields that exclude each other.

    Raises:
        ApiError: names them.
    """
    check_stream(body.stream, body.stream_options is not None)
    if body.echo and body.suffix is not None:
        raise ApiError(400, "echo and suffix exclude each other: leave one out", "invalid_value", "echo")
    if body.suffix is not None and body.response_format is not None:
        raise ApiError(400, "suffix and response_format exclude each other", "invalid_value", "suffix")
    if body.echo and body.stream and body.logprobs is not None:
        raise ApiError(400, "the logprobs of an echo are not streamed: leave out stream", "invalid_value", "stream")
    if body.limit == 0 and not (body.echo and body.logprobs is not None and body.count == 1):
        why = "max_tokens 0 asks for nothing, unless echo and logprobs score the prompt (n = 1)"
        raise ApiError(400, why, "invalid_value", "max_tokens")


def _asked(served: Served, body: CompletionRequest) -> list[Asked]:
    found = []
    for given in body.prompts:
        prompt = text_prompt(served, given, body.suffix)
        found.append(Asked(prompt, requests(served, body, prompt, max(1, body.limit), body.logprobs or 0)))
    return found


def _completion(
    answering: Answering, body: CompletionRequest, said: Sequence[list[Said]], known: Sequence[Echo | None]
) -> dict[str, Any]:
    each, served = body.count, answering.served
    choices = []
    for number, pieces in enumerate(said):
        prompt, echo = answering.prompts[number], known[number // each]
        before = prompt.text if body.echo else ""
        text, logprobs = before + "".join(one.text for one in pieces), None
        if body.logprobs is not None:
            first: list[Scored | None] = [] if echo is None else [None, *echo.scored]
            ids, own = [] if echo is None else prompt.ids, [one.token.number for one in pieces]
            places, later = Offsets(served), Offsets(served, prompt.ids, len(before))
            offsets = [places.take(one, len(before)) for one in ids] + [later.take(one, len(text)) for one in own]
            scored = [*first, *(one.token.scored for one in pieces)]
            logprobs = of_completion(served, [*ids, *own], scored, body.logprobs, offsets)
        finish = pieces[-1].finish if pieces else "length"
        choices.append({"index": number, "text": text, "logprobs": logprobs, "finish_reason": finish})
    about = _about(answering)
    return {**about, "choices": choices, "usage": answering.usage(), "handscroll": answering.contract()}


async def _chunks(answering: Answering, body: CompletionRequest) -> AsyncGenerator[dict[str, Any]]:
    about = _about(answering)
    usage = body.stream_options is not None and body.stream_options.include_usage
    more = {"usage": None} if usage else {}
    lengths = [0] * len(answering.prompts)
    told = answering.prompts if body.logprobs is not None else []
    offsets = [Offsets(answering.served, prompt.ids) for prompt in told]

    def chunk(number: int, text: str, finish: str | None = None, logprobs: Any = None) -> dict[str, Any]:
        lengths[number] += len(text)
        choice = {"index": number, "text": text, "logprobs": logprobs, "finish_reason": finish}
        return {**about, "choices": [choice], **more}

    if body.echo:
        for number, prompt in enumerate(answering.prompts):
            yield chunk(number, prompt.text)
    left = len(answering.prompts)
    async with aclosing(answering.said()) as pieces:
        async for one in pieces:
            left -= one.finish is not None
            logprobs = None
            if body.logprobs is not None:
                token, end = one.token, lengths[one.number] + len(one.text)
                place = offsets[one.number].take(token.number, end)
                logprobs = of_completion(answering.served, [token.number], [token.scored], body.logprobs, [place])
            if one.text or one.finish or logprobs:
                made = chunk(one.number, one.text, one.finish, logprobs)
                yield made if left else made | {"handscroll": answering.contract()}
    if usage:
        yield {**about, "choices": [], "usage": answering.usage()}


def _about(answering: Answering) -> dict[str, Any]:
    return {
        "id": f"cmpl-{secrets.token_hex(12)}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": answering.served.name,
        "system_fingerprint": answering.served.fingerprint,
    }
