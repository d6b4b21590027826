"""The report of a tuning run: scores beside baselines, curves, confusions, errors to read, and what was read."""

from collections.abc import Mapping, Sequence
from typing import Self

from pydantic import Field, model_validator

from handscroll.report.confusion import MOST, confusion_map
from handscroll.report.drawing import NARROW, WIDE
from handscroll.report.intervals import Interval, intervals
from handscroll.report.page import Facts, Figure, Item, Page, Section, Table, Text
from handscroll.report.plots import curve
from handscroll.report.records import Count, Number, Part, Share

_LONGEST = 600  # characters of an error's text; of a longer one its two ends are shown, and it says so


class Score(Part):
    """One score of one system: `system` names it ("tuned", "TF-IDF"), `metric` is how it is said ("accuracy"), `low`
    and `high` are the ends of its 95 % interval over `count` examples, where it has one."""

    system: str
    metric: str
    value: Number
    low: Number | None = None
    high: Number | None = None
    count: Count
    higher: bool = True


class Difference(Part):
    """A paired test on one metric: the first system less the second, its interval, and p."""

    metric: str
    first: str
    second: str
    value: Number
    low: Number | None = None
    high: Number | None = None
    p: Share | None = None


class Curve(Part):
    """A value over the steps of training: `name` ("training loss"), `unit` ("nats per token"); None: not measured."""

    name: str
    steps: tuple[Number, ...] = Field(min_length=1)
    values: tuple[Number | None, ...]
    unit: str = ""

    @model_validator(mode="after")
    def _lengths(self) -> Self:
        if len(self.values) != len(self.steps):
            raise ValueError(f"{self.name}: {len(self.values)} values for {len(self.steps)} steps")
        return self


class Matrix(Part):
    """`counts[i][j]` examples of `labels[i]` were called `labels[j]`, `nameless[i]` by none of the labels."""

    labels: tuple[str, ...] = Field(min_length=1)
    counts: tuple[tuple[Count, ...], ...]
    nameless: tuple[Count, ...] = ()

    @model_validator(mode="after")
    def _square(self) -> Self:
        size = len(self.labels)
        if len(self.counts) != size or any(len(row) != size for row in self.counts):
            raise ValueError(f"a confusion matrix of {size} labels has {size} rows of {size} counts")
        if self.nameless and len(self.nameless) != size:
            raise ValueError(f"nameless has {len(self.nameless)} counts for {size} labels")
        return self


class Mistake(Part):
    """An example that came out wrong: its text, what is true, what was said, how sure the model was, where it stands
    ("dev.csv, row 12")."""

    text: str
    truth: str
    prediction: str
    confidence: Share | None = None
    place: str = ""


class Counted(Part):
    """Something that happened to `count` rows or tokens ("rows read", "left out: empty text"); `note` says where."""

    what: str
    count: Count
    note: str = ""


class SecondSet(Part):
    """The scores of the same systems on another data set of the same task."""

    name: str
    scores: tuple[Score, ...] = Field(min_length=1)


class Tuning(Part):
    """A tuning run. `system` names the tuned model among `scores`; the first metric of it heads the page.

    `mistakes` are some of the `wrong` of `examined` held-out examples, in the order in which they should be read.
    """

    task: str
    model: str
    data: str
    system: str = "tuned"
    scores: tuple[Score, ...] = ()
    differences: tuple[Difference, ...] = ()
    second: SecondSet | None = None
    curves: tuple[Curve, ...] = ()
    matrix: Matrix | None = None
    mistakes: tuple[Mistake, ...] = ()
    wrong: Count | None = None
    examined: Count | None = None
    counts: tuple[Counted, ...] = ()
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _of_all(self) -> Self:
        if self.wrong is not None and len(self.mistakes) > self.wrong:
            raise ValueError(f"{len(self.mistakes)} mistakes are shown of {self.wrong}")
        return self


def tuning_page(run: Tuning, provenance: Mapping[str, str] | None = None) -> Page:
    """The page of a tuning run, in the order in which a reader asks: how good, against what, how it got there, what it
    confuses, which errors it makes, and what it was trained on. `write(page, path)` makes the file."""
    facts = _facts(run)
    sections = [
        *([Section("In short", "", [Facts(facts)])] if facts else []),
        *([_scores(run)] if run.scores else []),
        *([_second(run, run.second)] if run.second else []),
        *([_curves(run.curves)] if run.curves else []),
        *([_confusions(run.matrix)] if run.matrix else []),
        *([_mistakes(run)] if run.mistakes or run.wrong is not None else []),
        *([_counts(run.counts)] if run.counts else []),
        *([Section("To bear in mind", "", [Text(run.notes)])] if run.notes else []),
    ]
    made = {"Model": run.model, "Task": run.task, "Data": run.data}
    return Page(
        f"{run.task}: {run.model}", f"Tuned and scored on {run.data}.", sections, {**made, **(provenance or {})}
    )


