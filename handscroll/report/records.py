"""The records of evaluations that a report is made from, checked as they come out of JSON.

Unknown keys are allowed (a record may carry more than a report shows); unknown kinds are not.
Numbers are finite; null stands for what was not measured.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self

from pydantic import Field, model_validator

from handscroll.base.errors import ConfigError, DataError, nearest
from handscroll.report.lengthening import Candidates, Compared
from handscroll.report.record import Count, Number, Part, Record, Share


class Perplexity(Record):
    """Mean loss in nats per token of each block of positions; `mean` is over all tokens counted.

    `positions` are block centres. `trained` is the length the checkpoint was trained for, where it is known.
    """

    model: str
    label: str
    length: int
    positions: tuple[Number, ...] = Field(min_length=1)
    loss: tuple[Number | None, ...]
    low: tuple[Number | None, ...] | None = None
    high: tuple[Number | None, ...] | None = None
    count: tuple[Count, ...] | None = None
    mean: Number | None = None
    tokens: Count | None = None
    windows: Count | None = None
    block: int | None = None
    sources: tuple[str, ...] = ()
    text_sha256: str = ""
    trained: int | None = None

    @model_validator(mode="after")
    def _lengths(self) -> Self:
        for name in ("loss", "low", "high", "count"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.positions):
                raise ValueError(f"{name} has {len(values)} values for {len(self.positions)} positions")
        return self


class Needle(Record):
    """Share of needles found, `accuracy[depth][length]`; `samples` is the number of trials in each cell."""

    model: str
    label: str
    lengths: tuple[int, ...] = Field(min_length=1)
    depths: tuple[Share, ...] = Field(min_length=1)
    accuracy: tuple[tuple[Share | None, ...], ...]
    samples: Count
    format: str = ""
    language: str = ""
    needles: Count | None = None
    distractors: Count | None = None
    seed: int | None = None
    trained: int | None = None

    @model_validator(mode="after")
    def _shape(self) -> Self:
        rows, columns = len(self.depths), len(self.lengths)
        if len(self.accuracy) != rows or any(len(row) != columns for row in self.accuracy):
            raise ValueError(f"accuracy must have {rows} rows (depths) of {columns} values (lengths)")
        return self


class PolicyRow(Part):
    """One cache policy: shares of the full cache promised and freed, distance from the exact cache, tasks."""

    policy: str
    budget: Share
    freed: Number
    kl: Number
    worst: Number
    same: Share
    needle: Share | None = None
    copying: Share | None = None
    sums: Share | None = None


class Policies(Record):
    """What cache policies free and cost, the exact cache first."""

    model: str
    length: int
    rows: tuple[PolicyRow, ...] = Field(min_length=1)


class Value(Part):
    """A score with its 95 % interval over `count` answers."""

    value: Number
    low: Number | None = None
    high: Number | None = None
    count: Count


class ByLength(Value):
    """The score of the questions whose prompts have at most `up_to` tokens, and more than half as many."""

    up_to: int


class Left(Part):
    """A question that was left out because its `tokens` do not fit."""

    place: str
    tokens: Count


class Task(Part):
    """One task of a set: its scores by metric, the first of which decides, and what happened to its questions.

    `cut` counts questions whose document lost its middle; those in `left_out` were not asked.
    """

    task: str
    file: str
    form: str = ""
    questions: Count
    documents: Count = 0
    scores: Mapping[str, Value]
    by_length: tuple[ByLength, ...] = ()
    left_out: tuple[Left, ...] = ()
    cut: Count = 0
    ended_at_limit: Count = 0
    empty: Count = 0
    longest: Count = 0


class Planned(Part):
    """Tokens that were to be read, to be written at most, and to be read if every question were asked alone."""

    read: Count
    write_at_most: Count
    alone: Count


class Actual(Part):
    """Tokens that were read and written, and the seconds it took."""

    read: Count
    written: Count
    seconds: Number | None = None


class Tasks(Record):
    """Real long tasks, answered and scored; `form` is how the model was asked."""

    model: str
    label: str
    form: str = ""
    shots: Count = 0
    trained: int | None = None
    context: int | None = None
    tasks: tuple[Task, ...] = Field(min_length=1)
    plan: Planned | None = None
    actual: Actual | None = None


class Reached(Part):
    """The longest length at which a rule holds, with its interval; None: not even at the shortest."""

    rule: str
    threshold: Share
    length: int | None
    low: int | None = None
    high: int | None = None


class Unfit(Part):
    """Samples of a task that do not fit into a length, and the tokens that they need."""

    task: str
    length: int
    samples: Count
    needs: Count


class Ruler(Record):
    """Scores of RULER's tasks, `scores[task][length]` as shares, their average with its interval, effective lengths."""

    model: str
    label: str = ""
    trained: int | None = None
    layout: str = ""
    template: str = ""
    language: str = ""
    seed: int | None = None
    samples: Count
    lengths: tuple[int, ...] = Field(min_length=1)
    tasks: tuple[str, ...] = Field(min_length=1)
    scores: tuple[tuple[Share | None, ...], ...]
    average: tuple[Share | None, ...]
    low: tuple[Share | None, ...] = ()
    high: tuple[Share | None, ...] = ()
    tasks_counted: tuple[Count, ...] = ()
    effective: tuple[Reached, ...] = ()
    unfit: tuple[Unfit, ...] = ()
    tokens: Count | None = None

    @model_validator(mode="after")
    def _shape(self) -> Self:
        columns = len(self.lengths)
        wrong = [row for row in (self.average, *self.scores) if len(row) != columns]
        wrong += [row for row in (self.low, self.high, self.tasks_counted) if row and len(row) != columns]
        if wrong or len(self.scores) != len(self.tasks):
            raise ValueError(f"scores must have {len(self.tasks)} rows (tasks) of {columns} values (lengths)")
        return self


