"""The application: the endpoints behind the gate, and errors in one form."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from handscroll.base.errors import HandscrollError
from handscroll.serve.errors import ApiError, ClientGoneError, of_ours, of_validation
from handscroll.serve.gate import Gate
from handscroll.serve.routes import (
    about,
    chat,
    completions,
    documents,
    embeddings,
    explaining,
    library,
    page,
    reporting,
    retrieval,
    tokens,
)
from handscroll.serve.serving import Serving

GROUPS = (about, chat, completions, embeddings, tokens, library, documents, explaining, retrieval, reporting, page)


def application(serving: Serving) -> tuple[FastAPI, ASGIApp]:
    """The endpoints of a server, and the same behind its gate, which is what is served."""

    @asynccontextmanager
    async def living(app: FastAPI) -> AsyncIterator[None]:
        serving.open()
        yield
        await serving.close()

    made = FastAPI(title="Handscroll", version="1", docs_url=None, redoc_url=None, openapi_url=None, lifespan=living)
    made.state.serving = serving
    for group in GROUPS:
        made.router.routes.extend(group.router.routes)  # flat, so that the gate sees each endpoint
    made.add_exception_handler(ApiError, _api)
    made.add_exception_handler(HandscrollError, _ours)
    made.add_exception_handler(RequestValidationError, _invalid)
    made.add_exception_handler(HTTPException, _other)
    made.add_exception_handler(ClientGoneError, _gone)
    made.add_exception_handler(RecursionError, _deep)
    made.add_exception_handler(Exception, _broken)
    return made, Gate(made, serving, lambda: made.router.routes)


def _api(request: Request, error: Any) -> Response:
    return error.response


def _ours(request: Request, error: Any) -> Response:
    return of_ours(error).response


def _invalid(request: Request, error: Any) -> Response:
    return of_validation(error.errors(), _fields(request)).response


def _other(request: Request, error: Any) -> Response:
    return ApiError(error.status_code, str(error.detail), headers=error.headers).response


def _gone(request: Request, error: Any) -> Response:
    request.app.state.serving.metrics.gone()
    return Response(status_code=499)


def _deep(request: Request, error: Any) -> Response:
    return ApiError(400, "the body is nested too deeply", "invalid_value").response


def _broken(request: Request, error: Any) -> Response:
    return ApiError(500, "the server failed at this request; its log says why", "failed").response


def _fields(request: Request) -> list[str]:
    """The fields of the body that the endpoint of a request takes."""
    route = request.scope.get("route")
    field = getattr(route, "body_field", None)
    fields = getattr(getattr(field, "field_info", None), "annotation", None)
    return sorted(getattr(fields, "model_fields", {}))
