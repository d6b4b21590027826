"""The sections on real long tasks: scores by task and by length, and the plan beside what happened."""

from collections.abc import Sequence

from handscroll.report.intervals import Interval, intervals
from handscroll.report.language import joined, say
from handscroll.report.numbers import number
from handscroll.report.page import Figure, Item, Section, Table
from handscroll.report.plots import NARROW, WIDE
from handscroll.report.records import Task, Tasks, Value
from handscroll.report.ticks import compact


def task_section(records: Sequence[Tasks], names: Sequence[str]) -> Section:
    """The scores of every task, of several models or runs beside each other."""
    cut = sum(one.cut for record in records for one in record.tasks)
    title = say("Long tasks: not the whole texts") if cut else say("Long tasks")
    items: list[Item] = []
    rows = _drawn(records, names)
    if rows:
        label = say("score")
        narrow, wide = (intervals(rows, say("Score by task"), label, width=width) for width in (NARROW, WIDE))
        said = "; ".join(f"{one.name} {one.value:.3f}" for one in rows)
        caption = say("The first metric of each task; the line is the 95% interval over answers.")
        items.append(Figure(wide, caption, say("Dot plot of scores: {values}.", values=said), narrow))
    items.append(_scores(records, names))
    items.append(_asked(records, names))
    if any(one.by_length for record in records for one in record.tasks):
        items.append(_by_length(records, names))
    left = [place for record in records for one in record.tasks for place in one.left_out]
    if left:
        cells = [(one.place, number(one.tokens)) for one in left]
        items.append(Table((say("question"), say("tokens")), cells, say("Left out, because too long"), folded=True))
    return Section(title, _lead(records), items)


def plan_section(records: Sequence[Tasks], names: Sequence[str]) -> list[Section]:
    """Tokens and time as they were planned and as they were; nothing where no record has both."""
    rows = []
    for record, name in zip(records, names, strict=True):
        plan, actual = record.plan, record.actual
        if plan is None or actual is None:
            continue
        minutes = None if actual.seconds is None else f"{actual.seconds / 60:.1f}"
        planned = (number(plan.alone), number(plan.read), number(actual.read))
        rows.append((name, *planned, number(plan.write_at_most), number(actual.written), minutes))
    if not rows:
        return []
    columns = ("", "one by one", "planned", "read", "to write at most", "written", "minutes")
    caption = say("Tokens. A document that several questions are asked of is read once.")
    lead = say("What was planned before the first token, and what happened.")
    return [Section(say("Plan and what happened"), lead, [Table(tuple(map(say, columns)), rows, caption)])]


def _lead(records: Sequence[Tasks]) -> str:
    some = [one for record in records for one in record.tasks]
    asked, left, cut = (
        sum(values) for values in zip(*((t.questions, len(t.left_out), t.cut) for t in some), strict=True)
    )
    parts = [say("{count} questions were answered.", count=number(asked))]
    if cut:
        parts.append(say("{count} of them about documents without their middle.", count=number(cut)))
    if left:
        parts.append(say("{count} were left out, because they do not fit.", count=number(left)))
    if not cut and not left:
        parts.append(say("Each was asked about the whole of its text."))
    return joined(parts)


def _drawn(records: Sequence[Tasks], names: Sequence[str]) -> list[Interval]:
    """A row for the first metric of each task and record; tasks stand together."""
    rows = []
    for task in _named(records):
        for at, (record, name) in enumerate(zip(records, names, strict=True)):
            value = next(iter(_scores_of(record, task).values()), None)
            if value is not None:
                label = task if len(records) == 1 else f"{task}, {name}"
                rows.append(Interval(label, value.value, value.low, value.high, at == 0))
    return rows


def _named(records: Sequence[Tasks]) -> list[str]:
    return list(dict.fromkeys(one.task for record in records for one in record.tasks))


def _of(record: Tasks, task: str) -> Task | None:
    return next((one for one in record.tasks if one.task == task), None)


def _scores_of(record: Tasks, task: str) -> dict[str, Value]:
    one = _of(record, task)
    return {} if one is None else dict(one.scores)


def _told(value: Value | None) -> str | None:
    if value is None:
        return None
    interval = "" if value.low is None or value.high is None else f" [{value.low:.3f}, {value.high:.3f}]"
    return f"{value.value:.3f}{interval}"


def _scores(records: Sequence[Tasks], names: Sequence[str]) -> Table:
    rows = []
    for task in _named(records):
        found = [_scores_of(record, task) for record in records]
        for metric in dict.fromkeys(name for some in found for name in some):
            values = [some.get(metric) for some in found]
            counts = {value.count for value in values if value is not None}
            more = [_difference(values)] if len(records) == 2 else []
            rows.append((task, metric, *map(_told, values), *more, "/".join(map(number, sorted(counts)))))
    columns = (say("task"), say("metric"), *names, *([say("difference")] if len(records) == 2 else []), "n")
    caption = say(
        "Scores from 0 to 1 with their 95% intervals over n answers (blanks of cloze questions count singly)."
    )
    return Table(columns, rows, caption)


def _difference(values: Sequence[Value | None]) -> str | None:
    one, other = values
    return None if one is None or other is None else f"{other.value - one.value:+.3f}"


def _asked(records: Sequence[Tasks], names: Sequence[str]) -> Table:
    rows = [
        (
            name if len(records) > 1 else record.form,
            one.task,
            *map(number, (one.questions, one.documents, one.longest, len(one.left_out))),
            *map(number, (one.cut, one.ended_at_limit, one.empty)),
        )
        for record, name in zip(records, names, strict=True)
        for one in record.tasks
    ]
    named = ("task", "questions", "documents", "longest prompt", "left out", "cut", "ended at limit", "empty answers")
    return Table(("", *map(say, named)), rows, say("What was asked, and what became of it; prompts in tokens."))


def _by_length(records: Sequence[Tasks], names: Sequence[str]) -> Table:
    rows = [
        (name, one.task, say("up to {length}", length=compact(part.up_to)), _told(part), number(part.count))
        for record, name in zip(records, names, strict=True)
        for one in record.tasks
        for part in one.by_length
    ]
    columns = ("", say("task"), say("prompt"), say("score"), "n")
    return Table(columns, rows, say("Scores by length of the prompt"), folded=len(rows) > 12)
