"""What changed from one run to another: losses, needles, scores, with what became worse first."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from handscroll.report.language import joined, listed, say, speaking
from handscroll.report.measures import Measure, measures, paired
from handscroll.report.page import Section, Table
from handscroll.report.records import parse_records


class Change(NamedTuple):
    """A number of both runs; `sure` says whether their intervals lie apart.

    Numbers that were measured in `other` ways are shown, and are no better or worse than each other.
    """

    first: Measure
    second: Measure
    other: tuple[str, ...]
    sure: bool | None

    @property
    def same(self) -> bool:
        return self.second.value == self.first.value

    @property
    def worse(self) -> bool:
        higher = self.second.value > self.first.value
        return not self.other and not self.same and higher != self.first.higher

    @property
    def verdict(self) -> str:
        """In words: better, worse, or neither for sure."""
        if self.other:
            return say("other {what}", what=listed([say(name) for name in self.other]))
        if self.same:
            return say("the same")
        word = say("worse") if self.worse else say("better")
        if self.sure is None:
            return word
        return word if self.sure else say("no sure difference")

    @property
    def row(self) -> tuple[str, ...]:
        first, second = self.first.value, self.second.value
        return self.first.what, f"{first:.3f}", f"{second:.3f}", f"{second - first:+.3f}", self.verdict


def changes_section(
    first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]], names: Sequence[str], language: str = "en"
) -> list[Section]:
    """A table of what the runs measured; nothing where no number of them can be set against others.

    Intervals that lie apart differ for sure; those that overlap may still differ (a paired test would tell more).

    Raises:
        DataError: an unknown kind, a malformed record. ConfigError: an unknown language.
    """
    with speaking(language):
        pairs, *alone = paired(measures(parse_records(first)), measures(parse_records(second)))
        changes = [Change(one, other, tuple(one.differences(other)), _apart(one, other)) for one, other in pairs]
        changes.sort(key=lambda one: (not (one.worse and one.sure), not one.worse))
        only = [_only(one, names, run) for run in (0, 1) for one in alone[run]]
        if not changes and not only:
            return []
        columns = (say("measured"), *names, say("difference"), say("verdict"))
        caption = say("Where intervals are known, a difference counts only if they lie apart.")
        rows = [*(one.row for one in changes), *only]
        return [Section(say("What changed"), _lead(changes, len(only), names), [Table(columns, rows, caption)])]


def _lead(changes: Sequence[Change], only: int, names: Sequence[str]) -> str:
    """How many numbers became worse, and how many say nothing of that."""
    worse = sum(one.worse and one.sure is not False for one in changes)
    other = sum(bool(one.other) for one in changes)
    told = []
    if other < len(changes):
        told.append(say("{count} of {all} numbers became worse from {first} to {second}.", count=worse,
                        all=len(changes) - other, first=names[0], second=names[1]))  # fmt: skip
    if other:
        told.append(say("Measured in another way, and so not better or worse: {count}.", count=other))
    if only:
        told.append(say("Measured in one run only: {count}.", count=only))
    return joined(told)


def _only(one: Measure, names: Sequence[str], run: int) -> tuple[str | None, ...]:
    """The row of a number that the other run does not have."""
    both: list[str | None] = [None, None]
    both[run] = f"{one.value:.3f}"
    return one.what, *both, None, say("only in {run}", run=names[run])


def _apart(one: Measure, other: Measure) -> bool | None:
    """Whether two intervals have nothing in common; None where one is not known."""
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return None
    return one.high < other.low or other.high < one.low
