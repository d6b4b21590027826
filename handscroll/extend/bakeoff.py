"""The bake-off: candidates are measured on the same text, round by round fewer of them on more of it.

`long` is the mean loss at positions past the trained length. `short` is the mean loss at the positions before it (at
most 4,096), in the same windows; where the trained length is short, further texts of it are cut from a window and read
by themselves. It is compared with the short loss of the unchanged model, which shows whether a
scaling hurts short text. The rounds are those of `extend/measuring.py`; a candidate that is clearly behind in paired
differences on the same tokens is left out earlier.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from handscroll.evaluate.samples import Sample, fingerprint
from handscroll.extend.measuring import Round
from handscroll.extend.trials import Standing, Trials
from handscroll.extend.windows import NEAR, Window, certificate
from handscroll.nn.positions.candidate import Candidate


@dataclass(frozen=True)
class Row:
    """The best candidate of a method. Losses in nats per token, None if it was left out before the last round.

    `behind` is the distance of its score from the best one, in the last `round` in which it was measured.
    """

    candidate: Candidate
    long: float | None
    short: float | None
    rise: float
    behind: float
    round: int
    verdict: str = ""


@dataclass(frozen=True)
class Goal:
    """Lengthen from `trained` to `target` tokens, while the loss of short text rises by at most `guard` nats."""

    target: int
    trained: int
    guard: float


@dataclass(frozen=True)
class Outcome:
    """The best candidate of each method (best first), the goal, and the text of the measurement.

    `base` is the unchanged model's loss on short text, in nats per token; `read` counts the tokens of all trials.
    """

    rows: tuple[Row, ...]
    base: float
    goal: Goal
    samples: tuple[Sample, ...]
    read: int

    @property
    def winner(self) -> Row:
        return self.rows[0]

    @property
    def guarded(self) -> bool:
        """Whether the winner's rise in the loss of short text stays within the guard."""
        return self.winner.rise <= self.goal.guard

    @property
    def near(self) -> int:
        """Tokens of a window that count as short text."""
        return min(self.goal.trained, len(self.samples[0].ids), NEAR)

    def record(self) -> dict[str, Any]:
        rows = [
            {
                "method": row.candidate.name,
                "long_loss": row.long,
                "short_loss": row.short,
                "behind": row.behind,
                "round": row.round,
                "verdict": row.verdict,
                "chosen": row is self.winner,
            }
            for row in self.rows
        ]
        return {
            "kind": "candidates",
            "target": self.goal.target,
            "trained": self.goal.trained,
            "measured_to": len(self.samples[0].ids),
            "short_before": self.base,
            "guard": self.goal.guard,
            "windows": len(self.samples),
            "tokens": self.read,
            "text_sha256": fingerprint(self.samples),
            "certificate": certificate(self.samples),
            "rows": rows,
        }


@dataclass(frozen=True)
class Text:
    """What candidates are measured on: real windows, and passages for leaping ones."""

    real: Sequence[Sample]
    leaping: Sequence[Sample] = ()


def bake_off(trials: Trials, entries: Sequence[Candidate], text: Text, rounds: Sequence[Round], goal: Goal) -> Outcome:
    """Measure `entries` round by round and rank them; the winner has the lowest score (`Standing.score`)."""
    trained, target, guard = goal.trained, goal.target, goal.guard
    trials.note("the model as it is")
    real = [Window.real(sample, trained, target) for sample in text.real]
    leaping = [Window.leaping(sample, trained, target) for sample in text.leaping]
    bases = {True: [trials.base(each) for each in leaping], False: [trials.base(each) for each in real]}
    field = [Standing(entry) for entry in entries]
    found: dict[str, tuple[int, Standing, float]] = {}  # by candidate: its last round, and how far behind it was
    used, before = {True: 0, False: 0}, rounds[0].leaping
    for number, each in enumerate(rounds, start=1):
        field = field if number == 1 else _entering(field, each, guard, two=before or each.leaping)
        trials.skip((each.candidates - len(field)) * each.windows * each.each)
        if len(field) == 1 and number > 1 and before == each.leaping:
            trials.skip(each.windows * each.each)  # there is nobody to compare it with
            break
        if before != each.leaping:
            field = [Standing(one.candidate) for one in field]  # leaping windows and real ones are not added up
        here = slice(used[each.leaping], used[each.leaping] + each.windows)
        used[each.leaping], before = here.stop, each.leaping
        windows = leaping if each.leaping else real
        field = trials.further(field, windows[here], bases[each.leaping][here])
        field.sort(key=lambda one: one.score(guard))
        best = field[0].score(guard)
        found |= {one.candidate.name: (number, one, one.score(guard) - best) for one in field}
    base = sum(bases[False]) / len(bases[False])
    return Outcome(_rows(found, guard), base, goal, tuple(text.real), trials.read)


def _entering(field: Sequence[Standing], each: Round, guard: float, two: bool) -> list[Standing]:
    """Those of a sorted field that enter a round: the best, without those that are clearly behind.

    With `two` at least two go on: leaping windows alone do not decide. Among finalists one place is left to another
    method than the best.
    """
    kept = list(field[: each.candidates])
    others = [one for one in field if one.candidate.method != field[0].candidate.method]
    if not each.leaping and each.candidates > 2 and others and others[0] not in kept:
        kept[-1] = others[0]
    least = 2 if two else 1
    return [one for place, one in enumerate(kept) if place < least or not one.clearly_behind(kept[0], guard)]


def _rows(found: dict[str, tuple[int, Standing, float]], guard: float) -> tuple[Row, ...]:
    """The best candidate of each method, by the round that it reached and its score there."""
    order = sorted(found.values(), key=lambda one: (-one[0], one[2]))
    rows: dict[str, Row] = {}
    for last, one, behind in order:
        method = one.candidate.method
        if method in rows:
            continue
        stayed = last == order[0][0]
        verdict = _verdict(one, guard, first=not rows, out=0 if stayed else last)
        losses = (one.long, one.short) if stayed else (None, None)
        rows[method] = Row(one.candidate, *losses, one.rise, behind, last, verdict)
    return tuple(rows.values())


def _verdict(one: Standing, guard: float, first: bool, out: int) -> str:
    hurt = f"short text +{one.rise:.2f}, past the guard of {guard:g}"
    if first:
        return "chosen" if one.rise <= guard else f"chosen although {hurt}"
    words = [f"left out after round {out}"] if out else []
    words += [hurt] if one.rise > guard else []
    return "; ".join(words) or "within the guard"
