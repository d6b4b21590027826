"""The sections on losses: by position, and over a training run."""

from collections.abc import Sequence

from handscroll.report.language import say
from handscroll.report.numbers import against, loss, number, perplexity
from handscroll.report.page import Figure, Item, Section, Table
from handscroll.report.plots import NARROW, WIDE, Series, curve, loss_by_position
from handscroll.report.records import Perplexity, Training
from handscroll.report.ticks import compact


def tail_loss(record: Perplexity, share: float = 0.25) -> float | None:
    """Mean loss over the last `share` of the positions, weighted by the tokens counted; None if none was measured."""
    start = (1 - share) * record.length
    counts = record.count or (1,) * len(record.positions)
    rows = zip(record.positions, record.loss, counts, strict=True)
    tail = [(loss, count) for position, loss, count in rows if position >= start and loss is not None and count]
    total = sum(count for _, count in tail)
    return sum(loss * count for loss, count in tail) / total if total else None


def loss_section(
    records: Sequence[Perplexity], names: Sequence[str], trained: int | None, target: int | None
) -> Section:
    """Loss by position: the curves, their means, and every number."""
    series = [_series(one, name) for one, name in zip(records, names, strict=True)]
    title = say("Loss by position")
    measured = [one for one in series if one.points]
    items: list[Item] = []
    if measured:
        narrow, wide = (loss_by_position(series, trained, target, title, width=width) for width in (NARROW, WIDE))
        caption = say("Lower is better. Each point is the mean loss of a block of positions.")
        if any(one.low for one in measured):
            caption += say(" The pale band is the confidence interval of each block.")
        items.append(Figure(wide, caption, f"{title}. {_ends(measured)}", narrow))
    items.append(_loss_table(records, names))
    items.extend(_blocks(one, name) for one, name in zip(records, names, strict=True))
    return Section(title, _loss_lead(records, names), items)


def training_section(record: Training) -> Section:
    """The loss of every step of a training run."""
    measured = [value for value in record.loss if value is not None]
    title = say("Training")
    if not measured:
        return Section(title, say("No loss was recorded."), [])
    lead = say(
        "Over {count} recorded steps the loss goes from {first} to {last} nats per token.",
        count=f"{len(record.steps):,}",
        first=loss(measured[0]),
        last=loss(measured[-1]),
    )
    narrow, wide = (curve(record.steps, record.loss, say("Training loss"), width=width) for width in (NARROW, WIDE))
    return Section(title, lead, [Figure(wide, record.label, f"{say('Training loss')}. {lead}", narrow)])


def _series(record: Perplexity, name: str) -> Series:
    emphasis = {"before": "before", "after": "after", "sliding window": "reference"}.get(record.label)
    return Series(name, record.positions, record.loss, record.low, record.high, emphasis)  # pyright: ignore[reportArgumentType]


def _loss_lead(records: Sequence[Perplexity], names: Sequence[str]) -> str:
    rows = list(zip(records, names, strict=True))
    lengths = {one.length for one in records}
    parts = []
    for one, name in sorted(rows, key=lambda row: row[0].label != "after"):
        value = tail_loss(one)
        where = "" if len(lengths) == 1 else say(" at {length}", length=compact(one.length))
        parts.append((None if value is None else loss(value), name + where))
    if len(lengths) > 1:
        return say("Over the last quarter, the loss in nats per token is {values}.", values=against(parts))
    return say(
        "Over the last quarter of {length} positions, the loss in nats per token is {values}.",
        length=compact(lengths.pop()),
        values=against(parts),
    )


def _ends(series: Sequence[Series]) -> str:
    parts = []
    for one in series:
        (first, start), (last, end) = one.points[0], one.points[-1]
        parts.append(
            say(
                "{name}: {start} at position {first}, {end} at position {last}",
                name=one.name,
                start=loss(start),
                first=f"{first:.0f}",
                end=loss(end),
                last=f"{last:.0f}",
            )
        )
    return "; ".join(parts) + "."


def _loss_table(records: Sequence[Perplexity], names: Sequence[str]) -> Table:
    rows = [
        (
            name,
            compact(one.length),
            loss(tail_loss(one)),
            loss(one.mean),
            perplexity(one.mean),
            number(one.tokens),
            number(one.windows),
        )
        for one, name in zip(records, names, strict=True)
    ]
    named = ("length", "loss, last quarter", "loss, all", "perplexity", "tokens scored", "windows")
    caption = say("Loss in nats per token; perplexity is its exponential over all positions.")
    return Table(("", *map(say, named)), rows, caption)


def _blocks(record: Perplexity, name: str) -> Table:
    counts = record.count or (None,) * len(record.positions)
    lows, highs = record.low or counts, record.high or counts
    banded = record.low is not None and record.high is not None
    rows = []
    for position, value, low, high, count in zip(record.positions, record.loss, lows, highs, counts, strict=True):
        band = (loss(low), loss(high)) if banded else ()
        rows.append((f"{position:,.0f}", loss(value), *band, number(count)))
    columns = ("position", "loss", *(("low", "high") if banded else ()), "tokens")
    return Table(tuple(map(say, columns)), rows, say("All numbers: {name}", name=name), folded=True)
