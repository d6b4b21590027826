"""The evaluation report: a page that proves (or refutes) a length claim, from the records of its measurements."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, TypeVar

from handscroll.base.errors import DataError
from handscroll.report.comparison import comparison_section
from handscroll.report.exposure import exposure_section
from handscroll.report.language import joined, say, speaking
from handscroll.report.lengthening import Candidates, Compared
from handscroll.report.losses import loss_section, tail_loss, training_section
from handscroll.report.needles import found, needle_section
from handscroll.report.numbers import capital, loss, share, unique
from handscroll.report.page import Code, Facts, Item, Page, Section, Table
from handscroll.report.reach import length_section, percent, reached, ruler_section
from handscroll.report.records import (
    Doctor,
    Exposure,
    Leak,
    Length,
    Needle,
    Perplexity,
    Policies,
    Record,
    Ruler,
    Runtimes,
    Sample,
    Tasks,
    Training,
    Views,
    parse_records,
)
from handscroll.report.secrets import masked
from handscroll.report.tasks import plan_section, task_section
from handscroll.report.ticks import compact
from handscroll.report.views import doctor_section, leak_section, runtimes_section, views_section

_LONGEST_SAMPLE = 2400  # characters; of a longer text its two ends are shown, and the caption says so
_R = TypeVar("_R", bound=Record)


def evaluation_page(
    records: Sequence[Mapping[str, Any]],
    *,
    trained: int | None = None,
    title: str | None = None,
    subtitle: str | None = None,
    provenance: Mapping[str, str] | None = None,
    language: str = "en",
    first: Sequence[Section] = (),
) -> Page:
    """A page from evaluation records (see `handscroll.report.records`), in the order in which a reader asks.

    `trained` is the length the original checkpoint was trained for; by default it is read from the records.
    `provenance` is added to what the records themselves tell. `language` is "en" or "zh".
    `first` are sections that stand before those of the records.

    Raises:
        DataError: no records, an unknown kind, a malformed record. ConfigError: an unknown language.
    """
    parsed = parse_records(records)
    if not parsed:
        raise DataError("a report needs at least one record; none was given")
    with speaking(language):
        losses, needles = _of(parsed, Perplexity), _of(parsed, Needle)
        trained = _trained(parsed) if trained is None else trained
        target = _target(losses, _of(parsed, Candidates))
        models = list(dict.fromkeys(model for one in parsed if (model := getattr(one, "model", ""))))
        name = title or (say("Evaluation of {model}", model=_called(models[-1])) if models else say("Evaluation"))
        about = _reach(trained, target) if subtitle is None else subtitle
        facts = [*_facts(losses, needles, trained, target), *_reaches(parsed)]
        sections = [Section(say("In short"), "", [Facts(facts)])] if facts else []
        sections += [*first, *(section for make in SECTIONS for section in make(parsed, trained, target))]
        return Page(name, about, sections, {**_provenance(parsed), **(provenance or {})}, language)


Make = Callable[[Sequence[Record], int | None, int | None], list[Section]]


def _called(model: str) -> str:
    """A model in a title: the last part of a path, or the name as it was given; the provenance has the whole path."""
    path = PurePath(model)
    return path.name if path.is_absolute() else model


def _losses(records: Sequence[Record], trained: int | None, target: int | None) -> list[Section]:
    some = _of(records, Perplexity)
    names = unique([one.label for one in some], [one.model for one in some], [compact(one.length) for one in some])
    return [loss_section(some, names, trained, target)] if some else []


def _needles(records: Sequence[Record], trained: int | None, target: int | None) -> list[Section]:
    some = _of(records, Needle)
    lengths = [compact(max(one.lengths)) for one in some]
    names = unique([one.label for one in some], [one.model for one in some], lengths)
    return [needle_section(some, names, trained)] if some else []


def _tasks(records: Sequence[Record], trained: int | None, target: int | None) -> list[Section]:
    some = _of(records, Tasks)
    names = unique([one.label for one in some], [one.model for one in some], [one.form for one in some])
    return [task_section(some, names), *plan_section(some, names)] if some else []


def _named(records: Sequence[Any]) -> list[str]:
    """Labels of records, or their models where they have none, made unique."""
    lengths = [compact(one.length) if isinstance(one, Views) else "" for one in records]
    return unique([one.label or one.model for one in records], [one.model for one in records], lengths)


def _rulers(records: Sequence[Record], trained: int | None, target: int | None) -> list[Section]:
    some = _of(records, Ruler)
    return [ruler_section(some, _named(some))] if some else []


def _lengths(records: Sequence[Record], trained: int | None, target: int | None) -> list[Section]:
    some = _of(records, Length)
    return [length_section(some, _named(some))] if some else []


def _views(records: Sequence[Record], trained: int | None, target: int | None) -> list[Section]:
    some = _of(records, Views)
    return [views_section(some, _named(some))] if some else []


def _samples(records: Sequence[Record], trained: int | None, target: int | None) -> list[Section]:
    some = _of(records, Sample)
    return [_sample_section(some)] if some else []


def each(kind: type[_R], make: Callable[[_R], Section]) -> Make:
    """A section for each record of a kind."""
    return lambda records, trained, target: [make(one) for one in _of(records, kind)]


# What a page shows, in this order: functions of all records, the trained length and the longest one measured.
SECTIONS: tuple[Make, ...] = (
    each(Compared, comparison_section),
    _losses,
    _rulers,
    _needles,
    _lengths,
    _views,
    _tasks,
    each(Candidates, lambda one: _candidates_section(one)),
    each(Policies, lambda one: _policies_section(one)),
    each(Leak, leak_section),
    each(Exposure, exposure_section),
    each(Doctor, doctor_section),
    each(Runtimes, runtimes_section),
    each(Training, training_section),
    _samples,
)


def _of(records: Sequence[Record], kind: type[_R]) -> list[_R]:
    return [record for record in records if isinstance(record, kind)]


def _trained(records: Sequence[Record]) -> int | None:
    """The trained length that all records name; None where none does, or where those of several models differ."""
    lengths = [(getattr(one, "model", ""), length) for one in records if (length := getattr(one, "trained", None))]
    known = {length for _, length in lengths}
    if len(known) <= 1:
        return known.pop() if known else None
    if len({model for model, _ in lengths}) < len(set(lengths)):
        raise DataError(f"the records name different trained lengths: {sorted(known)}; pass trained=... for the page")
    return None


def _target(losses: Sequence[Perplexity], bakeoffs: Sequence[Candidates]) -> int | None:
    return max([*(one.length for one in losses), *(one.target for one in bakeoffs)], default=None)


def _reach(trained: int | None, target: int | None) -> str:
    if not target:
        return ""
    measured = say("measured up to {length} tokens.", length=compact(target))
    if not trained:
        return capital(measured)
    return joined([say("Trained for {length} tokens,", length=compact(trained)), measured])


def _facts(
    losses: Sequence[Perplexity], needles: Sequence[Needle], trained: int | None, target: int | None
) -> list[tuple[str, str]]:
    """Context, loss and needles, before and after; only what was measured, and only like with like."""
    facts = []
    if trained and target and target > trained:
        facts.append((f"{compact(trained)} → {compact(target)}", say("tokens: trained length and length measured")))
    before, after = _pair(losses)
    if before and after and before.length == after.length:
        pair = (tail_loss(before), tail_loss(after))
        if None not in pair:
            what = say("nats per token in the last quarter of {length}, before and after", length=compact(after.length))
            facts.append((f"{loss(pair[0])} → {loss(pair[1])}", what))
    lost, kept = _pair(needles)
    if lost and kept and (lost.lengths, lost.depths) == (kept.lengths, kept.depths):
        pair = (found(lost), found(kept))
        if None not in pair:
            facts.append((f"{share(pair[0])} → {share(pair[1])}", say("of the needles found, before and after")))
    return facts


def _reaches(records: Sequence[Record]) -> list[tuple[str, str]]:
    """Effective lengths with their intervals."""
    rulers, searches = _of(records, Ruler), _of(records, Length)
    facts = [
        (
            reached(rule, min(one.lengths)),
            say(
                "tokens: effective length of {name} in RULER, above {threshold}",
                name=name,
                threshold=percent(rule.threshold),
            ),
        )
        for one, name in zip(rulers, _named(rulers), strict=True)
        for rule in one.effective
        if rule.rule == "published"
    ]
    facts += [
        (
            reached(one, one.tests[0].length),
            say("tokens: effective length of {name}, above {threshold}", name=name, threshold=percent(one.threshold)),
        )
        for one, name in zip(searches, _named(searches), strict=True)
    ]
    return facts


def _pair(records: Sequence[Any]) -> tuple[Any, Any]:
    """The only 'before' and the only 'after'; None where there is none or more than one."""
    some = [[one for one in records if one.label == label] for label in ("before", "after")]
    return tuple(one[0] if len(one) == 1 else None for one in some)  # pyright: ignore[reportReturnType]


def _candidates_section(record: Candidates) -> Section:
    chosen = [index for index, row in enumerate(record.rows) if row.chosen]
    if len(chosen) > 1:
        raise DataError(f"candidates: {len(chosen)} rows are marked as chosen; at most one can be")
    rows = [(row.method, loss(row.long_loss), loss(row.short_loss), row.verdict) for row in record.rows]
    at = {"count": f"{len(rows):,}", "length": compact(record.target)}
    columns = (say("method"), say("loss at {length}", length=at["length"]), say("loss on short text"), say("verdict"))
    if chosen:
        best = record.rows[chosen[0]]
        lead = say(
            "Of {count} methods measured at {length} tokens on the same text, {best} was chosen, with {long} nats per "
            "token on long text and {short} on short.",
            best=best.method,
            long=loss(best.long_loss),
            short=loss(best.short_loss),
            **at,
        )
    else:
        lead = say("{count} methods measured at {length} tokens on the same text; none was chosen.", **at)
    caption = say("Loss in nats per token; lower is better.")
    table = Table(columns, rows, caption, chosen[0] if chosen else None, ("left", "right", "right", "left"))
    return Section(say("Methods compared"), lead, [table])


def _policies_section(record: Policies) -> Section:
    rows = [
        (
            row.policy,
            share(row.budget),
            share(row.freed),
            f"{row.kl:.1e}",
            f"{row.worst:.1e}",
            *map(share, (row.same, row.needle, row.copying, row.sums)),
        )
        for row in record.rows
    ]
    columns = ("policy", "budget", "freed", "KL, mean", "KL, worst", "same token", "needle", "copying", "sums")
    lead = say(
        "What caches of {model} free at {length} tokens, and their distance from the exact one.",
        model=record.model,
        length=compact(record.length),
    )
    caption = say(
        "Shares of the full cache's bytes; KL divergence of the next-token distributions in nats; shares of positions "
        "with the same likeliest token, and of the tasks done (a dash where the exact cache fails too)."
    )
    return Section(say("Cache policies"), lead, [Table(tuple(map(say, columns)), rows, caption)])


def _sample_section(records: Sequence[Sample]) -> Section:
    items: list[Item] = []
    for record in records:
        label = f" ({record.label})" if record.label else ""
        items.append(_code(record.prompt, say("Prompt") + label))
        items.append(_code(record.text, say("Continuation") + label))
    lead = say("What the model wrote; read it as an illustration, not as evidence.")
    return Section(say("Samples"), lead, items)


def _code(text: str, caption: str) -> Code:
    if len(text) <= _LONGEST_SAMPLE:
        return Code(text, caption)
    half = _LONGEST_SAMPLE // 2
    note = say(
        "{caption}: the first and the last {half} of {all} characters",
        caption=caption,
        half=f"{half:,}",
        all=f"{len(text):,}",
    )
    return Code(f"{text[:half]}\n\n[…]\n\n{text[-half:]}", note)


def _command(record: Record) -> str:
    command = record.made.command if record.made else ""
    return masked(command) if isinstance(record, Exposure) else command


def _provenance(records: Sequence[Record]) -> dict[str, str]:
    losses, needles = _of(records, Perplexity), _of(records, Needle)
    rows: dict[str, list[str]] = {
        "Models": [model for one in records if (model := getattr(one, "model", ""))],
        "Texts": [source for one in losses for source in one.sources]
        + [one.file for record in _of(records, Tasks) for one in record.tasks],
        "Block": [say("{count} positions", count=one.block) for one in losses if one.block],
        "Needle format": [one.format for one in needles if one.format],
        "Needle seed": [str(one.seed) for one in needles if one.seed is not None],
        "Tokens seen": [
            say("{seen} of {offered} (SHA-256 of the ids {hash})", **seen.shown)
            for one in records
            if (seen := one.certificate) is not None
        ],
        "Command": [_command(one) for one in records if one.made and one.made.command],
        "Time": [
            say("{minutes} min", minutes=f"{one.made.seconds / 60:.1f}")
            for one in records
            if one.made and one.made.seconds is not None
        ],
        "Version": [one.made.version for one in records if one.made and one.made.version],
    }
    return {say(name): "; ".join(dict.fromkeys(values)) for name, values in rows.items() if values}
