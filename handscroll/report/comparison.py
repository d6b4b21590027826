"""The section on a comparison of ways to lengthen a model: how good each is, how sure that is, and what it cost."""

from itertools import pairwise

from handscroll.report.drawing import NARROW, WIDE
from handscroll.report.intervals import Interval, intervals
from handscroll.report.language import joined, say
from handscroll.report.lengthening import Compared, ComparedRow
from handscroll.report.page import Figure, Item, Section, Table, Text


def comparison_section(record: Compared) -> Section:
    """The methods of a comparison, the best first."""
    best = record.rows[0]
    lead = joined([_read(record), _first(record)])
    drawn = [Interval(one.method, one.long_loss, one.low, one.high, one is best) for one in record.rows]
    label, title = say("nats per token (lower is better)"), say("Loss past the trained length")
    narrow, wide = (intervals(drawn, title, label, width=width) for width in (NARROW, WIDE))
    values = "; ".join(f"{one.method} {one.long_loss:.3f}" for one in record.rows)
    described = say("Dot plot of the loss: {values}.", values=values)
    items: list[Item] = [
        Figure(wide, "" if best.low is None else say("The line is the 95% interval over windows."), described, narrow),
        _table(record),
    ]
    beats = [
        say(
            "{first} beats {second} in {share} of resamples.",
            first=one.method,
            second=other.method,
            share=f"{one.ahead:.1%}",
        )
        for one, other in pairwise(record.rows)
        if one.ahead is not None
    ]
    said = [*beats, *_order(record)]
    if said or record.notes:
        items.append(Text([*([joined(said)] if said else []), *record.notes]))
    if any(len(one.by_seed) > 1 for one in record.rows):
        items.append(_seeds(record))
    title = "Methods compared with several seeds" if record.seeds > 1 else "Methods compared"
    return Section(say(title), lead, items)


def _read(record: Compared) -> str:
    """What all methods read."""
    values = {"count": len(record.rows), "length": f"{record.measured_to:,}"}
    if record.windows == 1:
        return say("{count} methods on the same window of {length} tokens.", **values)
    values |= {"windows": f"{record.windows:,}", "seeds": record.seeds}
    if record.seeds == 1:
        return say("{count} methods on the same {windows} windows of {length} tokens.", **values)
    return say("{count} methods on the same {windows} windows of {length} tokens from {seeds} seeds.", **values)


def _first(record: Compared) -> str:
    """Which method is the best, and how sure that is."""
    best = record.rows[0]
    span = {"trained": f"{record.trained:,}", "length": f"{record.measured_to:,}"}
    values = {"best": best.method, "loss": f"{best.long_loss:.3f}"} | span
    if best.first is None:
        return say(
            "{best} comes first, with {loss} nats per token at positions {trained} to {length}; one window does not "
            "tell how sure that is.",
            **values,
        )
    return say(
        "{best} comes first, with {loss} nats per token at positions {trained} to {length}, in {share} of {resamples} "
        "resamples of the windows.",
        share=f"{best.first:.0%}",
        resamples=f"{record.resamples:,}",
        **values,
    )


def _order(record: Compared) -> list[str]:
    """Why the rows do not stand in the order of their losses, if they do not."""
    losses = [one.long_loss for one in record.rows]
    if record.margin is None or record.guard is None or record.penalty is None or losses == sorted(losses):
        return []
    return [
        say(
            "The order is not that of the loss alone: a method has to be {margin} nats better than the model as it is, "
            "and what short text loses beyond {guard} nats counts {penalty} times.",
            margin=f"{record.margin:g}",
            guard=f"{record.guard:g}",
            penalty=f"{record.penalty:g}",
        )
    ]


def _table(record: Compared) -> Table:
    rows = [_row(one) for one in record.rows]
    sure = ("first",) if record.windows > 1 else ()
    names = ("method", "loss past the trained length", "short text", "needles", *sure, "tokens", "seconds")
    columns = tuple(map(say, names))
    caption = say(
        "Loss in nats per token with its 95% interval; short text: the change of the loss before {trained}; first: the "
        "share of resamples in which the method is the best. Lengths and needles are those measured, not the target of "
        "{target} tokens, where the two differ."
        if sure
        else "Loss in nats per token; short text: the change of the loss before {trained}. Lengths and needles are "
        "those measured, not the target of {target} tokens, where the two differ.",
        trained=f"{record.trained:,}",
        target=f"{record.target:,}",
    )
    return Table(columns, rows, caption, 0, ("left", *["right"] * (len(columns) - 1)))  # pyright: ignore[reportArgumentType]


def _row(one: ComparedRow) -> tuple[object, ...]:
    found = None if one.needles is None else f"{one.needles:.0%}"
    seconds = None if one.seconds is None else f"{one.seconds:,.1f}"
    loss, sure = f"{one.long_loss:.3f}", ()
    if one.low is not None and one.high is not None and one.first is not None:
        loss, sure = f"{loss} [{one.low:.3f}, {one.high:.3f}]", (f"{one.first:.0%}",)
    return (one.method, loss, f"{one.rise:+.3f}", found, *sure, f"{one.tokens:,}", seconds)


def _seeds(record: Compared) -> Table:
    columns = (say("method"), *(say("seed {number}", number=number + 1) for number in range(record.seeds)))
    rows = [(one.method, *(f"{value:.3f}" for value in one.by_seed)) for one in record.rows]
    return Table(columns, rows, say("Loss past the trained length, seed by seed"), folded=True)