class Test(Part):
    """What was found at one length: hits among trials with an interval, and whether that passes the threshold."""

    length: int
    hits: Count
    trials: Count
    low: Share
    high: Share
    passes: bool
    sure: bool = True


class Length(Record):
    """The search of the effective length: the longest at which the share of right answers reaches the threshold."""

    model: str
    label: str = ""
    trained: int | None = None
    threshold: Share
    effective: int | None
    low: int | None = None
    high: int | None = None
    tests: tuple[Test, ...] = Field(min_length=1)
    tokens: Count | None = None
    tokens_grid: Mapping[str, Count] | Count | None = None


class KeyTokens(Part):
    """LongPPL: the perplexity of the key tokens, their share, and whether they were given by another model."""

    value: Number | None
    low: Number | None = None
    high: Number | None = None
    share: Share
    given: bool = False


class Beyond(Part):
    """Nats per token that text older than `near` tokens saves: against its shuffled self, and against a stranger."""

    near: int
    shuffled: Number
    shuffled_low: Number | None = None
    shuffled_high: Number | None = None
    other: Number | None = None
    other_low: Number | None = None
    other_high: Number | None = None


class Repeats(Part):
    """The loss of `count` tokens with the whole context and with the short one; `since` and `to` (`from` and `to` in a
    record) are how far back the text that they repeat stands."""

    since: int | None = Field(default=None, alias="from")
    to: int | None = None
    count: Count
    loss: Number | None = None
    low: Number | None = None
    high: Number | None = None
    short: Number | None = None


class Repeated(Part):
    """Tokens that end a run of `run` tokens which stood in the window before, and all others."""

    run: Count
    repeated: Repeats
    fresh: Repeats
    by_distance: tuple[Repeats, ...] = ()


class Document(Part):
    """One window: where it comes from, its mean loss, and the mean loss of each quarter of its tokens, none where a
    quarter of a very short window holds no token."""

    source: str
    offset: Count = 0
    mean: Number
    quarters: tuple[Number | None, ...] = ()


