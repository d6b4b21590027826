"""The records of ways to lengthen a model: a bake-off at one length, and a comparison with several seeds."""

from typing import Self

from pydantic import Field, model_validator

from handscroll.report.record import Count, Number, Part, Record, Share


class Candidate(Part):
    """One method of a bake-off."""

    method: str
    long_loss: Number | None
    short_loss: Number | None
    verdict: str = ""
    chosen: bool = False


class Candidates(Record):
    """The bake-off: every method tried at the target length."""

    target: int
    rows: tuple[Candidate, ...] = Field(min_length=1)
    trained: int | None = None


class ComparedRow(Part):
    """One method of a comparison: its loss past the trained length with a 95 % interval and by seed, the rise of the
    loss of short text, the share of needles found, the shares of resamples in which it is the `first` of all and
    `ahead` of the next row, and what it cost. A single window has no interval and no shares."""

    method: str
    long_loss: Number
    low: Number | None
    high: Number | None
    by_seed: tuple[Number, ...] = ()
    short_loss: Number
    rise: Number
    needles: Share | None = None
    first: Share | None
    ahead: Share | None = None
    tokens: Count
    seconds: Number | None = None


class Compared(Record):
    """Every method of lengthening on the same windows of several seeds, the best first.

    The model as it is comes before a method that is not better by `margin` nats; what short text loses beyond `guard`
    nats counts `penalty` times.
    """

    model: str
    trained: int
    target: int
    measured_to: int
    seeds: Count
    windows: Count
    resamples: Count
    margin: Number | None = None
    guard: Number | None = None
    penalty: Number | None = None
    rows: tuple[ComparedRow, ...] = Field(min_length=1)
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _sure(self) -> Self:
        """Records of earlier versions have an interval and shares of a single window, which mean nothing."""
        if self.windows == 1:
            nothing: dict[str, None] = dict.fromkeys(("low", "high", "first", "ahead"))
            rows = tuple(row.model_copy(update=nothing) for row in self.rows)
            object.__setattr__(self, "rows", rows)
        return self
