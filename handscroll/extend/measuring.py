"""What a bake-off reads before it has chosen: its steps in tokens, and their seconds as the planner predicts them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from handscroll.base.workload import Workload
from handscroll.nn.positions.candidate import Candidate
from handscroll.plan.calibration import Calibration
from handscroll.plan.duration import reading, writing
from handscroll.plan.show import clock

MEASURED = 8192  # approximate number of tokens in a bake-off's final round
ROWS = 16  # texts that the model writes at a time
MINUTE = 60.0  # seconds from which on a forecast is shown beforehand


@dataclass(frozen=True)
class Measuring:
    """`entries` candidates of `methods` methods, on `windows` windows of `target` tokens.

    Before them the model as it is reads the first `trained` tokens of each window. `written` tokens are written by the
    model itself, as text for the windows.
    """

    target: int
    trained: int
    windows: int
    entries: int
    methods: int
    written: int = 0

    @classmethod
    def of(cls, entries: Sequence[Candidate], target: int, trained: int, windows: int, written: int = 0) -> Self:
        return cls(target, trained, windows, len(entries), len({entry.method for entry in entries}), written)

    @property
    def final(self) -> int:
        """Windows of the second round; with a single window the first round decides."""
        return self.methods * self.windows if self.windows > 1 else 0

    @property
    def tokens(self) -> int:
        """Tokens that are read, all steps together."""
        return self.windows * min(self.trained, self.target) + (self.entries + self.final) * self.target

    def seconds(self, workload: Workload, calibration: Calibration) -> float:
        """The forecast, for a workload of this model of any length."""

        def once(tokens: int) -> float:
            return reading(workload.changed(length=tokens, rows=1), calibration, targets=1.0)

        own = 0.0
        if self.written:  # rows of a batch share the reading of the weights
            row = {"kind": "generate", "length": 1, "rows": 1, "strategy": "auto", "packed": False}
            row |= {"new": min(self.trained, self.target), "optimizer": "adamw", "chunk": 0, "stage_layers": 0}
            batches = max(1.0, self.written / (ROWS * row["new"]))
            own = 4 * batches * writing(workload.changed(**row), calibration)
        short = self.windows * once(min(self.trained, self.target))
        return own + short + (self.entries + self.final) * once(self.target)

    def words(self, seconds: float) -> str:
        """The steps in words, and what would be shorter."""
        one = "a window" if self.windows == 1 else f"{self.windows} windows"
        steps = [f"the model writes {self.written:,} tokens itself"] if self.written else []
        steps.append(f"{self.entries} candidates on a window of {self.target:,} tokens")
        if self.final:
            steps.append(f"the best of {self.methods} methods on {one}")
        return (
            f"measuring: {', then '.join(steps)}: about {clock(seconds)}. Shorter: name the --method (without --text "
            "nothing is measured then), or give a smaller --to"
        )