def _facts(run: Tuning) -> list[tuple[str, str]]:
    facts = []
    own = [score for score in run.scores if score.system == run.system]
    if own:
        main = own[0]
        facts.append((_number(main.value), f"{main.metric}{_between(main)}"))
        others = [score for score in run.scores if score.metric == main.metric and score.system != run.system]
        if others:
            best = (max if main.higher else min)(others, key=lambda score: score.value)
            facts.append((_number(best.value), f"{main.metric} of the best baseline: {best.system}"))
        there = [
            s for s in (run.second.scores if run.second else ()) if (s.system, s.metric) == (run.system, main.metric)
        ]
        if there and run.second:
            facts.append((_number(there[0].value), f"{main.metric} on {run.second.name}{_between(there[0])}"))
    if run.wrong is not None and run.examined:
        facts.append((f"{run.wrong:,}", f"of {run.examined:,} held-out examples came out wrong"))
    return facts


def _scores(run: Tuning) -> Section:
    table = _table(run.scores, run.system)
    items: list[Item] = [*_figure(run.scores, run.system, run.data), table]
    if run.differences:
        rows = [
            (f"{one.first} less {one.second}", one.metric, f"{one.value:+.3f}", _ends(one), _chance(one.p))
            for one in run.differences
        ]
        columns = ("paired test", "metric", "difference", "95% interval", "p")
        note = "p: how often a random exchange of the two systems' predictions makes a difference as large."
        items.append(Table(columns, rows, note, align=("left", "left", "right", "right", "right")))
    return Section("Scores", _lead(run.scores, run.system), items)


def _second(run: Tuning, second: SecondSet) -> Section:
    lead = f"The same systems on {second.name}, without any training on it."
    return Section(
        "On other data", lead, [*_figure(second.scores, run.system, second.name), _table(second.scores, run.system)]
    )


def _lead(scores: Sequence[Score], system: str) -> str:
    counts = sorted({score.count for score in scores})
    return f"{system} and its baselines on {' or '.join(f'{count:,}' for count in counts)} held-out examples."


def _figure(scores: Sequence[Score], system: str, data: str) -> list[Item]:
    """The first metric of the tuned model, for every system."""
    metric = next((score.metric for score in scores if score.system == system), scores[0].metric)
    kept = [score for score in scores if score.metric == metric]
    rows = [Interval(one.system, one.value, one.low, one.high, one.system == system) for one in kept]
    title = metric[:1].upper() + metric[1:]
    better = "higher" if kept[0].higher else "lower"
    narrow, wide = (intervals(rows, title, f"{metric} ({better} is better)", width=w) for w in (NARROW, WIDE))
    said = "; ".join(f"{one.system} {_number(one.value)}{_between(one)}" for one in kept)
    caption = f"The line is the 95% interval over the examples of {data}." if any(one.low for one in kept) else ""
    return [Figure(wide, caption, f"Dot plot of {metric}: {said}.", narrow)]


def _table(scores: Sequence[Score], system: str) -> Table:
    systems, metrics = (list(dict.fromkeys(getattr(score, name) for score in scores)) for name in ("system", "metric"))
    found = {(score.system, score.metric): score for score in scores}
    rows = []
    for name in systems:
        cells = [found.get((name, metric)) for metric in metrics]
        rows.append((name, *(None if one is None else f"{_number(one.value)} {_ends(one)}".strip() for one in cells)))
    lower = sorted({score.metric for score in scores if not score.higher})
    caption = "95% intervals in brackets." + (f" Lower is better for: {', '.join(lower)}." if lower else "")
    chosen = systems.index(system) if system in systems and len(systems) > 1 else None
    return Table(("system", *metrics), rows, caption, chosen, ("left", *["right"] * len(metrics)))  # pyright: ignore[reportArgumentType]


def _curves(curves: Sequence[Curve]) -> Section:
    items: list[Item] = []
    said = []
    for one in curves:
        known = [(step, value) for step, value in zip(one.steps, one.values, strict=True) if value is not None]
        if not known:
            items.append(Text([f"{one.name} was not measured."]))
            continue
        change = f"{one.name} goes from {_number(known[0][1])} to {_number(known[-1][1])}"
        said.append(change)
        title = one.name[:1].upper() + one.name[1:]
        steps, values = zip(*known, strict=True)
        narrow, wide = (curve(steps, values, title, y_label=one.unit, width=w) for w in (NARROW, WIDE))
        items.append(Figure(wide, "", f"Line chart: {change}.", narrow))
    lead = f"Over {int(max(one.steps[-1] for one in curves)):,} steps {'; '.join(said)}." if said else ""
    return Section("Training", lead, items)


