"""What is read before a candidate is chosen: rounds in tokens, and their seconds as the planner predicts them.

Successive halving (Jamieson & Talwalkar 2016, arXiv:1502.07943; Li et al. 2018, "Hyperband"): all candidates read a
short text, fewer read more. A real window of a long target costs hundreds of times a leaping one (`extend/windows.py`),
so only the last few candidates read real ones, and of those no more than shows what lies past the trained length.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from handscroll.base.spec import ModelSpec
from handscroll.base.workload import Workload
from handscroll.extend.windows import NEAR, leaping_size, more_short
from handscroll.plan.calibration import Calibration
from handscroll.plan.duration import reading, writing
from handscroll.plan.show import clock

MEASURED = 8192  # approximate number of tokens that each finalist reads
FEWEST, MOST = 3, 6  # finalists, which read real windows; the others are judged on leaping ones
LEAPS = 3  # leaping windows
ROWS = 16  # texts that the model writes at a time
MINUTE = 60.0  # seconds from which on a forecast is shown beforehand


def reach(trained: int, to: int, measured: int) -> int:
    """Tokens of a real window: those of the target, or fewer if the target is long and `measured` tokens are few."""
    return min(to, max(2 * measured, trained + trained // 4))


def finalists(real: int, measured: int) -> int:
    """How many candidates read real windows of `real` tokens: more if they are short."""
    return max(FEWEST, min(MOST, 4 * measured // real))


def can_leap(spec: ModelSpec, trained: int, to: int, real: int) -> bool:
    """Whether leaping windows can be read, and are cheaper than real ones of `real` tokens."""
    size = leaping_size(trained, to)
    return spec.reads == "forward" and 0 < 2 * size <= real


@dataclass(frozen=True)
class Round:
    """At most `candidates` are measured on `windows` further windows of `tokens` tokens; `what` names the round.

    `short` tokens of each window are read once more, as short texts by themselves.
    """

    candidates: int
    windows: int
    tokens: int
    leaping: bool = False
    what: str = "candidates"
    short: int = 0

    @property
    def each(self) -> int:
        """Tokens that a candidate reads for a window."""
        return self.tokens + self.short

    @property
    def all(self) -> int:
        """Tokens of the whole round."""
        return self.candidates * self.windows * self.each

    def words(self, target: int) -> str:
        window = "a window" if self.windows == 1 else f"{self.windows} windows"
        leaps = f" with positions up to {target:,}" if self.leaping else ""
        what = f"{self.candidates} {self.what}"
        if self.candidates == 1:
            what = "a candidate" if self.what == "candidates" else self.what
        return f"{what} on {window} of {self.tokens:,} tokens{leaps}"


@dataclass(frozen=True)
class Measuring:
    """`rounds` of candidates for `target` tokens, with others `before` and `after` them.

    The model as it is reads the `short` text of each window. `written` tokens are written by the model itself, as text.
    """

    target: int
    trained: int
    rounds: tuple[Round, ...]
    short: tuple[int, ...]
    written: int = 0
    before: tuple[Round, ...] = ()
    after: tuple[Round, ...] = ()

    @classmethod
    def of(
        cls,
        entries: int,
        spec: ModelSpec,
        target: int,
        trained: int,
        measured: int = MEASURED,
        own: bool = False,
        leaping: bool = True,
    ) -> Self:
        """The rounds of a bake-off of `entries` candidates.

        `own`: the model writes the text itself. `leaping`: the candidates can be judged on leaping windows.
        """
        real, size = reach(trained, target, measured), leaping_size(trained, target)
        windows, leaps, final = max(1, measured // real), 0, finalists(real, measured)
        whole = Round(entries, windows, real, short=more_short(trained, real))
        if entries <= final:
            rounds = [whole]
        elif not (leaping and can_leap(spec, trained, target, real)):
            rounds = [replace(whole, windows=1), replace(whole, candidates=final, windows=windows - 1)]
        else:
            leaps = LEAPS
            rounds = [Round(max(final, -(-entries // 2**number)), 1, size, True) for number in range(leaps)]
            rounds.append(replace(whole, candidates=final, windows=1))
            rounds.append(replace(whole, candidates=max(2, final // 2), windows=windows - 1))
        short = [min(trained, size // 2, NEAR)] * leaps + [min(trained, real, NEAR) + whole.short] * windows
        filled = tuple(each for each in rounds if each.windows)
        return cls(target, trained, filled, tuple(short), real * windows if own else 0)

    @property
    def leaps(self) -> int:
        """Leaping windows of the rounds, all together."""
        return sum(each.windows for each in self.rounds if each.leaping)

    @property
    def windows(self) -> int:
        """Real windows of the rounds, all together."""
        return sum(each.windows for each in self.rounds if not each.leaping)

    @property
    def real(self) -> int:
        """Tokens of a real window."""
        return self.rounds[-1].tokens

    @property
    def every(self) -> tuple[Round, ...]:
        return (*self.before, *self.rounds, *self.after)

    @property
    def tokens(self) -> int:
        """Most tokens that are read, all rounds together."""
        return sum(self.short) + sum(each.all for each in self.every)

    def seconds(self, workload: Workload, calibration: Calibration) -> float:
        """The forecast of the most, for a workload of this model of any length."""

        def once(tokens: int, targets: float = 1.0) -> float:
            return reading(workload.changed(length=tokens, rows=1), calibration, targets=targets)

        found = sum(once(tokens) for tokens in self.short)
        if self.written:  # rows of a batch share the reading of the weights
            size = own_size(self.trained, self.written)
            row: dict[str, Any] = {"kind": "generate", "length": 1, "rows": 1, "strategy": "auto", "packed": False}
            row |= {"new": size, "optimizer": "adamw", "chunk": 0, "stage_layers": 0}
            batches = max(1.0, self.written / (ROWS * size))
            found += 4 * batches * writing(workload.changed(**row), calibration)
        for each in self.every:  # of a long window only the short text and what lies past the trained length is scored
            unseen = 0 if each.leaping else max(0, self.trained - NEAR) if each.tokens > self.trained else 0
            seconds = once(each.tokens, 1.0 - unseen / each.tokens) + (once(each.short) if each.short else 0.0)
            found += each.candidates * each.windows * seconds
        return found

    def words(self, seconds: float) -> str:
        """The rounds in words, and what would be shorter."""
        steps = [f"the model writes {self.written:,} tokens itself"] if self.written else []
        steps += [each.words(self.target) for each in self.every]
        return (
            f"measuring: {', then '.join(steps)}: about {clock(seconds)} at most. Shorter: name a --method with one "
            "setting (none, pi, ...; without --text nothing is measured then), or give a smaller --to"
        )


def own_size(trained: int, tokens: int) -> int:
    """Tokens of each text that the model writes, if it writes `tokens` in all."""
    return min(trained - 1, max(1024, -(-tokens * 11 // (10 * ROWS))))


def comparing(
    groups: Sequence[int], spec: ModelSpec, goal: tuple[int, int], sizes: tuple[int, int, int], leaping: bool = True
) -> Measuring:
    """The rounds of a comparison of methods with `groups[i]` candidates each, for `goal` = (trained, target) tokens.

    `sizes` are the readings that every method has for choosing among its candidates, the real windows, and the tokens
    of each of these.
    """
    (trained, target), (readings, windows, real) = goal, sizes
    leaps = leaping and can_leap(spec, trained, target, real)
    size = leaping_size(trained, target) if leaps else real
    choosing = sum(max(readings, many) for many in groups if many > 1)
    more = more_short(trained, real)
    settling = 0 if leaps else more
    short = [min(trained, size // 2 if leaps else real, NEAR) + settling] * LEAPS
    short += [min(trained, real, NEAR) + more] * windows
    what = "choosing each method's settings"
    rounds = [Round(1, choosing, size, leaps, what, settling)] if choosing else []
    rounds.append(Round(len(groups), windows, real, what="methods", short=more))
    return Measuring(target, trained, tuple(rounds), tuple(short))
