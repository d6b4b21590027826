"""Who may call an endpoint. An endpoint that does not say it is never called (`gate.py`)."""

from collections.abc import Callable
from typing import Any, Literal, TypeVar

from starlette.routing import BaseRoute, Match

Policy = Literal["open", "key"]
Taken = Literal["nothing", "answer", "count", "watch"]
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


def policy(rule: Policy, takes: Taken = "nothing") -> Callable[[Endpoint], Endpoint]:
    """Mark an endpoint: "open" for everybody, "key" for who has a key, where keys are asked for.

    While there is no place of the kind that one `takes`, its requests are refused before their bodies are read.
    """

    def marked(endpoint: Endpoint) -> Endpoint:
        endpoint.policy = rule  # type: ignore[attr-defined]
        endpoint.takes = takes  # type: ignore[attr-defined]
        return endpoint

    return marked


def policy_of(route: BaseRoute) -> Policy | None:
    """The policy of a route; None where its endpoint names none."""
    return getattr(getattr(route, "endpoint", None), "policy", None)


def taken(route: BaseRoute | None) -> Taken:
    """The kind of place that a request for this route takes."""
    return getattr(getattr(route, "endpoint", None), "takes", "nothing")


def matching(routes: list[BaseRoute], scope: Any) -> tuple[BaseRoute | None, bool]:
    """The route of a request, and whether its path is known at all (with another method, if there is no route)."""
    known = False
    for route in routes:
        found, _ = route.matches(scope)
        if found is Match.FULL:
            return route, True
        known = known or found is Match.PARTIAL
    return None, known
