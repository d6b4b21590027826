"""Who may call an endpoint. An endpoint that does not say it is never called (`gate.py`)."""

from collections.abc import Callable
from typing import Any, Literal, TypeVar

from starlette.routing import BaseRoute, Match

Policy = Literal["open", "key"]
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


def policy(rule: Policy) -> Callable[[Endpoint], Endpoint]:
    """Mark an endpoint: "open" for everybody, "key" for who has a key, where keys are asked for."""

    def marked(endpoint: Endpoint) -> Endpoint:
        endpoint.policy = rule  # type: ignore[attr-defined]
        return endpoint

    return marked


def policy_of(route: BaseRoute) -> Policy | None:
    """The policy of a route; None where its endpoint names none."""
    return getattr(getattr(route, "endpoint", None), "policy", None)


def matching(routes: list[BaseRoute], scope: Any) -> tuple[BaseRoute | None, bool]:
    """The route of a request, and whether its path is known at all (with another method, if there is no route)."""
    known = False
    for route in routes:
        found, _ = route.matches(scope)
        if found is Match.FULL:
            return route, True
        known = known or found is Match.PARTIAL
    return None, known
