"""A comparison of all methods on the same text, with several seeds: which is best, and how sure that is.

Every method first chooses among its own settings, each with the same number of readings, on text of its own. Then all
methods read the same real windows, as many for each seed. They are ranked by the score of the bake-off (the loss past
the trained length, and what short text lost beyond the guard). How sure the ranking is comes from the paired bootstrap
over windows: windows are drawn again, for all methods the same, and the share of draws is counted in which a method
stays ahead (Efron 1979; Koehn 2004). Needles say whether far text is found, which a loss need not show.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import Field

from handscroll.base.config import Config
from handscroll.base.errors import ConfigError, DataError
from handscroll.evaluate.needle import NeedleGrid, needle_grid, planned_tokens
from handscroll.evaluate.samples import Sample, fingerprint
from handscroll.extend.bakeoff import Goal, Text
from handscroll.extend.measuring import LEAPS, Measuring
from handscroll.extend.trials import MARGIN, PENALTY, Standing, Trials, applied
from handscroll.extend.windows import Window, certificate
from handscroll.nn.positions.candidate import Candidate

RESAMPLES = 2000
DEPTHS = (0.1, 0.5, 0.9)


class Comparing(Config):
    """Sizes of a comparison: `windows` real windows for each of `seeds` seeds; `readings` windows by which each method
    chooses among its settings; `needles` needles at each length and depth (0: none)."""

    seeds: int = Field(default=3, ge=1)
    windows: int = Field(default=2, ge=1)
    readings: int = Field(default=16, ge=1)
    needles: int = Field(default=4, ge=0)


@dataclass(frozen=True)
class Line:
    """What one method is worth. `standing` has a trial for each window, seed after seed; `low` and `high` are the ends
    of the 95 % interval of its long loss. It is the first of all in the share `first` of all draws, and ahead of the
    next method in the share `ahead`; these four are None for a single window, which cannot be drawn in several ways.
    `needles` is the share found, None if none was looked for."""

    standing: Standing
    score: float
    low: float | None
    high: float | None
    by_seed: tuple[float, ...]
    first: float | None
    ahead: float | None
    needles: dict[str, Any] | None
    chosen_by: int

    @property
    def found(self) -> float | None:
        if self.needles is None:
            return None
        cells = [value for row in self.needles["accuracy"] for value in row]
        return sum(cells) / len(cells)

    @property
    def tokens(self) -> int:
        """Tokens that were read for this method: for its settings, and for its loss."""
        return self.chosen_by + sum(trial.tokens for trial in self.standing.trials)

    @property
    def seconds(self) -> float:
        """Seconds of reading the real windows."""
        return sum(trial.seconds for trial in self.standing.trials)


@dataclass(frozen=True)
class Comparison:
    """All methods, the best first. `base` is the unchanged model's loss on the short text."""

    model: str
    lines: tuple[Line, ...]
    base: float
    goal: Goal
    settings: Comparing
    samples: tuple[Sample, ...]
    seed: int
    notes: tuple[str, ...] = ()

    @property
    def winner(self) -> Line:
        return self.lines[0]

    @property
    def guarded(self) -> bool:
        return self.winner.standing.rise <= self.goal.guard

    def record(self) -> dict[str, Any]:
        """The JSON record (docs/report.md)."""
        rows = [
            {
                "method": line.standing.candidate.name,
                "long_loss": line.standing.long,
                "low": line.low,
                "high": line.high,
                "by_seed": list(line.by_seed),
                "short_loss": line.standing.short,
                "rise": line.standing.rise,
                "needles": line.found,
                "first": line.first,
                "ahead": line.ahead,
                "tokens": line.tokens,
                "seconds": round(line.seconds, 3),
            }
            for line in self.lines
        ]
        return {
            "kind": "comparison",
            "model": self.model,
            "trained": self.goal.trained,
            "target": self.goal.target,
            "measured_to": len(self.samples[0].ids),
            "guard": self.goal.guard,
            "short_before": self.base,
            "seed": self.seed,
            "seeds": self.settings.seeds,
            "windows": len(self.samples),
            "resamples": RESAMPLES,
            "margin": MARGIN,
            "penalty": PENALTY,
            "text_sha256": fingerprint(self.samples),
            "certificate": certificate(self.samples),
            "rows": rows,
            "notes": list(self.notes),
        }

    def records(self) -> list[dict[str, Any]]:
        """The comparison, a loss curve of each method, and its needles, for a report."""
        curves = [self._curve(line) for line in self.lines]
        return [self.record(), *curves, *[line.needles for line in self.lines if line.needles is not None]]

    def _curve(self, line: Line) -> dict[str, Any]:
        """The loss by position: the short text, then the blocks past the trained length."""
        trained, length, trials = self.goal.trained, len(self.samples[0].ids), line.standing.trials
        window = Window.real(self.samples[0], trained, self.goal.target)
        near, texts = window.near, 1 + len(window.others)
        edges = np.linspace(trained, length, len(trials[0].far) + 1)
        far = np.mean([trial.far for trial in trials], axis=0)
        return {
            "kind": "perplexity",
            "model": self.model,
            "trained": trained,
            "label": line.standing.candidate.method,
            "length": length,
            "positions": [near / 2, *((edges[:-1] + edges[1:]) / 2).tolist()],
            "loss": [line.standing.short, *far.tolist()],
            "tokens": len(trials) * (texts * (near - 1) + length - trained),
            "windows": len(trials),
            "sources": [f"{sample.source}@{sample.offset}" for sample in self.samples],
            "text_sha256": fingerprint(self.samples),
            "certificate": certificate(self.samples),
        }


