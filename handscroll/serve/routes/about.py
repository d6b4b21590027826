"""What the server says of itself: models, health, metrics, its interface."""

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from handscroll.serve.policy import policy
from handscroll.serve.serving import of

router = APIRouter()


@router.get("/v1/models")
@policy("key")
async def models(request: Request) -> dict[str, Any]:
    """All models, also those that are being loaded, and those that could not be, with the `error`."""
    serving, _ = of(request)
    every = serving.models.all.values()
    answer = serving.settings.answer
    found = [one.record() | {"answer": answer} | ({"error": one.error} if one.error else {}) for one in every]
    return {"object": "list", "data": found}


@router.get("/v1/models/{name:path}")
@policy("key")
async def model(name: str, request: Request) -> dict[str, Any]:
    """One model, with what its files say of it."""
    serving, _ = of(request)
    served = serving.models.find(name)
    facts = {} if served.lm is None else await serving.prepare(lambda: served.facts)
    return {**served.record(), "answer": serving.settings.answer, "facts": facts}


@router.get("/health")
@policy("open")
async def health(request: Request) -> Response:
    """Whether the server answers: 200 once its models are ready."""
    serving, _ = of(request)
    state = "failed" if not serving.worker.alive else serving.models.state
    state = "stopping" if serving.admission.closing else state
    return JSONResponse({"status": state}, 200 if state == "ready" else 503)


@router.get("/metrics", response_class=PlainTextResponse)
@policy("key")
async def metrics(request: Request) -> Response:
    """Counters in the text form of Prometheus."""
    return PlainTextResponse(of(request)[0].metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/openapi.json")
@policy("key")
async def interface(request: Request) -> Response:
    """The schema of all endpoints."""
    return JSONResponse(request.app.openapi())
