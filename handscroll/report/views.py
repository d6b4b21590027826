"""The sections on what long context is worth, whether packed documents see each other, and what the doctor saw."""

from collections.abc import Sequence

from handscroll.report.language import joined, say
from handscroll.report.numbers import interval, loss, number, share
from handscroll.report.page import Item, Section, Table, Text
from handscroll.report.records import Beyond, Doctor, Leak, Repeated, Runtimes, Views
from handscroll.report.ticks import compact


def views_section(records: Sequence[Views], names: Sequence[str]) -> Section:
    """Loss with the whole and with a short context, key tokens, and nats from beyond k."""
    rows = []
    for one, name in zip(records, names, strict=True):
        key = one.long_ppl
        told = None if key is None or key.value is None else f"{loss(key.value)} [{loss(key.low)}, {loss(key.high)}]"
        rows.append(
            (name, compact(one.length), loss(one.mean), loss(one.mean_short), compact(one.short), told,
             None if key is None else share(key.share))
        )  # fmt: skip
    columns = ("", *map(say, ("length", "loss", "loss, short context", "short context", "LongPPL", "key tokens")))
    caption = say("Loss in nats per token; LongPPL is the perplexity of the tokens for which far text matters.")
    items: list[Item] = [Table(columns, rows, caption)]
    far = [
        (name, compact(gain.near), _told(gain, "shuffled"), _told(gain, "other"))
        for one, name in zip(records, names, strict=True)
        for gain in one.beyond
    ]
    if far:
        columns = ("", *map(say, ("older than", "against the same, shuffled", "against another text")))
        caption = say("Nats per token that the true text older than so many tokens saves, with 95% intervals.")
        items.append(Table(columns, far, caption))
    for one, name in zip(records, names, strict=True):
        items += [_repeats(one.repeats, one.short, name)] if one.repeats else []
        items += [_windows(one, name)] if one.documents else []
    return Section(say("What far text is worth"), _lead(records, names), items)


def _repeats(record: Repeated, short: int, name: str) -> Table:
    """The loss of tokens that repeat earlier text, by how far back it stands, and of all others."""
    named = [(say("fresh"), record.fresh), (say("repeated"), record.repeated)]
    named += [
        (say("repeated, {first} to {last} back", first=one.since, last=one.to), one) for one in record.by_distance
    ]
    rows = [
        (what, number(one.count), loss(one.loss), interval(one.low, one.high), loss(one.short)) for what, one in named
    ]
    columns = ("", *map(say, ("tokens", "loss", "95% interval")), say("with {short} tokens", short=compact(short)))
    caption = say(
        "{name}: loss in nats of tokens that end a run of {run} tokens which stood before, and of all others.",
        name=name, run=record.run,
    )  # fmt: skip
    return Table(columns, rows, caption)


def _windows(record: Views, name: str) -> Table:
    """Each window by itself: its mean loss and that of each quarter of its tokens."""
    parts = max(len(one.quarters) for one in record.documents)
    rows = [(f"{one.source}@{one.offset:,}", loss(one.mean), *map(loss, one.quarters)) for one in record.documents]
    columns = (
        say("window"),
        say("loss"),
        *(say("part {part} of {parts}", part=n + 1, parts=parts) for n in range(parts)),
    )
    return Table(columns, rows, say("Each window: {name}", name=name), folded=True)


def _lead(records: Sequence[Views], names: Sequence[str]) -> str:
    parts = []
    for one, name in zip(records, names, strict=True):
        worth = f"{one.mean_short - one.mean:+.3f}"
        parts.append(
            say(
                "The context beyond {short} tokens saves {name} {worth} nats per token.",
                short=compact(one.short), name=name, worth=worth,
            )
        )  # fmt: skip
        if one.beyond:
            used = (
                say("nothing for sure") if one.used is None else say("text older than {k} tokens", k=compact(one.used))
            )
            parts.append(say("Of far text in its right order it uses {used}.", used=used))
    return joined(parts)


def _told(gain: Beyond, name: str) -> str | None:
    value, low, high = (getattr(gain, f"{name}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return None
    return f"{value:+.4f}" if low is None or high is None else f"{value:+.4f} [{low:+.4f}, {high:+.4f}]"


def leak_section(record: Leak) -> Section:
    """Whether documents that are packed into one row see each other."""
    lead = (
        say("Packed documents see each other: {count} differ from what they are alone.", count=len(record.said))
        if record.said
        else say("Each of {count} packed documents has the numbers that it has alone.", count=len(record.documents))
    )
    return Section(say("Packing"), lead, [Text(list(record.said))] if record.said else [])


def doctor_section(record: Doctor) -> Section:
    """What the doctor found, first what is wrong."""
    lead = (
        say("{count} of {all} checks found something wrong.", count=len(record.wrong), all=len(record.checks))
        if record.wrong
        else say("{count} checks found nothing wrong.", count=len(record.checks))
    )
    order = sorted(record.checks, key=lambda check: check.name not in record.wrong)
    rows = []
    for check in order:
        faults = joined([part for fault in check.faults for part in (fault.get("what", ""), fault.get("mend", ""))])
        rows.append((check.name, check.verdict, faults or check.seen or check.why))
    columns = tuple(map(say, ("check", "verdict", "what was seen")))
    items: list[Item] = [Table(columns, rows, record.runtime)] if rows else []
    return Section(say("Doctor: {model}", model=record.model), lead, items)


def runtimes_section(record: Runtimes) -> Section:
    """Where one runtime leaves another, by position."""
    one, other = record.runtimes
    lead = (
        say("{one} and {other} agree on all {count} tokens.", one=one, other=other, count=number(record.tokens))
        if record.first is None
        else say(
            "{one} leaves {other} at token {first} by more than {near} nats.",
            one=one, other=other, first=number(record.first), near=f"{record.near:g}",
        )
    )  # fmt: skip
    rows = []
    for part in record.ranges:
        where = say("{first} to {last}", first=number(part.first), last=number(part.last - 1))
        rows.append((where, f"{part.mean:.2g}", f"{part.worst:.2g}"))
    columns = tuple(map(say, ("tokens", "difference, mean", "difference, largest")))
    caption = say(
        "Differences of log-probabilities in nats; the mean loss is {here} in {one} and {there} in {other}.",
        here=loss(record.losses[0]), there=loss(record.losses[1]), one=one, other=other,
    )  # fmt: skip
    return Section(say("Two runtimes"), lead, [Table(columns, rows, caption, align=("left", "right", "right"))])
