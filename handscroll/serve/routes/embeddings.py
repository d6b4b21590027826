"""/v1/embeddings: vectors of texts by an encoder."""

import base64
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from torch import Tensor

from handscroll.base.errors import CapacityError
from handscroll.lm import LM
from handscroll.models.sentences import SHORT
from handscroll.models.vectors import encoded, windowed
from handscroll.serve.answering import place
from handscroll.serve.charging import Pieces, charging
from handscroll.serve.errors import ApiError
from handscroll.serve.models import Served
from handscroll.serve.policy import policy
from handscroll.serve.prompts import check_characters
from handscroll.serve.schemas.others import EmbeddingRequest
from handscroll.serve.serving import Serving, of
from handscroll.serve.streaming import until_gone

router = APIRouter()
TOGETHER = 8  # texts between which others may go on


@router.post("/v1/embeddings")
@policy("key", takes="answer")
async def embeddings(body: EmbeddingRequest, request: Request) -> dict[str, Any]:
    """One vector a text."""
    serving, owner = of(request)
    served = serving.models.find(body.model)
    lm = served.embedding
    texts = [body.input] if isinstance(body.input, str) else body.input
    most = serving.settings.limits.texts
    if len(texts) > most:
        raise ApiError(400, f"{len(texts)} texts came, and one request may have {most}", "too_large", "input")
    width = lm.model.config.width
    if body.dimensions not in (None, width):
        message = f"'{served.name}' has vectors of {width} numbers, and cannot make others"
        raise ApiError(400, message, "invalid_value", "dimensions")

    async def made() -> tuple[int, list[Tensor]]:
        if body.windows:
            return await _in_windows(serving, lm, texts, body.prompt, pieces)
        counts = await serving.prepare(partial(_counted, served, lm, texts, body.prompt))
        found: list[Tensor] = []
        for first in range(0, len(texts), TOGETHER):
            part = slice(first, first + TOGETHER)
            found += await serving.worker.call(partial(_some, lm, texts[part], body.prompt, sum(counts[part]), pieces))
        return sum(counts), found

    with place(serving, owner, 1), charging(serving, owner) as pieces:
        tokens, vectors = await until_gone(request.receive, made())
    serving.metrics.tokens(served.name, tokens, 0, 0)
    data = [
        {"object": "embedding", "index": number, "embedding": _told(vector, body.encoding_format == "base64")}
        for number, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": served.name, "usage": usage}


def _some(lm: LM, texts: list[str], prompt: str | None, tokens: int, pieces: Pieces) -> Tensor:
    """Runs on the thread that computes, between two steps of others."""
    found = lm.embed(texts, prompt=prompt)
    pieces.took(tokens, breathes=False)
    return found


async def _in_windows(
    serving: Serving, lm: LM, texts: list[str], prompt: str | None, pieces: Pieces
) -> tuple[int, list[Tensor]]:
    """The tokens and the vectors of texts of any length; a long work, which ends when the client goes away."""
    ids = await serving.prepare(partial(encoded, lm.tokenizer, lm.sentences, texts, prompt))
    tokens = [len(one) + sum(map(len, lm.tokenizer.frame())) for one in ids]
    return sum(tokens), list(await serving.worker.long(partial(_windowed, lm, ids, tokens, pieces)))


def _windowed(lm: LM, ids: list[list[int]], tokens: list[int], pieces: Pieces) -> Tensor:
    """Runs on the thread that computes; every few windows are a piece, which counts as a full one until the last."""
    pieces.begin()
    full, left = max(SHORT, min(lm.context, max(tokens))), sum(tokens)

    def between() -> None:
        nonlocal left
        piece = min(full, left)
        left -= piece
        pieces.took(piece)

    found = windowed(lm.model, lm.tokenizer, lm.sentences, ids, between)
    pieces.took(left, breathes=False)
    return found


def _counted(served: Served, lm: LM, texts: list[str], prompt: str | None) -> list[int]:
    """The tokens of each text; refuses what is longer than the encoder reads.

    Raises:
        CapacityError: names the text, with the numbers.
    """
    recipe = lm.sentences
    prompted = texts if recipe is None else list(recipe.prompted(texts, prompt))
    most = lm.context if recipe is None or recipe.length is None else min(lm.context, recipe.length)
    for text in prompted:
        check_characters(served, len(text))
    counts = [len(lm.encode(text)) for text in prompted]
    long = [(number, count) for number, count in enumerate(counts) if count > most]
    if long:
        number, count = long[0]
        raise CapacityError(
            f"input {number} has {count:,} tokens, and '{served.name}' reads {most:,} at once ({len(long)} of "
            f"{len(texts)} texts are too long): shorten it, or read it in windows (windows: true)"
        )
    return counts


def _told(vector: Tensor, packed: bool) -> list[float] | str:
    return base64.b64encode(vector.float().numpy().tobytes()).decode() if packed else vector.tolist()
