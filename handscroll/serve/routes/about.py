"""What the server says of itself: models, health, metrics, its interface, and a plain page at its root."""

from html import escape
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse

from handscroll.serve.policy import policy
from handscroll.serve.serving import of

router = APIRouter()
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Handscroll</title></head><body>
<h1>Handscroll</h1>
<p>A server with OpenAI's interface, at <code>/v1</code>. Documents are uploaded to <code>/v1/documents</code>, read
once, and asked as often as you like. The page docs/serve.md explains it; <a href="/openapi.json">/openapi.json</a>
describes every endpoint.</p>
<p>{state}</p>
</body></html>
"""


@router.get("/v1/models")
@policy("key")
async def models(request: Request) -> dict[str, Any]:
    """All models, also those that are being loaded."""
    serving, _ = of(request)
    return {"object": "list", "data": [served.record() for served in serving.models.all.values()]}


@router.get("/v1/models/{name:path}")
@policy("key")
async def model(name: str, request: Request) -> dict[str, Any]:
    """One model."""
    return of(request)[0].models.find(name).record()


@router.get("/health")
@policy("open")
async def health(request: Request) -> Response:
    """Whether the server answers: 200 once its models are ready."""
    serving, _ = of(request)
    state = "failed" if not serving.worker.alive else serving.models.state
    state = "stopping" if serving.admission.closing else state
    return JSONResponse({"status": state}, 200 if state == "ready" else 503)


@router.get("/metrics")
@policy("key")
async def metrics(request: Request) -> Response:
    """Counters in the text form of Prometheus."""
    return PlainTextResponse(of(request)[0].metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/openapi.json")
@policy("key")
async def interface(request: Request) -> Response:
    """The schema of all endpoints."""
    return JSONResponse(request.app.openapi())


@router.get("/")
@policy("open")
async def page(request: Request) -> Response:
    """A plain page that says what runs here; to who needs a key and has none, only that."""
    serving, _ = of(request)
    state = f"The models are {serving.models.state}."
    if serving.keys.find(request.headers.get("authorization")) is not None:
        known = serving.models.all.values()
        state = "; ".join(f"<code>{escape(served.name)}</code>: {served.state}" for served in known)
    return HTMLResponse(PAGE.replace("{state}", state))
