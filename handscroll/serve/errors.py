"""Errors as clients of OpenAI's interface read them."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import HTTPException
from fastapi.responses import JSONResponse

from handscroll.base.errors import CapacityError, CheckpointError, HandscrollError, nearest

_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    499: "client_gone",
    500: "server_error",
    503: "server_error",
}


class ApiError(HTTPException):
    """An error with its status. `param` is the field that is wrong, `code` a word for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        message = message.encode("utf-8", "replace").decode()  # what came may be no Unicode
        super().__init__(status, message, dict(headers or {}))
        self.message, self.code, self.param = message, code, param

    @property
    def body(self) -> dict[str, Any]:
        """The error as JSON."""
        kind = _KINDS.get(self.status_code, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status_code, self.headers)


class ClientGoneError(Exception):
    """The client went away while its answer was being made; there is nobody to tell."""


def of_ours(error: HandscrollError) -> ApiError:
    """An error of the package: mostly of the request; a damaged file is the server's."""
    if isinstance(error, CapacityError):
        return ApiError(400, str(error), "context_length_exceeded")
    if isinstance(error, CheckpointError):
        return ApiError(500, str(error), "damaged")
    return ApiError(400, str(error), "invalid_value")


def of_validation(errors: Sequence[Mapping[str, Any]], known: Sequence[str] = ()) -> ApiError:
    """The first fault that the schema found in a request, with the field that it is about."""
    fault = errors[0]
    place = [str(part) for part in fault["loc"] if part not in ("body", "query", "path")]
    name = ".".join(place)
    if fault["type"] == "extra_forbidden":
        hint = f": {nearest(place[-1], known)}" if known and len(place) == 1 else ""
        return ApiError(
            400, f"the field '{name}' is not known here, and nothing is ignored{hint}", "unknown_field", name
        )
    if fault["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {fault.get('ctx', {}).get('error', fault['msg'])}", "not_json")
    if fault["type"] == "missing" and not name:
        why = "the request has no body: send a JSON object; GET /openapi.json says which fields it has"
        return ApiError(400, why, "not_json")
    came = fault.get("input")
    shown = "" if came is None or isinstance(came, dict | list) else f" (it is {str(came)[:60]!r})"
    more = "" if len(errors) == 1 else f", and {len(errors) - 1} more faults"
    what = f"'{name}'" if name else "the body"
    return ApiError(400, f"{what}: {fault['msg']}{shown}{more}", "invalid_value", name or None)
