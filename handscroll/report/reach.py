"""The sections on how far a model reaches: RULER's tasks by length, and the effective length."""

from collections.abc import Sequence

from handscroll.report.language import joined, say
from handscroll.report.numbers import number, share
from handscroll.report.page import Figure, Item, Section, Table, Text
from handscroll.report.plots import NARROW, WIDE, Series, score_by_length
from handscroll.report.published import RULER, RULER_SOURCE, RULER_TASKS, RULER_THRESHOLD
from handscroll.report.records import Length, Reached, Ruler
from handscroll.report.ticks import compact


def reached(one: Reached | Length, shortest: int) -> str:
    """An effective length with its interval: "8K (4K to 16K)"; "<256" lies below the shortest length measured."""
    length = one.length if isinstance(one, Reached) else one.effective
    told, low, high = (f"<{compact(shortest)}" if n is None else compact(n) for n in (length, one.low, one.high))
    return told if one.low == one.high == length else say("{length} ({low} to {high})", length=told, low=low, high=high)


def percent(threshold: float) -> str:
    """A threshold as it is published: 85.6%."""
    return f"{100 * threshold:.4g}%"


def ruler_section(records: Sequence[Ruler], names: Sequence[str]) -> Section:
    """The average by length with published models beside it, and every task."""
    series = [_series(one, name) for one, name in zip(records, names, strict=True)]
    comparable = all(
        len(one.tasks) == RULER_TASKS and one.language in ("", "en") and one.layout in ("", "published")
        for one in records
    )  # in shared texts there are more distractors (docs/ruler.md)
    highest = max(max(one.lengths) for one in records)
    if comparable and highest >= min(RULER[0].scores):
        series += [
            Series(one.model, tuple(map(float, one.scores)), tuple(one.scores.values()), emphasis=None) for one in RULER
        ]
    items: list[Item] = []
    drawn = [one for one in series if one.points]
    if drawn:
        title, unit = say("Average score by length"), say("percent of the answers, mean over tasks")
        narrow, wide = (
            score_by_length(drawn, 100 * _threshold(), title, unit, width=width) for width in (NARROW, WIDE)
        )
        caption = say("The pale band is the 95% interval over samples. Threshold: Llama 2 7B at 4K, as published.")
        if len(series) > len(records):
            caption = joined([caption, say("Published scores: {source}.", source=RULER_SOURCE)])
        said = "; ".join(f"{one.name}: " + ", ".join(f"{compact(x)} {y:.0f}" for x, y in one.points) for one in drawn)
        items.append(Figure(wide, caption, f"{title}. {said}.", narrow))
    for one, name in zip(records, names, strict=True):
        items.append(_table(one, name, len(records) > 1))
    unfit = [
        say(
            "{task} does not fit into {length}: it needs {needs} tokens ({count} samples).",
            task=part.task, length=compact(part.length), needs=number(part.needs), count=part.samples,
        )
        for one in records
        for part in one.unfit
    ]  # fmt: skip
    if unfit:
        items.append(Text([joined(unfit)]))
    return Section("RULER", _ruler_lead(records, names), items)


def _threshold() -> float:
    return RULER_THRESHOLD / 100


def _series(one: Ruler, name: str) -> Series:
    bands = (_percent(one.low), _percent(one.high)) if one.low and one.high else (None, None)
    return Series(name, one.lengths, _percent(one.average), *bands, "after")


def _percent(values: Sequence[float | None]) -> tuple[float | None, ...]:
    return tuple(None if value is None else 100 * value for value in values)


def _ruler_lead(records: Sequence[Ruler], names: Sequence[str]) -> str:
    parts = []
    for one, name in zip(records, names, strict=True):
        rules = {rule.rule: rule for rule in one.effective}
        if "published" in rules:
            told = reached(rules["published"], min(one.lengths))
            parts.append(
                say(
                    "{name} holds the published threshold of {threshold} up to {length} tokens.",
                    name=name, threshold=percent(rules["published"].threshold), length=told,
                )
            )  # fmt: skip
        if "relative" in rules:
            parts.append(
                say(
                    "Against its own shortest length it holds up to {length}.",
                    length=reached(rules["relative"], min(one.lengths)),
                )
            )
    samples = sorted({one.samples for one in records})
    return joined(
        [*parts, say("{count} samples of each task at each length.", count=say(" or ").join(map(str, samples)))]
    )


def _table(one: Ruler, name: str, several: bool) -> Table:
    rows = [(task, *map(share, row)) for task, row in zip(one.tasks, one.scores, strict=True)]
    bands = zip(one.average, one.low or one.average, one.high or one.average, strict=True)
    average = [
        share(v) if v is None or v in (low, high) else f"{share(v)} [{share(low)}, {share(high)}]"
        for v, low, high in bands
    ]
    caption = say("Scores as published: the share of the wanted strings in the answer. A dash: did not fit.")
    columns = (say("task"), *map(compact, one.lengths))
    told = [(say("average"), *average), *rows]
    right = ("left", *["right"] * len(one.lengths))
    return Table(columns, told, f"{name}. {caption}" if several else caption, align=right)  # pyright: ignore[reportArgumentType]


def length_section(records: Sequence[Length], names: Sequence[str]) -> Section:
    """The search of the effective length, and what it asked."""
    parts = [
        say(
            "{name} answers at least {threshold} of the questions up to {length} tokens.",
            name=name, threshold=percent(one.threshold), length=reached(one, one.tests[0].length),
        )
        for one, name in zip(records, names, strict=True)
    ]  # fmt: skip
    rows = [
        (
            name,
            compact(test.length),
            f"{test.hits}/{test.trials}",
            f"{share(test.low)} – {share(test.high)}",
            say("passes") if test.passes else say("fails"),
            say("yes") if test.sure else say("no"),
        )
        for one, name in zip(records, names, strict=True)
        for test in one.tests
    ]
    columns = ("", *map(say, ("length", "found", "interval", "verdict", "sure")))
    caption = say("Intervals hold wherever the search stops.")
    items: list[Item] = [Table(columns, rows, caption)]
    grids = [
        (one, one.tokens_grid.get("shared") if not isinstance(one.tokens_grid, int | None) else one.tokens_grid)
        for one in records
    ]
    spared = [
        say("{tokens} tokens were read; the whole grid takes {grid}.", tokens=number(one.tokens), grid=number(grid))
        for one, grid in grids
        if one.tokens is not None and grid is not None
    ]
    if spared:
        items.append(Text([joined(spared)]))
    return Section(say("Effective length"), joined(parts), items)
