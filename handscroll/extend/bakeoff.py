"""The bake-off measures every candidate on the same text and chooses the winner by loss, with a guard for short text.

It has two rounds: all candidates on one window, then the best candidate of each method on all windows. `long` is the
mean loss at positions past the trained length. `short` is the mean loss at the positions before it, in the same
windows. It is compared with the short loss of the unchanged model, which shows whether a scaling hurts short text.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from handscroll.evaluate.perplexity import token_nll
from handscroll.evaluate.samples import Sample, fingerprint
from handscroll.extend.measuring import Measuring
from handscroll.extend.methods import apply
from handscroll.extend.remembered import Remembered, Values
from handscroll.lm import LM
from handscroll.models.model import Model
from handscroll.nn.positions.candidate import Candidate

Progress = Callable[[str, int, int], None]  # what is done now; tokens read so far, and in all
MARGIN = 0.02  # nats by which a change must beat the unchanged model
PENALTY = 5.0  # weight of each nat by which the rise of the short loss exceeds the guard


@dataclass(frozen=True)
class Row:
    """One measured candidate; losses in nats per token."""

    candidate: Candidate
    long: float
    short: float
    verdict: str = ""

    def within(self, base: float, guard: float) -> bool:
        return self.short - base <= guard


@dataclass(frozen=True)
class Goal:
    """Lengthen from `trained` to `target` tokens, while the loss of short text rises by at most `guard` nats."""

    target: int
    trained: int
    guard: float


@dataclass(frozen=True)
class Outcome:
    """The best candidate of each method (best first), the goal, and the text of the measurement.

    `base` is the unchanged model's loss on short text, in nats per token.
    """

    rows: tuple[Row, ...]
    base: float
    goal: Goal
    samples: tuple[Sample, ...]

    @property
    def winner(self) -> Row:
        return self.rows[0]

    @property
    def guarded(self) -> bool:
        """Whether the winner's rise in the loss of short text stays within the guard."""
        return self.winner.within(self.base, self.goal.guard)

    def record(self) -> dict[str, Any]:
        rows = [
            {
                "method": row.candidate.name,
                "long_loss": row.long,
                "short_loss": row.short,
                "verdict": row.verdict,
                "chosen": row is self.winner,
            }
            for row in self.rows
        ]
        return {
            "kind": "candidates",
            "target": self.goal.target,
            "trained": self.goal.trained,
            "short_before": self.base,
            "guard": self.goal.guard,
            "windows": len(self.samples),
            "text_sha256": fingerprint(self.samples),
            "rows": rows,
        }


def bake_off(
    lm: LM,
    entries: Sequence[Candidate],
    samples: Sequence[Sample],
    goal: Goal,
    progress: Progress | None = None,
    remembered: Remembered | None = None,
) -> Outcome:
    """Measure `entries` on `samples` (windows of `goal.target` tokens) and rank them; the model stays unchanged.

    The winner has the lowest score. The score is the long loss, plus `PENALTY` times the part of the rise of the short
    loss that exceeds the guard. (With a hard limit the unchanged model would win, because it does no harm.) The score
    of the unchanged model is lowered by `MARGIN`, so a change must be at least that much better. Windows that
    `remembered` holds are not measured again.
    """
    memory = remembered or Remembered(None, lm)
    trained, guard = goal.trained, goal.guard
    counted = _Counted(memory, progress, Measuring.of(entries, goal.target, trained, len(samples)).tokens)
    counted.note("the model as it is")
    base = sum(_window(lm, s.ids[:trained], trained, None, counted)[1] for s in samples) / len(samples)
    finalists: dict[str, Row] = {}
    for number, entry in enumerate(entries):
        counted.note(f"candidate {number + 1} of {len(entries)}: {entry.name}")
        row = _measured(lm, entry, samples[:1], trained, counted)
        best = finalists.get(entry.method)
        if best is None or _rank(row, base, guard) < _rank(best, base, guard):
            finalists[entry.method] = row
    rows = list(finalists.values())
    if len(samples) > 1:
        rows = []
        for row in finalists.values():
            counted.note(f"all windows: {row.candidate.name}")
            rows.append(_measured(lm, row.candidate, samples, trained, counted))
    rows.sort(key=lambda row: _rank(row, base, guard))
    verdicts = [_verdict(row, rank == 0, base, guard) for rank, row in enumerate(rows)]
    ranked = tuple(Row(r.candidate, r.long, r.short, v) for r, v in zip(rows, verdicts, strict=True))
    return Outcome(ranked, base, goal, tuple(samples))


class _Counted:
    """Tells `progress` what is measured now, and how many tokens were read."""

    def __init__(self, memory: Remembered, progress: Progress | None, total: int):
        self.memory, self._progress, self._total = memory, progress, total
        self._done, self._now = 0, ""

    def note(self, now: str) -> None:
        self._now = now
        self.read(0)

    def read(self, here: int) -> None:
        """`here` tokens of the window were read."""
        if self._progress is not None:
            self._progress(self._now, min(self._done + here, self._total), self._total)

    def finish(self, window: int) -> None:
        """A whole window was read, or was known from before."""
        self._done += window
        self.read(0)


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


def _measured(lm: LM, candidate: Candidate, samples: Sequence[Sample], trained: int, counted: "_Counted") -> Row:
    losses = [_window(lm, sample.ids, trained, candidate, counted) for sample in samples]
    long, short = (sum(column) / len(samples) for column in zip(*losses, strict=True))
    return Row(candidate, long, short)


def _window(
    lm: LM, ids: list[int], trained: int, candidate: Candidate | None, counted: "_Counted"
) -> tuple[float, float]:
    """Mean loss at the positions past the trained length (0 if there are none), and before it."""

    def measured() -> Values:
        if candidate is None:
            losses = token_nll(lm, ids, on_read=counted.read).double()
        else:
            with applied(lm.model, candidate):
                losses = token_nll(lm, ids, on_read=counted.read).double()
        far = losses[max(0, trained - 1) :]
        return {"long": float(far.mean()) if len(far) else 0.0, "short": float(losses[: trained - 1].mean())}

    how = None if candidate is None else [candidate.name, candidate.changes]
    found = counted.memory.value([how, trained, ids], measured)
    counted.finish(len(ids))
    return found["long"], found["short"]


def _rank(row: Row, base: float, guard: float) -> float:
    margin = MARGIN if row.candidate.method == "none" else 0.0
    return row.long - margin + PENALTY * max(0.0, row.short - base - guard)


def _verdict(row: Row, first: bool, base: float, guard: float) -> str:
    rise = row.short - base
    hurt = f"short text +{rise:.2f}, past the guard of {guard:g}"
    if first:
        return "chosen" if rise <= guard else f"chosen although {hurt}"
    return hurt if rise > guard else "within the guard"
