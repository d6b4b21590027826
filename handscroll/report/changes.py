"""What changed from one run to another: losses, needles, scores, with what became worse first."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from handscroll.report.language import joined, say, speaking
from handscroll.report.losses import tail_loss
from handscroll.report.needles import found
from handscroll.report.page import Section, Table
from handscroll.report.records import Needle, Perplexity, Record, Ruler, Tasks, parse_records
from handscroll.report.ticks import compact

_R = TypeVar("_R", bound=Record)


class Change(NamedTuple):
    """A number of both runs; `higher` says whether more is better, `sure` whether their intervals lie apart.

    Numbers of `other` text are shown, and no better or worse than each other.
    """

    what: str
    first: float
    second: float
    higher: bool
    sure: bool | None
    other: bool = False

    @property
    def worse(self) -> bool:
        return not self.other and self.second != self.first and (self.second < self.first) == self.higher

    @property
    def verdict(self) -> str:
        """In words: better, worse, or neither for sure."""
        if self.other:
            return say("other text")
        if self.second == self.first:
            return say("the same")
        word = say("worse") if self.worse else say("better")
        if self.sure is None:
            return word
        return word if self.sure else say("no sure difference")


def changes_section(
    first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]], names: Sequence[str], language: str = "en"
) -> list[Section]:
    """A table of what both runs measured; nothing where they have nothing in common.

    Intervals that lie apart differ for sure; those that overlap may still differ (a paired test would tell more).

    Raises:
        DataError: an unknown kind, a malformed record. ConfigError: an unknown language.
    """
    with speaking(language):
        changes = list(_changes(parse_records(first), parse_records(second)))
        if not changes:
            return []
        order = sorted(changes, key=lambda one: (not (one.worse and one.sure), not one.worse))
        rows = [
            (one.what, f"{one.first:.3f}", f"{one.second:.3f}", f"{one.second - one.first:+.3f}", one.verdict)
            for one in order
        ]
        worse = sum(one.worse and one.sure is not False for one in changes)
        other = sum(one.other for one in changes)
        lead = say("{count} of {all} numbers became worse from {first} to {second}.", count=worse,
                   all=len(changes) - other, first=names[0], second=names[1])  # fmt: skip
        if other:
            told = [lead] if other < len(changes) else []
            lead = joined([*told, say("Of other text, or other tokens of it, and not compared: {count}.", count=other)])
        columns = (say("measured"), *names, say("difference"), say("verdict"))
        caption = say("Where intervals are known, a difference counts only if they lie apart.")
        return [Section(say("What changed"), lead, [Table(columns, rows, caption)])]


def _changes(first: Sequence[Record], second: Sequence[Record]) -> Iterator[Change]:
    for one, other in _pairs(first, second, Perplexity):
        if one.length == other.length:
            what = say("loss in the last quarter of {length}, {label}", length=compact(one.length), label=one.label)
            differ = "" not in (texts := (one.text_sha256, other.text_sha256)) and len(set(texts)) > 1
            yield from _change(what, tail_loss(one), tail_loss(other), higher=False, other=differ)
    for one, other in _pairs(first, second, Needle):
        if (one.lengths, one.depths) == (other.lengths, other.depths):
            yield from _change(say("needles found, {label}", label=one.label), found(one), found(other))
    for one, other in _pairs(first, second, Ruler):
        yield from _lengths(one, other)
    for one, other in _pairs(first, second, Tasks):
        yield from _scores(one, other)


def _change(
    what: str,
    first: float | None,
    second: float | None,
    higher: bool = True,
    sure: bool | None = None,
    other: bool = False,
) -> Iterator[Change]:
    """A change, where both runs measured the number."""
    if first is not None and second is not None:
        yield Change(what, first, second, higher, sure, other)


def _pairs(first: Sequence[Record], second: Sequence[Record], kind: type[_R]) -> Iterator[tuple[_R, _R]]:
    """Records of a kind that have the same label in both runs; those that are alone in both belong together."""
    some = [[record for record in records if isinstance(record, kind)] for records in (first, second)]
    if [len(records) for records in some] == [1, 1]:
        yield some[0][0], some[1][0]
        return
    others = {getattr(record, "label", ""): record for record in some[1]}
    for record in some[0]:
        if (label := getattr(record, "label", "")) in others:
            yield record, others[label]


def _lengths(one: Ruler, other: Ruler) -> Iterator[Change]:
    for at, length in enumerate(one.lengths):
        if one.tasks != other.tasks or length not in other.lengths:
            continue
        here = other.lengths.index(length)
        bands = [(r.low[n], r.high[n]) if r.low and r.high else (None, None) for r, n in ((one, at), (other, here))]
        what = say("RULER at {length}", length=compact(length))
        yield from _change(what, one.average[at], other.average[here], sure=_apart(*bands))


def _scores(one: Tasks, other: Tasks) -> Iterator[Change]:
    known = {task.task: task for task in other.tasks}
    for task in one.tasks:
        if task.task not in known:
            continue
        for metric, value in task.scores.items():
            also = known[task.task].scores.get(metric)
            if also is not None:
                sure = _apart((value.low, value.high), (also.low, also.high))
                yield Change(f"{task.task}, {metric}", value.value, also.value, True, sure)


def _apart(one: tuple[float | None, float | None], other: tuple[float | None, float | None]) -> bool | None:
    """Whether two intervals have nothing in common; None where one is not known."""
    (low, high), (least, most) = one, other
    if low is None or high is None or least is None or most is None:
        return None
    return high < least or most < low
