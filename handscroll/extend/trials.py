"""Measures candidates on windows of text, one trial each; what was measured before is not measured again."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from handscroll.extend.methods import apply
from handscroll.extend.remembered import Remembered, Values
from handscroll.extend.windows import Window, losses, short_losses
from handscroll.lm import LM
from handscroll.models.model import Model
from handscroll.nn.positions.candidate import Candidate

Progress = Callable[[str, int, int], None]  # what is done now; tokens read so far, and in all
BLOCKS = 32  # parts of a window's far tokens, whose mean losses are compared in pairs
MARGIN = 0.02  # nats by which a change must beat the unchanged model; smaller differences decide nothing
PENALTY = 5.0  # weight of each nat by which the rise of the short loss exceeds the guard


@dataclass(frozen=True)
class Trial:
    """One candidate on one window, in nats per token: `far` by block of tokens past the trained length, `near` by block
    of the short texts; `base` is the unchanged model on the short texts. `tokens` were read, in `seconds`."""

    far: tuple[float, ...]
    near: tuple[float, ...]
    long: float
    short: float
    base: float
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Standing:
    """A candidate and its trials so far, on windows of one kind."""

    candidate: Candidate
    trials: tuple[Trial, ...] = ()

    @property
    def long(self) -> float:
        return _mean([trial.long for trial in self.trials])

    @property
    def short(self) -> float:
        return _mean([trial.short for trial in self.trials])

    @property
    def rise(self) -> float:
        """How much worse short text became."""
        return _mean([trial.short - trial.base for trial in self.trials])

    def score(self, guard: float) -> float:
        """The long loss, plus `PENALTY` times the rise of the short loss beyond the guard. (With a hard limit the
        unchanged model would win, because it does no harm.) The unchanged model needs `MARGIN` less."""
        margin = MARGIN if self.candidate.method == "none" else 0.0
        return self.long - margin + PENALTY * max(0.0, self.rise - guard)

    def apart(self, other: "Standing", guard: float) -> tuple[float, float]:
        """How much worse the score is than that of `other`, and the standard error of this difference.

        The error is that of the paired differences by block, on the windows of both; where short text lost more than
        the guard allows, that of its differences too.
        """
        pairs = list(zip(self.trials, other.trials, strict=False))
        variance = _variance([(a.far, b.far) for a, b in pairs])
        if max(self.rise, other.rise) > guard:
            variance += PENALTY**2 * _variance([(a.near, b.near) for a, b in pairs])
        return self.score(guard) - other.score(guard), variance**0.5

    def clearly_behind(self, other: "Standing", guard: float) -> bool:
        """Whether the score is worse than that of `other` by more than `MARGIN` and three standard errors."""
        difference, error = self.apart(other, guard)
        return difference > MARGIN + 3 * error


def _variance(pairs: Sequence[tuple[tuple[float, ...], tuple[float, ...]]]) -> float:
    """The variance of the mean of the paired differences; infinite where there are too few to know it."""
    apart = torch.tensor([a - b for x, y in pairs for a, b in zip(x, y, strict=True)], dtype=torch.float64)
    return float(apart.var()) / len(apart) if len(apart) > 1 else float("inf")


def _blocks(losses: torch.Tensor) -> list[float]:
    return [float(part.mean()) for part in losses.tensor_split(min(BLOCKS, max(1, len(losses)))) if len(part)]


class Trials:
    """Runs trials on a model, which stays unchanged, and tells `progress` how many of `total` tokens were read."""

    def __init__(self, lm: LM, memory: Remembered | None = None, progress: Progress | None = None, total: int = 0):
        self.lm, self.memory = lm, memory or Remembered(None, lm)
        self.read = 0  # tokens, those of remembered trials included
        self._progress, self._total, self._done, self._now = progress, total, 0, ""

    def note(self, now: str) -> None:
        self._now = now
        self._told(0)

    def skip(self, tokens: int) -> None:
        """Tokens that were planned need not be read."""
        self._done += tokens
        self._told(0)

    def base(self, window: Window) -> float:
        """The unchanged model's mean loss on the short texts of a window."""
        size = window.near + sum(len(one.ids) for one in window.others)
        found = self.memory.value(
            ["as it is", window.near, list(window.ids[:size])],
            lambda: {"short": float(short_losses(self.lm, window).mean())},
        )
        self._finish(size)
        return found["short"]

    def trial(self, candidate: Candidate, window: Window, base: float) -> Trial:
        def measured() -> Values:
            begun = time.monotonic()
            with applied(self.lm.model, candidate):
                far, short = losses(self.lm, window, self._told)
            values = {
                "far": _blocks(far),
                "near": _blocks(short),
                "long": float(far.mean()) if len(far) else 0.0,
                "short": float(short.mean()),
            }
            return values | {"seconds": round(time.monotonic() - begun, 3)}

        how = [candidate.name, candidate.changes, *window.where()]
        found = self.memory.value(how, measured)
        self._finish(window.cost)
        blocks = (tuple(found["far"]), tuple(found["near"]))
        return Trial(*blocks, found["long"], found["short"], base, window.cost, found["seconds"])

    def further(self, field: Sequence[Standing], windows: Sequence[Window], bases: Sequence[float]) -> list[Standing]:
        """Each of `field` with trials on `windows` more."""
        made = []
        for standing in field:
            self.note(standing.candidate.name)
            trials = [self.trial(standing.candidate, w, base) for w, base in zip(windows, bases, strict=True)]
            made.append(Standing(standing.candidate, (*standing.trials, *trials)))
        return made

    def _finish(self, tokens: int) -> None:
        self._done += tokens
        self.read += tokens
        self._told(0)

    def _told(self, here: int) -> None:
        if self._progress is not None:
            self._progress(self._now, min(self._done + here, self._total), self._total)


@contextmanager
def applied(model: Model, candidate: Candidate) -> Iterator[None]:
    """Lengthen the model while the block runs, then restore it."""
    config, table = model.config, getattr(model, "position_embedding", None)
    try:
        apply(model, candidate)
        yield
    finally:
        model.config = config
        if table is not None:
            model.set_submodule("position_embedding", table)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
