"""The section on needles: heat maps of what was found by length and depth."""

from collections.abc import Sequence

from handscroll.report.language import say
from handscroll.report.numbers import against, capital, mean, share
from handscroll.report.page import Figure, Item, Section, Table
from handscroll.report.plots import NARROW, WIDE, HeatMap, heat_maps
from handscroll.report.records import Needle
from handscroll.report.ticks import compact


def found(record: Needle) -> float | None:
    """The mean over all cells that were measured."""
    return mean([value for row in record.accuracy for value in row])


def needle_section(records: Sequence[Needle], names: Sequence[str], trained: int | None) -> Section:
    """Needle grids beside each other, and every number."""
    maps = [
        HeatMap(capital(name), one.lengths, one.depths, one.accuracy, trained)
        for one, name in zip(records, names, strict=True)
    ]
    parts = [
        (None if found(one) is None else share(found(one)), name)
        for one, name in sorted(zip(records, names, strict=True), key=lambda row: row[0].label != "after")
    ]
    lead = say(
        "Of the needles hidden in texts of up to {length} tokens, the model finds {values}.",
        length=compact(max(max(one.lengths) for one in records)),
        values=against(parts),
    )
    caption = say(
        "Needles found, in percent, by length of the text and depth of the needle (0% is its start); {tries} trials in "
        "each cell.",
        tries=say(" or ").join(map(str, sorted({one.samples for one in records}))),
    )
    if any(value is None for one in records for row in one.accuracy for value in row):
        caption += say(" A dash was not measured.")
    narrow, wide = (heat_maps(maps, width=width) for width in (NARROW, WIDE))
    items: list[Item] = [Figure(wide, caption, _described(records, names), narrow)]
    items.extend(_grid(one, name) for one, name in zip(records, names, strict=True))
    return Section(say("Needle in a haystack"), lead, items)


def _described(records: Sequence[Needle], names: Sequence[str]) -> str:
    parts = []
    for one, name in zip(records, names, strict=True):
        columns = [[row[j] for row in one.accuracy] for j in range(len(one.lengths))]
        each = [
            f"{compact(length)}: {share(mean(column))}" for length, column in zip(one.lengths, columns, strict=True)
        ]
        parts.append(say("{name}, mean over depths: {values}", name=name, values=", ".join(each)))
    return say("Heat maps of needle accuracy. {values}.", values="; ".join(parts))


def _grid(record: Needle, name: str) -> Table:
    rows = [(f"{d:.0%}", *map(share, row)) for d, row in zip(record.depths, record.accuracy, strict=True)]
    caption = say("All numbers: {name}", name=name)
    return Table((say("depth"), *map(compact, record.lengths)), rows, caption, folded=True)
