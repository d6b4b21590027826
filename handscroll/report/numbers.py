"""How a report writes numbers, and the sentences that set one of them against others."""

import math
from collections.abc import Sequence

from handscroll.report.language import listed, say


def loss(value: float | None) -> str:
    """Nats per token: three decimals, two for large ones."""
    return "–" if value is None else f"{value:.2f}" if value >= 10 else f"{value:.3f}"


def interval(low: float | None, high: float | None) -> str:
    """The two ends of an interval of losses."""
    return "–" if low is None or high is None else f"[{loss(low)}, {loss(high)}]"


def perplexity(nats: float | None) -> str:
    """The exponential of a loss."""
    if nats is None:
        return "–"
    value = math.exp(nats) if nats < 700 else math.inf
    return f"{value:,.2f}" if value < 100 else f"{value:,.0f}" if value < 1e6 else f"{value:.1e}"


def share(value: float | None) -> str:
    """A percentage that says 100% only for all and 0% only for none."""
    if value is None:
        return "–"
    edge = 0 < value < 0.005 or 0.995 <= value < 1
    return f"{value:.1%}" if edge else f"{value:.0%}"


def number(value: int | None) -> str:
    """A whole number with its thousands apart."""
    return "–" if value is None else f"{value:,}"


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of those that were measured; None if none was."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def against(parts: Sequence[tuple[str | None, str]]) -> str:
    """The first of (value, name) against the others: "2.1 (after), against 8.9 (before) and 2.4 (window)"."""
    first, *rest = [say("{value} ({name})", value=value or say("not measured"), name=name) for value, name in parts]
    return say("{first}, against {others}", first=first, others=listed(rest)) if rest else first


def capital(text: str) -> str:
    """The text with a capital at its start."""
    return text[:1].upper() + text[1:]


def unique(labels: Sequence[str], models: Sequence[str], lengths: Sequence[str]) -> list[str]:
    """Labels, made unique by model and length where they repeat."""
    names = list(labels)
    for more in (models, lengths):
        repeated = {name for name in names if names.count(name) > 1}
        names = [f"{name}, {extra}" if name in repeated else name for name, extra in zip(names, more, strict=True)]
    return [f"{name} ({names[:i].count(name) + 1})" if names.count(name) > 1 else name for i, name in enumerate(names)]
