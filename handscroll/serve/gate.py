"""What every request passes before an endpoint sees it: host, origin, route, policy, key, a place, size.

An endpoint without a policy is never reached. Nothing of a body is read before the key was looked at.
"""

import ipaddress
import logging
import time
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from handscroll.serve.errors import ApiError
from handscroll.serve.keys import Owner
from handscroll.serve.policy import Taken, matching, policy_of, taken
from handscroll.serve.receiving import Received, too_large
from handscroll.serve.serving import Serving

# Scripts, styles and pictures of our own files only; nothing inline, no frames, no requests elsewhere.
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
LOOPBACK = "localhost"
UPLOADS = "/v1/documents"
NOWHERE = "unknown"  # as which paths that no route knows are counted
_log = logging.getLogger("handscroll.serve.requests")


class Gate:
    """The outermost layer of the application."""

    def __init__(self, app: ASGIApp, serving: Serving, routes: Any):
        self._app, self._serving, self._routes = app, serving, routes
        settings = serving.settings
        self._local = is_loopback(settings.host)
        self._hosts = frozenset(name.lower() for name in (LOOPBACK, *settings.hosts))
        self._origins = frozenset(name.lower().rstrip("/") for name in settings.origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        begun, status = time.monotonic(), 0
        route, known = matching(self._routes(), scope)
        name = getattr(route, "path", NOWHERE)

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for key, value in HEADERS.items():
                    headers.setdefault(key, value)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        owner: Owner | None = None
        with self._serving.metrics.request(name) as told, ExitStack() as held:
            try:
                owner = self._admitted(scope, route, known)
                self._check_place(owner, taken(route))
                received = self._received(scope, receive, owner, held)
                scope["handscroll.owner"] = owner
                await self._app(scope, received, sending)
            except ApiError as error:
                await error.response(scope, receive, sending)
            finally:
                told(status)
                who, seconds = "-" if owner is None else owner.name, time.monotonic() - begun
                # The page asks how far a reading is many times a minute: what went well and only looked is not told.
                level = logging.DEBUG if scope["method"] in ("GET", "HEAD") and 0 < status < 400 else logging.INFO
                _log.log(level, "%s %s %s %d %.3f s", who, scope["method"], name, status, seconds)

    def _admitted(self, scope: Scope, route: Any, known: bool) -> Owner:
        """Who asks.

        Raises:
            ApiError: a foreign host or origin, no key, no route, another method, or a route without a policy.
        """
        headers = Headers(scope=scope)
        self._check_host(headers)
        self._check_origin(headers, scope["scheme"])
        rule = None if route is None else policy_of(route)
        owner = self._serving.keys.find(headers.get("authorization"))
        if rule == "open":
            return owner or self._serving.keys.local
        if owner is None:
            message = "a key is needed: Authorization: Bearer KEY"
            raise ApiError(401, message, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        if route is None:
            raise _no_route(scope, known, self._routes())
        if rule is None:
            raise ApiError(403, "this endpoint says nobody may call it", "no_policy")
        return owner

    def _check_place(self, owner: Owner, kind: Taken) -> None:
        """Refuse a request for which there is no place.

        Raises:
            ApiError: as `Admission.check` and `check_beside`.
        """
        if kind == "answer":
            self._serving.admission.check(owner)
        elif kind != "nothing":
            self._serving.admission.check_beside(owner, kind)

    def _received(self, scope: Scope, receive: Receive, owner: Owner, held: ExitStack) -> Received:
        """The body within its limits; what it takes of all bodies is given back when `held` is closed, or sooner.

        Raises:
            ApiError: its declared size is above them, or others send so much that it does not fit.
        """
        limits, file = self._serving.settings.limits, scope["path"] == UPLOADS
        most = limits.upload if file else limits.body
        given = Headers(scope=scope).get("content-length", "")
        declared = int(given) if given.isdecimal() else 0
        if declared > most:
            raise too_large(declared, most)
        bodies = self._serving.uploads if file else self._serving.bodies
        room = held.enter_context(bodies.arriving(owner, declared))
        values = None if file else max(limits.values, 2 * self._serving.models.context)
        return Received(receive, most, limits.body_seconds, values, room)

    def _check_host(self, headers: Headers) -> None:
        """A page elsewhere can let its own name stand for this machine; a name that we do not know is refused."""
        given = headers.getlist("host")
        name = host_of(given[0]) if len(given) == 1 else ""
        address = _address(name)
        if name in self._hosts or (address is not None and (address.is_loopback or not self._local)):
            return
        shown = ", ".join(given)[:100]
        message = f"the host {shown!r} is not one of this server's; allow it with --allow-host"
        raise ApiError(403, message, "foreign_host")

    def _check_origin(self, headers: Headers, scheme: str) -> None:
        """A page of another origin may not send requests, with or without reading what comes back."""
        origin = headers.get("origin")
        own = {f"{scheme}://{headers.get('host', '')}".lower(), *self._origins}
        if (origin is not None and origin.lower() not in own) or (
            origin is None and headers.get("sec-fetch-site") in ("cross-site", "same-site")
        ):
            message = "requests of pages of other origins are not taken; open the address of this server itself"
            if origin is not None:
                message = f"requests of pages from {origin[:100]!r} are not taken; allow it with --allow-origin"
            raise ApiError(403, message, "foreign_origin")


def host_of(header: str) -> str:
    """The name in a Host header, without its port; "" if it is none."""
    name, colon, port = header.lower().rpartition(":")
    if colon and port.isdecimal() and (":" not in name or name.endswith("]")):
        header = name
    header = header.lower()
    return header.removeprefix("[").removesuffix("]") if header.startswith("[") else header


def is_loopback(host: str) -> bool:
    """Whether a server there is reached from this machine alone."""
    address = _address(host)
    return host == LOOPBACK if address is None else address.is_loopback


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return None if "%" in name else ipaddress.ip_address(name)
    except ValueError:
        return None


def _no_route(scope: Scope, known: bool, routes: Iterable[Any]) -> ApiError:
    if not known:
        return ApiError(404, "there is nothing here; GET /openapi.json says what there is", "not_found")
    methods = sorted({method for one in routes if one.matches(scope)[0].value for method in one.methods or ()})
    message = f"{scope['method']} is not taken here; {', '.join(methods)} is"
    return ApiError(405, message, "method_not_allowed", headers={"Allow": ", ".join(methods)})
