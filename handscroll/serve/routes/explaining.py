"""/v1/documents/{id}/explain: why an answer about a document was given (`explain/`)."""

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request

from handscroll.explain.look import Look
from handscroll.explain.why import Explaining, Explanation, explained
from handscroll.generate.request import Request as Asked
from handscroll.generate.sample import Sampling
from handscroll.serve.answering import place
from handscroll.serve.charging import Pieces, charging
from handscroll.serve.documents.asking import document_prompt
from handscroll.serve.documents.choosing import writer
from handscroll.serve.documents.shelf import Entry
from handscroll.serve.errors import ApiError
from handscroll.serve.models import Served
from handscroll.serve.policy import policy
from handscroll.serve.prompts import Prompt
from handscroll.serve.schemas.chat import ChatMessage, ExplainRequest
from handscroll.serve.serving import Serving, of
from handscroll.serve.streaming import until_gone

router = APIRouter()


@router.post("/v1/documents/{number}/explain")
@policy("key", takes="answer")
async def explain(
    number: Annotated[str, Path(max_length=64, description="the id of a document")],
    body: ExplainRequest,
    request: Request,
) -> dict[str, Any]:
    """The passages of a document without which an answer becomes less likely, and what else might have been said."""
    serving, owner = of(request)
    entry, served = writer(serving, owner, number, body.model)
    opened = partial(serving.readings.opened, entry, served)
    messages = [*body.history, ChatMessage(role="user", content=body.question)]
    with place(serving, owner, 1):
        prompted = serving.prepare(partial(document_prompt, served, entry, opened, messages))
        prompt = await until_gone(request.receive, prompted)
        return (await explanation(request, served, entry, prompt, body)).record()


async def explanation(
    request: Request, served: Served, entry: Entry, prompt: Prompt, body: ExplainRequest
) -> Explanation:
    """Why an answer to a prompt about a document was given; ended when the client goes away."""
    serving, owner = of(request)
    with charging(serving, owner) as pieces:
        work = partial(_explained, serving, served, entry, prompt, body, pieces)
        return await until_gone(request.receive, serving.worker.long(work))


def _explained(
    serving: Serving, served: Served, entry: Entry, prompt: Prompt, body: ExplainRequest, pieces: Pieces
) -> Explanation:
    """Runs on the thread that computes; each look is a piece."""
    pieces.begin()
    lm = served.loaded
    answer = tuple(lm.tokenizer.encode(body.answer, special=False, follows=True))
    if not answer:
        raise ApiError(400, "the answer is empty: there is nothing to explain", "invalid_value", "answer")
    asked = Asked(prompt.ids, Sampling(max_tokens=len(answer)), ends=prompt.ends, reading=prompt.reading)
    served.writing.check(asked, 0)  # refuses what the context does not hold
    each = len(Look(lm.model, asked, answer).fed)
    how = Explaining(tried=body.tried, passage=body.passage, alternatives=body.alternatives)
    text = serving.shelf.text(entry).text
    return explained(lm, asked, text, answer, how, lambda done, total: pieces.took(each))
