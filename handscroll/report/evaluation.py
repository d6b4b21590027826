"""The evaluation report: a page that proves (or refutes) a length claim, from the records of its measurements."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from handscroll.base.errors import DataError
from handscroll.report.page import Code, Facts, Figure, Item, Page, Section, Table
from handscroll.report.plots import NARROW, WIDE, HeatMap, Series, curve, heat_maps, loss_by_position
from handscroll.report.records import Candidates, Needle, Perplexity, Policies, Record, Sample, Training, parse_records
from handscroll.report.ticks import compact

_LONGEST_SAMPLE = 2400  # characters; of a longer text its two ends are shown, and the caption says so
_R = TypeVar("_R", bound=Record)


def evaluation_page(
    records: Sequence[Mapping[str, Any]],
    *,
    trained: int | None = None,
    title: str | None = None,
    subtitle: str | None = None,
    provenance: Mapping[str, str] | None = None,
) -> Page:
    """A page from evaluation records (see `handscroll.report.records`), in the order in which a reader asks.

    `trained` is the length the original checkpoint was trained for; by default it is read from the records.
    `provenance` is added to what the records themselves tell.

    Raises:
        DataError: no records, an unknown kind, a malformed record.
    """
    parsed = parse_records(records)
    if not parsed:
        raise DataError("a report needs at least one record; none was given")
    losses, needles = _of(parsed, Perplexity), _of(parsed, Needle)
    bakeoffs, runs = _of(parsed, Candidates), _of(parsed, Training)
    trained = _trained(parsed) if trained is None else trained
    target = _target(losses, bakeoffs)
    facts = _facts(losses, needles, trained, target)
    sections = [
        *([Section("In short", "", [Facts(facts)])] if facts else []),
        *([_loss_section(losses, trained, target)] if losses else []),
        *([_needle_section(needles, trained)] if needles else []),
        *[_candidates_section(one) for one in bakeoffs],
        *[_policies_section(one) for one in _of(parsed, Policies)],
        *[_training_section(one) for one in runs],
        *([_sample_section(_of(parsed, Sample))] if _of(parsed, Sample) else []),
    ]
    models = list(dict.fromkeys(one.model for one in [*losses, *needles, *_of(parsed, Policies)]))
    name = title or (f"Evaluation of {models[-1]}" if models else "Evaluation")
    reach = f"Trained for {compact(trained)} tokens, " if trained else ""
    about = (
        subtitle
        if subtitle is not None
        else _capital(f"{reach}measured up to {compact(target)} tokens." if target else "")
    )
    return Page(name, about, sections, {**_provenance(losses, needles), **(provenance or {})})


def tail_loss(record: Perplexity, share: float = 0.25) -> float | None:
    """Mean loss over the last `share` of the positions, weighted by the tokens counted; None if none was measured."""
    start = (1 - share) * record.length
    counts = record.count or (1,) * len(record.positions)
    rows = zip(record.positions, record.loss, counts, strict=True)
    tail = [(loss, count) for position, loss, count in rows if position >= start and loss is not None and count]
    total = sum(count for _, count in tail)
    return sum(loss * count for loss, count in tail) / total if total else None


def _of(records: Sequence[Record], kind: type[_R]) -> list[_R]:
    return [record for record in records if isinstance(record, kind)]


def _trained(records: Sequence[Record]) -> int | None:
    known = {length for record in records if (length := getattr(record, "trained", None)) is not None}
    if len(known) > 1:
        raise DataError(f"the records name different trained lengths: {sorted(known)}; pass trained=... for the page")
    return known.pop() if known else None


def _target(losses: Sequence[Perplexity], bakeoffs: Sequence[Candidates]) -> int | None:
    return max([*(one.length for one in losses), *(one.target for one in bakeoffs)], default=None)


def _named(records: Sequence[Perplexity] | Sequence[Needle]) -> list[str]:
    """The label of each record, made unique by model and length where labels repeat."""
    names = [one.label for one in records]
    for extra in (
        lambda one: one.model,
        lambda one: compact(getattr(one, "length", max(getattr(one, "lengths", [0])))),
    ):
        repeated = {name for name in names if names.count(name) > 1}
        names = [
            f"{name}, {extra(one)}" if name in repeated else name for name, one in zip(names, records, strict=True)
        ]
    return [f"{name} ({names[:i].count(name) + 1})" if names.count(name) > 1 else name for i, name in enumerate(names)]


def _facts(
    losses: Sequence[Perplexity], needles: Sequence[Needle], trained: int | None, target: int | None
) -> list[tuple[str, str]]:
    """Context, loss and needles, before and after; only what was measured, and only like with like."""
    facts = []
    if trained and target and target > trained:
        facts.append((f"{compact(trained)} → {compact(target)}", "tokens: trained length and length measured"))
    before, after = _pair(losses)
    if before and after and before.length == after.length:
        pair = (tail_loss(before), tail_loss(after))
        if None not in pair:
            what = f"nats per token in the last quarter of {compact(after.length)}, before and after"
            facts.append((f"{_loss(pair[0])} → {_loss(pair[1])}", what))
    lost, found = _pair(needles)
    if lost and found and (lost.lengths, lost.depths) == (found.lengths, found.depths):
        pair = (_found(lost), _found(found))
        if None not in pair:
            facts.append((f"{_share(pair[0])} → {_share(pair[1])}", "of the needles found, before and after"))
    return facts


def _pair(records: Sequence[Any]) -> tuple[Any, Any]:
    """The only 'before' and the only 'after'; None where there is none or more than one."""
    found = [[one for one in records if one.label == label] for label in ("before", "after")]
    return tuple(some[0] if len(some) == 1 else None for some in found)  # pyright: ignore[reportReturnType]


def _loss_section(records: Sequence[Perplexity], trained: int | None, target: int | None) -> Section:
    names = _named(records)
    series = [_series(one, name) for one, name in zip(records, names, strict=True)]
    title = "Loss by position"
    lead = _loss_lead(records, names)
    measured = [one for one in series if one.points]
    items: list[Item] = []
    if measured:
        narrow, wide = (loss_by_position(series, trained, target, title, width=width) for width in (NARROW, WIDE))
        band = " The pale band is the confidence interval of each block." if any(one.low for one in measured) else ""
        caption = f"Lower is better. Each point is the mean loss of a block of positions.{band}"
        items.append(Figure(wide, caption, f"Line chart, {title.lower()}. {_ends(measured)}", narrow))
    items.append(_loss_table(records, names))
    items.extend(_blocks(one, name) for one, name in zip(records, names, strict=True))
    return Section(title, lead, items)


def _series(record: Perplexity, name: str) -> Series:
    emphasis = {"before": "before", "after": "after", "sliding window": "reference"}.get(record.label)
    return Series(name, record.positions, record.loss, record.low, record.high, emphasis)  # pyright: ignore[reportArgumentType]


def _loss_lead(records: Sequence[Perplexity], names: Sequence[str]) -> str:
    rows = list(zip(records, names, strict=True))
    lengths = {one.length for one in records}
    parts = []
    for one, name in sorted(rows, key=lambda row: row[0].label != "after"):
        value = tail_loss(one)
        where = "" if len(lengths) == 1 else f" at {compact(one.length)}"
        parts.append((None if value is None else _loss(value), name + where))
    whole = f" of {compact(lengths.pop())} positions" if len(lengths) == 1 else ""
    return f"Over the last quarter{whole}, the loss in nats per token is {_against(parts)}."


def _ends(series: Sequence[Series]) -> str:
    parts = []
    for one in series:
        (first, start), (last, end) = one.points[0], one.points[-1]
        parts.append(f"{one.name}: {_loss(start)} at position {first:.0f}, {_loss(end)} at position {last:.0f}")
    return "; ".join(parts) + "."


def _loss_table(records: Sequence[Perplexity], names: Sequence[str]) -> Table:
    rows = [
        (
            name,
            compact(one.length),
            _loss(tail_loss(one)),
            _loss(one.mean),
            _perplexity(one.mean),
            _number(one.tokens),
            _number(one.windows),
        )
        for one, name in zip(records, names, strict=True)
    ]
    columns = ("", "length", "loss, last quarter", "loss, all", "perplexity", "tokens scored", "windows")
    return Table(columns, rows, "Loss in nats per token; perplexity is its exponential over all positions.")


def _blocks(record: Perplexity, name: str) -> Table:
    counts = record.count or (None,) * len(record.positions)
    lows, highs = record.low or counts, record.high or counts
    banded = record.low is not None and record.high is not None
    rows = []
    for position, loss, low, high, count in zip(record.positions, record.loss, lows, highs, counts, strict=True):
        band = (_loss(low), _loss(high)) if banded else ()
        rows.append((f"{position:,.0f}", _loss(loss), *band, _number(count)))
    columns = ("position", "loss", *(("low", "high") if banded else ()), "tokens")
    return Table(columns, rows, f"All numbers: {name}", folded=True)


def _needle_section(records: Sequence[Needle], trained: int | None) -> Section:
    names = _named(records)
    maps = [
        HeatMap(_capital(name), one.lengths, one.depths, one.accuracy, trained)
        for one, name in zip(records, names, strict=True)
    ]
    parts = [
        (None if _found(one) is None else _share(_found(one)), name)
        for one, name in sorted(zip(records, names, strict=True), key=lambda row: row[0].label != "after")
    ]
    reach = max(max(one.lengths) for one in records)
    lead = f"Of the needles hidden in texts of up to {compact(reach)} tokens, the model finds {_against(parts)}."
    tries = sorted({one.samples for one in records})
    missing = any(value is None for one in records for row in one.accuracy for value in row)
    caption = (
        f"Needles found, in percent, by length of the text and depth of the needle (0% is its start); "
        f"{' or '.join(map(str, tries))} trials in each cell.{' A dash was not measured.' if missing else ''}"
    )
    narrow, wide = (heat_maps(maps, width=width) for width in (NARROW, WIDE))
    items: list[Item] = [Figure(wide, caption, _heat_description(records, names), narrow)]
    items.extend(_grid(one, name) for one, name in zip(records, names, strict=True))
    return Section("Needle in a haystack", lead, items)


def _heat_description(records: Sequence[Needle], names: Sequence[str]) -> str:
    parts = []
    for one, name in zip(records, names, strict=True):
        columns = [[row[j] for row in one.accuracy] for j in range(len(one.lengths))]
        each = [
            f"{compact(length)}: {_share(_mean(column))}" for length, column in zip(one.lengths, columns, strict=True)
        ]
        parts.append(f"{name}, mean over depths: {', '.join(each)}")
    return "Heat maps of needle accuracy. " + "; ".join(parts) + "."


def _grid(record: Needle, name: str) -> Table:
    rows = [(f"{d:.0%}", *map(_share, row)) for d, row in zip(record.depths, record.accuracy, strict=True)]
    return Table(("depth", *map(compact, record.lengths)), rows, f"All numbers: {name}", folded=True)


def _candidates_section(record: Candidates) -> Section:
    chosen = [index for index, row in enumerate(record.rows) if row.chosen]
    if len(chosen) > 1:
        raise DataError(f"candidates: {len(chosen)} rows are marked as chosen; at most one can be")
    rows = [(row.method, _loss(row.long_loss), _loss(row.short_loss), row.verdict) for row in record.rows]
    columns = ("method", f"loss at {compact(record.target)}", "loss on short text", "verdict")
    lead = (
        f"{_plural(len(rows), 'method')} measured at {compact(record.target)} tokens on the same text; none was chosen."
    )
    if chosen:
        best = record.rows[chosen[0]]
        lead = (
            f"Of {_plural(len(rows), 'method')} measured at {compact(record.target)} tokens on the same text, "
            f"{best.method} was chosen, with {_loss(best.long_loss)} nats per token on long text "
            f"and {_loss(best.short_loss)} on short."
        )
    caption = "Loss in nats per token; lower is better."
    table = Table(columns, rows, caption, chosen[0] if chosen else None, ("left", "right", "right", "left"))
    return Section("Methods compared", lead, [table])


def _policies_section(record: Policies) -> Section:
    rows = [
        (
            row.policy,
            _share(row.budget),
            _share(row.freed),
            f"{row.kl:.1e}",
            f"{row.worst:.1e}",
            *map(_share, (row.same, row.needle, row.copying, row.sums)),
        )
        for row in record.rows
    ]
    columns = ("policy", "budget", "freed", "KL, mean", "KL, worst", "same token", "needle", "copying", "sums")
    lead = (
        f"What caches of {record.model} free at {compact(record.length)} tokens, and their distance from the exact one."
    )
    caption = (
        "Shares of the full cache's bytes; KL divergence of the next-token distributions in nats; shares of positions "
        "with the same likeliest token, and of the tasks done (a dash where the exact cache fails too)."
    )
    return Section("Cache policies", lead, [Table(columns, rows, caption)])


def _training_section(record: Training) -> Section:
    measured = [value for value in record.loss if value is not None]
    if not measured:
        return Section("Training", "No loss was recorded.", [])
    lead = (
        f"Over {_plural(len(record.steps), 'recorded step')} the loss goes from {_loss(measured[0])} "
        f"to {_loss(measured[-1])} nats per token."
    )
    narrow, wide = (curve(record.steps, record.loss, "Training loss", width=width) for width in (NARROW, WIDE))
    figure = Figure(wide, record.label, f"Line chart, training loss. {lead}", narrow)
    return Section("Training", lead, [figure])


def _sample_section(records: Sequence[Sample]) -> Section:
    items: list[Item] = []
    for record in records:
        label = f" ({record.label})" if record.label else ""
        items.append(_code(record.prompt, f"Prompt{label}"))
        items.append(_code(record.text, f"Continuation{label}"))
    return Section("Samples", "What the model wrote; read it as an illustration, not as evidence.", items)


def _code(text: str, caption: str) -> Code:
    if len(text) <= _LONGEST_SAMPLE:
        return Code(text, caption)
    half = _LONGEST_SAMPLE // 2
    note = f"{caption}: the first and the last {half:,} of {len(text):,} characters"
    return Code(f"{text[:half]}\n\n[…]\n\n{text[-half:]}", note)


def _provenance(losses: Sequence[Perplexity], needles: Sequence[Needle]) -> dict[str, str]:
    rows: dict[str, list[str]] = {
        "Models": [one.model for one in [*losses, *needles]],
        "Texts": [source for one in losses for source in one.sources],
        "Block": [f"{one.block} positions" for one in losses if one.block],
        "Needle format": [one.format for one in needles if one.format],
        "Needle seed": [str(one.seed) for one in needles if one.seed is not None],
    }
    return {name: ", ".join(dict.fromkeys(values)) for name, values in rows.items() if values}


def _found(record: Needle) -> float | None:
    return _mean([value for row in record.accuracy for value in row])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _loss(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}" if value >= 10 else f"{value:.3f}"


def _perplexity(loss: float | None) -> str:
    if loss is None:
        return "–"
    value = math.exp(loss) if loss < 700 else math.inf
    return f"{value:,.2f}" if value < 100 else f"{value:,.0f}" if value < 1e6 else f"{value:.1e}"


def _share(value: float | None) -> str:
    """A percentage that says 100% only for all and 0% only for none."""
    if value is None:
        return "–"
    edge = 0 < value < 0.005 or 0.995 <= value < 1
    return f"{value:.1%}" if edge else f"{value:.0%}"


def _number(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _against(parts: Sequence[tuple[str | None, str]]) -> str:
    """The first of (value, name) against the others: "2.1 (after), against 8.9 (before) and 2.4 (window)"."""
    first, *rest = [f"{value or 'not measured'} ({name})" for value, name in parts]
    if not rest:
        return first
    return f"{first}, against {', '.join(rest[:-1])}{' and ' if rest[1:] else ''}{rest[-1]}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
