"""The section on a comparison of ways to lengthen a model: how good each is, how sure that is, and what it cost."""

from itertools import pairwise

from handscroll.report.drawing import NARROW, WIDE
from handscroll.report.intervals import Interval, intervals
from handscroll.report.page import Figure, Item, Section, Table, Text
from handscroll.report.records import Compared, ComparedRow


def comparison_section(record: Compared) -> Section:
    """The methods of a comparison, the best first."""
    best, last = record.rows[0], record.measured_to
    where = f"at positions {record.trained:,} to {last:,}"
    lead = (
        f"{len(record.rows)} methods on the same {record.windows:,} windows of {last:,} tokens, {record.seeds} seeds. "
        f"{best.method} comes first, with {best.long_loss:.3f} nats per token {where}, in {best.first:.0%} of "
        f"{record.resamples:,} resamples of the windows."
    )
    drawn = [Interval(one.method, one.long_loss, one.low, one.high, one is best) for one in record.rows]
    label = "nats per token (lower is better)"
    narrow, wide = (intervals(drawn, "Loss past the trained length", label, width=width) for width in (NARROW, WIDE))
    said = "; ".join(f"{one.method} {one.long_loss:.3f}" for one in record.rows)
    items: list[Item] = [
        Figure(wide, "The line is the 95% interval over windows.", f"Dot plot of the loss: {said}.", narrow),
        _table(record),
    ]
    beats = [
        f"{one.method} beats {other.method} in {one.ahead:.1%} of resamples."
        for one, other in pairwise(record.rows)
        if one.ahead is not None
    ]
    if beats or record.notes:
        items.append(Text([*([" ".join(beats)] if beats else []), *record.notes]))
    if any(len(one.by_seed) > 1 for one in record.rows):
        items.append(_seeds(record))
    return Section("Methods compared with several seeds", lead, items)


def _table(record: Compared) -> Table:
    rows = [_row(one) for one in record.rows]
    columns = ("method", "loss past the trained length", "short text", "needles", "first", "tokens", "seconds")
    caption = (
        f"Loss in nats per token with its 95% interval; short text: the change of the loss before {record.trained:,}; "
        "first: the share of resamples in which the method is the best. Lengths and needles are those measured, not "
        f"the target of {record.target:,} tokens, where the two differ."
    )
    return Table(columns, rows, caption, 0, ("left", *["right"] * (len(columns) - 1)))  # pyright: ignore[reportArgumentType]


def _row(one: ComparedRow) -> tuple[object, ...]:
    found = None if one.needles is None else f"{one.needles:.0%}"
    seconds = None if one.seconds is None else f"{one.seconds:,.1f}"
    loss = f"{one.long_loss:.3f} [{one.low:.3f}, {one.high:.3f}]"
    return (one.method, loss, f"{one.rise:+.3f}", found, f"{one.first:.0%}", f"{one.tokens:,}", seconds)


def _seeds(record: Compared) -> Table:
    columns = ("method", *(f"seed {number + 1}" for number in range(record.seeds)))
    rows = [(one.method, *(f"{value:.3f}" for value in one.by_seed)) for one in record.rows]
    return Table(columns, rows, "Loss past the trained length, seed by seed", folded=True)
