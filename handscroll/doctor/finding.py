"""What a check says of a runtime, and what all checks together say of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from handscroll.doctor.runtime import Runtime

Verdict = Literal["healthy", "wrong", "unexamined", "absent"]


class Cannot(Exception):
    """A runtime does not give what a check needs; the text says what."""


class Absent(Exception):
    """What a check is about does not exist in this model; the text says what."""


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: what it is, how it shows to a user, and how to mend it."""

    what: str
    shows: str
    mend: str


@dataclass(frozen=True)
class Seen:
    """What a check saw: a sentence, the faults among it, notes on what is worth knowing, and the numbers behind it."""

    what: str
    faults: tuple[Fault, ...] = ()
    notes: tuple[str, ...] = ()
    numbers: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """One check: the question it answers, and the function that answers it.

    `run` raises `Absent` where there is nothing to be checked, and `Cannot` where the runtime does not let it look.
    """

    question: str
    run: Callable[["Runtime"], Seen]


@dataclass(frozen=True)
class Examined:
    """The verdict of one check. `seen` is empty where it could not look; `why` then says the reason."""

    name: str
    question: str
    verdict: Verdict
    seconds: float
    seen: Seen | None = None
    why: str = ""

    def record(self) -> dict[str, Any]:
        """The verdict as a plain object."""
        found: dict[str, Any] = {"name": self.name, "question": self.question, "verdict": self.verdict}
        if self.seen is None:
            return found | {"why": self.why}
        faults = [{"what": one.what, "shows": one.shows, "mend": one.mend} for one in self.seen.faults]
        notes, numbers = list(self.seen.notes), dict(self.seen.numbers)
        return found | {"seen": self.seen.what, "faults": faults, "notes": notes, "numbers": numbers}


@dataclass(frozen=True)
class Diagnosis:
    """What all checks say of a runtime."""

    source: str
    runtime: str
    checks: tuple[Examined, ...]

    def of(self, verdict: Verdict) -> list[Examined]:
        """The checks with a verdict."""
        return [one for one in self.checks if one.verdict == verdict]

    @property
    def wrong(self) -> tuple[str, ...]:
        """The names of the checks that found something."""
        return tuple(one.name for one in self.of("wrong"))

    @property
    def status(self) -> int:
        """The exit status: 0 nothing was found, 1 something was, 2 nothing could be examined."""
        if self.wrong:
            return 1
        return 0 if self.of("healthy") else 2

    def record(self) -> dict[str, Any]:
        """A record of kind "doctor"; it holds no times, so that the same model gives the same record."""
        checks = [one.record() for one in self.checks]
        return {"kind": "doctor", "model": self.source, "runtime": self.runtime, "wrong": self.wrong, "checks": checks}
