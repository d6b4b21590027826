"""The numbers of a run that can be set against those of another, and which numbers of two runs belong together."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from handscroll.report.language import say
from handscroll.report.losses import tail_loss
from handscroll.report.needles import found
from handscroll.report.records import Needle, Perplexity, Record, Ruler, Tasks
from handscroll.report.ticks import compact

Pair = tuple["Measure", "Measure"]
Key = tuple[Any, ...]


@dataclass(frozen=True)
class Measure:
    """A number of a run: `what` it is in words, its `place` (kind with length, grid or metric), and its interval.

    `way` says how it was measured, by name: numbers are better or worse than each other only if none of it differs.
    What is None or "" there is not known, and differs from nothing.
    """

    what: str
    label: str
    model: str
    place: Key
    value: float
    way: Mapping[str, Any] = field(default_factory=dict)
    low: float | None = None
    high: float | None = None
    higher: bool = True

    @property
    def kind(self) -> str:
        """What kind of record it is of."""
        return str(self.place[0])

    def differences(self, other: "Measure") -> list[str]:
        """The names of what is known to differ in the way in which the two were measured."""
        both = [(name, value, other.way.get(name)) for name, value in self.way.items()]
        return [name for name, one, two in both if _known(one) and _known(two) and one != two]


def measures(records: Sequence[Record]) -> list[Measure]:
    """The numbers of a run. Those that would have the same words say how they were measured."""
    every = [
        one
        for kind, numbers in NUMBERS.items()
        for record in records
        if isinstance(record, kind)
        for one in numbers(record)
    ]
    labels = {kind: {one.label for one in every if one.kind == kind} for kind in {one.kind for one in every}}
    named = [one if len(labels[one.kind]) == 1 else _labelled(one) for one in every]
    count = Counter(one.what for one in named)
    return [_told(one, [each for each in named if each.what == one.what]) if count[one.what] > 1 else one
            for one in named]  # fmt: skip


def paired(first: Sequence[Measure], second: Sequence[Measure]) -> tuple[list[Pair], list[Measure], list[Measure]]:
    """The pairs of two runs, and what is in the first or in the second one alone.

    A pair has the same place and label; where each run has a single label, that says nothing. Of several the one is
    taken whose way and model differ least.
    """
    single = {kind for kind in {one.kind for one in first} if _single(kind, first) and _single(kind, second)}
    near = sorted(
        ((len(one.differences(other)), one.model != other.model, one.way != other.way, i, j), i, j)
        for i, one in enumerate(first)
        for j, other in enumerate(second)
        if one.place == other.place and (one.kind in single or one.label == other.label)
    )
    chosen: dict[int, int] = {}
    for _, i, j in near:
        if i not in chosen and j not in chosen.values():
            chosen[i] = j
    pairs = [(one, second[chosen[i]]) for i, one in enumerate(first) if i in chosen]
    alone = [one for i, one in enumerate(first) if i not in chosen]
    return pairs, alone, [other for j, other in enumerate(second) if j not in chosen.values()]


def _single(kind: str, run: Sequence[Measure]) -> bool:
    return len({one.label for one in run if one.kind == kind}) == 1


def _known(value: Any) -> bool:
    return value is not None and value != ""


def _labelled(one: Measure) -> Measure:
    """Under its label, where the words do not have it anyway."""
    has = one.kind in ("perplexity", "needle")
    return one if has or not one.label else replace(one, what=f"{one.what}, {one.label}")


def _told(one: Measure, others: Sequence[Measure]) -> Measure:
    """With what tells it from others of the same words."""
    names = [name for name in one.way if any(name in one.differences(other) for other in others)]
    more = [_shown(name, one.way[name]) for name in names if _known(one.way[name])]
    more += [one.model] if any(other.model != one.model for other in others) else []
    return replace(one, what=", ".join([one.what, *more]))


def _shown(name: str, value: Any) -> str:
    if name in ("tasks", "cells"):
        return f"{len(value)} {say(name)}"
    return f"{say(name)} {value}" if isinstance(value, int) else str(value)[:40]


def _losses(record: Perplexity) -> Iterator[Measure]:
    value = tail_loss(record)
    if value is not None:
        what = say("loss in the last quarter of {length}, {label}", length=compact(record.length), label=record.label)
        place, way = ("perplexity", record.length), {"text": record.text_sha256}
        yield Measure(what, record.label, record.model, place, value, way, higher=False)


def _needles(record: Needle) -> Iterator[Measure]:
    value = found(record)
    if value is None:
        return
    cells = tuple(
        (depth, length)
        for depth, row in zip(record.depths, record.accuracy, strict=True)
        for length, share in zip(record.lengths, row, strict=True)
        if share is not None
    )
    way = {
        "language": record.language,
        "format": record.format,
        "samples": record.samples,  # there is no interval that would tell how sure a share of them is
        "needles": record.needles,
        "distractors": record.distractors,
        "cells": cells,
    }
    what = say("needles found up to {length}, {label}", length=compact(max(record.lengths)), label=record.label)
    yield Measure(what, record.label, record.model, ("needle", record.lengths, record.depths), value, way)


def _averages(record: Ruler) -> Iterator[Measure]:
    for at, (length, value) in enumerate(zip(record.lengths, record.average, strict=True)):
        if value is None:
            continue
        scored = [task for task, row in zip(record.tasks, record.scores, strict=True) if row[at] is not None]
        way = {
            "layout": record.layout,
            "language": record.language,
            "template": record.template,
            "tasks": tuple(scored) or record.tasks,
        }
        low, high = (values[at] if values else None for values in (record.low, record.high))
        what = say("RULER at {length}", length=compact(length))
        yield Measure(what, record.label, record.model, ("ruler", length), value, way, low, high)


def _scores(record: Tasks) -> Iterator[Measure]:
    way = {"form": record.form, "shots": record.shots}
    for task in record.tasks:
        for metric, one in task.scores.items():
            what, place = f"{task.task}, {metric}", ("tasks", task.task, metric)
            yield Measure(what, record.label, record.model, place, one.value, way, one.low, one.high)


NUMBERS: Mapping[type[Record], Callable[[Any], Iterator[Measure]]] = {
    Perplexity: _losses,
    Needle: _needles,
    Ruler: _averages,
    Tasks: _scores,
}