@dataclass
class Contest:
    """The runner of a comparison: `groups` are the candidates of each method."""

    trials: Trials
    groups: Sequence[Sequence[Candidate]]
    text: Text
    plan: Measuring
    goal: Goal
    settings: Comparing
    seed: int = 0
    notes: list[str] = field(default_factory=list)

    def run(self, filler: Callable[[], Sequence[int]]) -> Comparison:
        """The comparison; `filler` gives the tokens among which needles are hidden."""
        goal, trials = self.goal, self.trials
        choosing, real = self._choosing(), [Window.real(one, goal.trained, goal.target) for one in self.text.real]
        trials.note("the model as it is")
        known = [trials.base(window) for window in choosing]
        bases = [trials.base(window) for window in real]
        before = trials.read
        chosen = [self._settled(group, choosing, known) for group in self.groups]
        trials.skip(sum(each.all for each in self.plan.rounds[:-1]) - (trials.read - before))
        standings = trials.further([Standing(one) for one, _ in chosen], real, bases)
        needles = [self._needles(one, filler) for one in standings]
        costs = [tokens for _, tokens in chosen]
        lines = self._ranked(standings, needles, costs)
        base = sum(bases) / len(bases)
        every = (trials.lm.source, lines, base, goal, self.settings, tuple(self.text.real), self.seed)
        return Comparison(*every, tuple(self.notes))

    def _choosing(self) -> list[Window]:
        """The windows on which methods choose among their settings."""
        if self.text.leaping and self.plan.leaps:
            return [Window.leaping(one, self.goal.trained, self.goal.target) for one in self.text.leaping]
        return [Window.real(one, self.goal.trained, self.goal.target) for one in self.text.leaping]

    def _settled(
        self, group: Sequence[Candidate], windows: Sequence[Window], bases: Sequence[float]
    ) -> tuple[Candidate, int]:
        """The best of a method's candidates by its share of readings, and the tokens that this took."""
        if len(group) == 1:
            return group[0], 0
        before, guard = self.trials.read, self.goal.guard
        standings = [Standing(one) for one in group]
        left = max(self.settings.readings, len(group))
        for window, base in zip(windows, bases, strict=True):
            standings = self.trials.further(standings[:left], [window], [base])
            standings.sort(key=lambda one: one.score(guard))
            left -= len(standings)
            standings = standings[: max(2, len(standings) // 3)]
            if left < 2:
                break
        return standings[0].candidate, self.trials.read - before

    def _needles(self, standing: Standing, filler: Callable[[], Sequence[int]]) -> dict[str, Any] | None:
        """A small grid at the trained length and at the end; None, with a note, where the model cannot be asked."""
        if not self.settings.needles or self.notes:
            return None
        lm, length, method = self.trials.lm, len(self.text.real[0].ids), standing.candidate.method
        grid = needle_cells(self.goal.trained, length, self.settings.needles, self.seed)
        self.trials.note(f"needles: {standing.candidate.name}")

        def measured() -> dict[str, Any]:
            with applied(lm.model, standing.candidate):
                return {"record": needle_grid(lm, filler(), grid, method)}

        try:
            how = ["needles", standing.candidate.name, standing.candidate.changes, grid.model_dump()]
            found = self.trials.memory.value([*how, fingerprint(self.text.real)], measured)["record"]
        except (ConfigError, DataError) as error:
            self.notes.append(f"needles were not looked for: {error}")
            return None
        self.trials.skip(planned_tokens(grid))
        return found | {"trained": self.goal.trained}

    def _ranked(
        self, standings: Sequence[Standing], needles: Sequence[dict[str, Any] | None], costs: Sequence[int]
    ) -> tuple[Line, ...]:
        guard, count = self.goal.guard, len(self.text.real)
        long = np.array([[trial.long for trial in one.trials] for one in standings])
        rise = np.array([[trial.short - trial.base for trial in one.trials] for one in standings])
        margin = np.array([MARGIN if one.candidate.method == "none" else 0.0 for one in standings])
        draws = np.random.default_rng(self.seed).integers(0, count, (RESAMPLES, count))
        # (methods, draws): the same windows are drawn for every method
        scores = long[:, draws].mean(2) - margin[:, None]
        scores += PENALTY * np.maximum(0.0, rise[:, draws].mean(2) - guard)
        order = sorted(range(len(standings)), key=lambda at: standings[at].score(guard))
        best = scores.argmin(axis=0)
        lines = []
        for place, at in enumerate(order):
            low, high, share, after = None, None, None, None
            if count > 1:
                low, high = np.quantile(long[at][draws].mean(1), [0.025, 0.975]).tolist()
                share = float((best == at).mean())
                if place + 1 < len(order):
                    after = float((scores[at] < scores[order[place + 1]]).mean())
            by_seed = tuple(long[at].reshape(self.settings.seeds, -1).mean(1).tolist())
            one = standings[at]
            figures = (one.score(guard), low, high, by_seed, share, after)
            lines.append(Line(one, *figures, needles[at], costs[at]))
        return tuple(lines)


def needle_cells(trained: int, length: int, needles: int, seed: int = 0) -> NeedleGrid:
    """The small grid of a comparison: needles at the trained length and at the end of what is measured."""
    lengths = sorted({min(trained, length), length})
    return NeedleGrid.parse({"lengths": lengths, "depths": DEPTHS, "samples": needles, "seed": seed}, "needles")


def choosing_windows() -> int:
    """Windows of text that a comparison needs beside the real ones."""
    return LEAPS