class Views(Record):
    """Views of the loss: with a short context beside the whole one, on key tokens, on repeated text, what far text
    saves, and each window by itself."""

    model: str
    label: str
    trained: int | None = None
    length: int
    windows: Count
    short: int
    mean: Number
    mean_short: Number
    long_ppl: KeyTokens | None = None
    beyond: tuple[Beyond, ...] = ()
    used: int | None = None
    repeats: Repeated | None = None
    documents: tuple[Document, ...] = ()
    block: int | None = None
    sources: tuple[str, ...] = ()


class Leak(Record):
    """A packing-leak test: what `said` of documents whose numbers change when they stand in one row with others."""

    model: str
    label: str = ""
    documents: tuple[int, ...]
    said: tuple[str, ...] = ()


class Check(Part):
    """What one check of the doctor found."""

    name: str
    question: str = ""
    verdict: str
    why: str = ""
    seen: str = ""
    faults: tuple[Mapping[str, str], ...] = ()


class Doctor(Record):
    """What the doctor says of a model: its checks, and those that found something."""

    model: str
    runtime: str = ""
    wrong: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()


class Apart(Part):
    """How far two runtimes are from each other at tokens `first` to `last` - 1, in nats."""

    first: int
    last: int
    mean: Number
    worst: Number


class Runtimes(Record):
    """The same tokens in two runtimes: the `first` token at which they differ by more than `near` nats, if one does."""

    runtimes: tuple[str, str]
    tokens: Count
    near: Number
    first: int | None = None
    losses: tuple[Number, Number]
    ranges: tuple[Apart, ...] = ()


class Harness(Record):
    """What lm-eval asked of a model: the kind of its `requests` and how many; a page shows their certificate."""

    model: str
    requests: str
    count: Count


class Ranked(Part):
    """A secret of training data: its rank among others of its form, its bits, and the share that ranks as high."""

    before: str = ""
    after: str = ""
    rank: Count
    among: Count
    bits: Number
    most: Number
    chance: Share


class Exposure(Record):
    """How much a model gives away of secrets; one that it never read has `unread` bits on average."""

    model: str
    unread: Number
    secrets: tuple[Ranked, ...] = Field(min_length=1)


class Training(Record):
    """Loss of each step of a training run."""

    steps: tuple[Number, ...] = Field(min_length=1)
    loss: tuple[Number | None, ...]
    label: str = ""


class Sample(Record):
    """What the model wrote after a prompt."""

    prompt: str
    text: str
    label: str = ""


KINDS: Mapping[str, type[Record]] = {
    "perplexity": Perplexity,
    "needle": Needle,
    "candidates": Candidates,
    "comparison": Compared,
    "policies": Policies,
    "tasks": Tasks,
    "ruler": Ruler,
    "length": Length,
    "views": Views,
    "leak": Leak,
    "harness": Harness,
    "doctor": Doctor,
    "runtimes": Runtimes,
    "exposure": Exposure,
    "training": Training,
    "sample": Sample,
}


def parse_records(records: Sequence[Mapping[str, Any]]) -> list[Record]:
    """Check each record by its kind.

    Raises:
        DataError: an unknown kind, a missing or malformed value; the message names the record by its number.
    """
    return [_parse(record, f"record {number}") for number, record in enumerate(records)]


def _parse(record: Mapping[str, Any], where: str) -> Record:
    if not isinstance(record, Mapping):
        raise DataError(f"{where} is a {type(record).__name__}; expected an object with a 'kind'")
    kind = record.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise DataError(f"{where}: unknown kind {kind!r}: {nearest(str(kind), KINDS)}")
    try:
        return KINDS[kind].parse({name: record[name] for name in record if name != "kind"}, f"{where} ({kind})")
    except ConfigError as error:
        raise DataError(str(error)) from None