def _confusions(matrix: Matrix) -> Section:
    size = len(matrix.labels)
    right = sum(matrix.counts[at][at] for at in range(size))
    total = sum(map(sum, matrix.counts)) + sum(matrix.nameless)
    lead = f"{right:,} of {total:,} are right."
    wrong = [(n, i, j) for i, row in enumerate(matrix.counts) for j, n in enumerate(row) if i != j and n]
    wrong.sort(reverse=True)
    if wrong:
        count, i, j = wrong[0]
        lead += f" Commonest confusion: {matrix.labels[i]} called {matrix.labels[j]}, {count:,} times."
    items: list[Item] = []
    if size < MOST:
        none = any(matrix.nameless)
        called = [*matrix.labels, "none of them"] if none else matrix.labels
        counts = [[*row, matrix.nameless[at]] if none else row for at, row in enumerate(matrix.counts)]
        narrow, wide = (confusion_map(matrix.labels, counts, "Confusions", called, width=w) for w in (NARROW, WIDE))
        items.append(Figure(wide, "A cell is as dark as its share of its row.", f"Confusion matrix. {lead}", narrow))
    elif wrong:
        rows = [(matrix.labels[i], matrix.labels[j], f"{count:,}") for count, i, j in wrong[:MOST]]
        items.append(Table(("is", "called", "times"), rows, f"The {len(rows)} commonest of {len(wrong):,} confusions."))
    items.append(_by_label(matrix))
    return Section("Confusions", lead, items)


def _by_label(matrix: Matrix) -> Table:
    rows = []
    for at, name in enumerate(matrix.labels):
        hit = matrix.counts[at][at]
        true = sum(matrix.counts[at]) + (matrix.nameless[at] if matrix.nameless else 0)
        given = sum(row[at] for row in matrix.counts)
        shares = [None if not below else f"{hit / below:.3f}" for below in (given, true)]
        f1 = f"{2 * hit / (true + given):.3f}" if true + given else None
        rows.append((name, *shares, f1, f"{true:,}", f"{given:,}"))
    columns = ("label", "precision", "recall", "F1", "examples", "predicted")
    return Table(columns, rows, "Each label", folded=True)


def _mistakes(run: Tuning) -> Section:
    wrong = len(run.mistakes) if run.wrong is None else run.wrong
    if not wrong:
        return Section("Errors to read", "No held-out example came out wrong.", [])
    lead = f"{len(run.mistakes):,} of {wrong:,} errors. Wrong labels in the data show here too."
    sure = any(one.confidence is not None for one in run.mistakes)
    place = any(one.place for one in run.mistakes)
    columns = ("text", "is", "called", *(["sure"] if sure else []), *(["where"] if place else []))
    rows = []
    for one in run.mistakes:
        extra = [None if one.confidence is None else f"{one.confidence:.0%}"] if sure else []
        rows.append((_clipped(one.text), one.truth, _clipped(one.prediction), *extra, *([one.place] if place else [])))
    align = ("left", "left", "left", *(["right"] if sure else []), *(["left"] if place else []))
    caption = "“Sure” is the probability that the model gave to its own answer." if sure else ""
    return Section("Errors to read", lead, [Table(columns, rows, caption, align=align)] if rows else [])  # pyright: ignore[reportArgumentType]


def _counts(counts: Sequence[Counted]) -> Section:
    rows = [(one.what, f"{one.count:,}", one.note) for one in counts]
    noted = any(one.note for one in counts)
    columns = ("", "count", "where first") if noted else ("", "count")
    return Section(
        "What was read", "Nothing is cut or left out in silence.", [Table(columns, [r[: len(columns)] for r in rows])]
    )


def _clipped(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2
    return f"{text[:half]} […] {text[-half:]} (the first and last {half} of {len(text):,} characters)"


def _between(score: Score) -> str:
    return "" if score.low is None or score.high is None else f", {_number(score.low)} to {_number(score.high)}"


def _ends(score: Score | Difference) -> str:
    return "" if score.low is None or score.high is None else f"[{_number(score.low)}, {_number(score.high)}]"


def _chance(p: float | None) -> str | None:
    return None if p is None else f"{p:.3f}"


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.2f}"
