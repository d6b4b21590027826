"""Where, by position, one runtime leaves another: log-probabilities of the same ids in both."""

import itertools
import math
from dataclasses import dataclass
from typing import Any

from handscroll.base.errors import ConfigError
from handscroll.doctor.finding import Cannot
from handscroll.doctor.runtime import Ids, Runtime

NEAR = 10  # times what rounding leaves, in nats


@dataclass(frozen=True)
class Range:
    """The mean and the largest difference (nats) of the log-probabilities of tokens first .. last - 1."""

    first: int
    last: int
    mean: float
    worst: float


@dataclass(frozen=True)
class Apart:
    """How far two runtimes are apart on the same ids; `first` is the first token beyond `near` (None: none)."""

    sources: tuple[str, str]
    tokens: int
    near: float
    first: int | None
    ranges: tuple[Range, ...]
    losses: tuple[float, float]

    @property
    def says(self) -> str:
        """One sentence."""
        one, other = self.sources
        if self.first is None:
            worst = max(each.worst for each in self.ranges)
            return f"{one} and {other} agree on all {self.tokens:,} tokens (to {worst:.2g} nats)"
        shape = {True: "and grows with the position", False: "and does not grow with the position"}[self.grows]
        return f"{one} leaves {other} at token {self.first:,} by more than {self.near:g} nats, {shape}"

    @property
    def grows(self) -> bool:
        """Whether the difference of the last range is at least twice that of the range where it begins."""
        begun = next((each for each in self.ranges if self.first is not None and each.last > self.first), None)
        return begun is not None and begun is not self.ranges[-1] and self.ranges[-1].mean > 2 * begun.mean

    def record(self) -> dict[str, Any]:
        """A record of kind "runtimes"."""
        ranges = [{"first": b.first, "last": b.last, "mean": b.mean, "worst": b.worst} for b in self.ranges]
        found = {"kind": "runtimes", "runtimes": list(self.sources), "tokens": self.tokens, "near": self.near}
        return found | {"first": self.first, "losses": list(self.losses), "ranges": ranges}


def compare(one: Runtime, other: Runtime, ids: Ids) -> Apart:
    """Read `ids` in both runtimes and say where they part.

    Raises:
        ConfigError: one of the two gives no log-probabilities.
    """
    if len(ids) < 2:
        raise ConfigError(f"two runtimes are compared on at least two tokens, not {len(ids)}")
    try:
        here, there = one.logprobs(ids), other.logprobs(ids)
    except Cannot as error:
        raise ConfigError(f"{one.source} and {other.source} cannot be compared: {error}") from None
    off = (here - there).abs().nan_to_num(math.inf)
    near = NEAR * max(one.rounding, other.rounding)
    beyond = (off > near).nonzero().flatten().tolist()
    edges = [1]
    while edges[-1] < len(ids):
        edges.append(min(max(16, 2 * edges[-1]), len(ids)))
    ranges = []
    for first, last in itertools.pairwise(edges):
        part = off[first - 1 : last - 1]
        ranges.append(Range(first, last, float(part.mean()), float(part.max())))
    sources = (f"{one.kind} {one.source}", f"{other.kind} {other.source}")
    losses = (float(-here.mean()), float(-there.mean()))
    return Apart(sources, len(ids), near, beyond[0] + 1 if beyond else None, tuple(ranges), losses)
