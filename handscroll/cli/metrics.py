"""`handscroll metrics`: score predictions against references, with intervals, and test one system against another."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from handscroll.base.errors import ConfigError, DataError, nearest
from handscroll.cli.options import given_options
from handscroll.cli.records import OneJson
from handscroll.cli.screen import error_screen, screen, table

if TYPE_CHECKING:
    from handscroll.data.table.table import Table
    from handscroll.metrics import Metric, Settings

REFERENCES = ("reference", "references", "label", "labels", "answer", "answers")
PREDICTIONS = ("prediction", "predictions")
MOST = 30  # labels of a confusion matrix on a screen
LABEL = 60  # characters; a longer reference is a text


@dataclass(frozen=True)
class Columns:
    """The names of the columns that were given; an empty one is looked for among the usual names."""

    reference: str
    prediction: str
    probabilities: str

    def of(self, metric: "Metric", found: Sequence[str], file: str) -> tuple[str, str]:
        """The columns of references and predictions that a metric reads."""
        references, predictions = REFERENCES, PREDICTIONS
        if metric.takes == "losses":
            references, predictions = ("tokens",), ("loss",)
        if metric.takes == "probabilities":
            return self._one("reference", references, found, file), self._one("probabilities", (), found, file)
        return self._one("reference", references, found, file), self._one("prediction", predictions, found, file)

    def _one(self, what: str, usual: Sequence[str], found: Sequence[str], file: str) -> str:
        name = getattr(self, what)
        if name:
            if name not in found and name.partition(".")[0] not in found:
                raise DataError(f"{file}: no column '{name}': {nearest(name, found)}")
            return name
        usual = usual or (what,)
        there = [name for name in usual if name in found]
        if what in there:  # the very name: rows of predictions also hold the columns of their data
            return what
        if len(there) != 1:
            problem = f"both {' and '.join(there)}" if there else f"none of {', '.join(usual)}"
            columns = ", ".join(found)
            raise DataError(f"{file}: {problem} among the columns {columns}; name the one to read (--{what} COLUMN)")
        return there[0]


def metrics(
    context: typer.Context,
    predictions: Annotated[
        Path | None, typer.Argument(help="Rows with a reference and a prediction: JSON lines, CSV, TSV, Parquet.")
    ] = None,
    other: Annotated[Path | None, typer.Option(help="The same rows by another system: test the difference.")] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="Metric, repeatable; without a file and options, all are listed. [by the columns]"),
    ] = None,
    language: Annotated[str, typer.Option(help="Language of the texts: en or zh. [recognised]")] = "",
    reference: Annotated[str, typer.Option(help="Column of references. [reference, else label(s), answer(s)]")] = "",
    prediction: Annotated[str, typer.Option(help="Column of predictions. [prediction(s)]")] = "",
    probabilities: Annotated[
        str, typer.Option(help="Column of probabilities by label, for ece and brier. [probabilities]")
    ] = "",
    words: Annotated[str, typer.Option(help="Words of Chinese for ROUGE: characters or jieba.")] = "characters",
    labels: Annotated[str, typer.Option(help="All labels, A,B,...; any other prediction is wrong.")] = "",
    confusion: Annotated[bool, typer.Option("--confusion", help="Show scores and confusions of each label.")] = False,
    encoder: Annotated[str, typer.Option(help="Encoder whose vectors the metric 'embedding' compares.")] = "",
    resamples: Annotated[int, typer.Option(help="Resamples for intervals and exchanges for tests.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the resamples.")] = 0,
    json_out: OneJson = None,
) -> None:
    """Score the PREDICTIONS of a system, with 95 % intervals; with --other, test it against another one."""
    from handscroll.data.table.spelling import spelled
    from handscroll.metrics import Settings, compare, measure

    if predictions is None:
        if idle := sorted(given_options(context)):
            raise ConfigError(f"--{idle[0]} needs PREDICTIONS: name a file; without options the metrics are listed")
        _list()
        return
    columns = Columns(reference, prediction, probabilities)
    rows, second = _read(predictions), None if other is None else _read(other)
    names = metric or _chosen(rows, columns, str(predictions))
    sides = Sides(str(predictions), rows, columns, names, encoder)
    known = tuple(spelled(label) for label in labels.split(",") if label) or None
    settings = Settings(sides.language(language), words, known)
    found: dict[str, Any] = {}
    for name in names:
        wanted, given = sides.values(name, rows)
        all_sides = [wanted, given]
        if second is not None:
            same, rival = sides.values(name, second)
            _same(wanted, same, rows, second)
            all_sides.append(rival)
        if sides.metrics[name].takes == "vectors":
            all_sides = [sides.vectors(side) for side in all_sides]
        score = measure if second is None else compare
        found |= score([name], *all_sides, settings, resamples, seed)
    _say(sides, settings, found, other)
    if confusion:
        _confusion(sides, rows, settings)
    if json_out is not None:
        _keep(json_out, sides, settings, found, other, (resamples, seed))


class Sides:
    """References and predictions of rows, as each metric takes them."""

    def __init__(self, file: str, rows: "Table", columns: Columns, names: Sequence[str], encoder: str) -> None:
        from handscroll.metrics import metric

        self.file, self.rows = file, rows
        self.metrics = {name: metric(name) for name in names}
        self._columns, self._encoder = columns, encoder
        vectors = [name for name, one in self.metrics.items() if one.takes == "vectors"]
        if bool(vectors) != bool(encoder):
            raise ConfigError("the metric 'embedding' and --encoder MODEL belong together; give both or none")
        self._vectors: Callable[[Sequence[str]], list[Any]] | None = None

    @property
    def named(self) -> str:
        """The columns that were read."""
        pairs = dict.fromkeys(self._columns.of(one, self.rows.columns, self.file) for one in self.metrics.values())
        return "; ".join(f"'{wanted}' against '{given}'" for wanted, given in pairs)

    def language(self, given: str) -> str:
        """The language that was given, or the one of the references."""
        from handscroll.metrics.texts import check_language, language_of

        if given:
            check_language(given)
            return given
        texts: list[str] = []
        for metric in self.metrics.values():
            if metric.takes == "texts":
                wanted = self._columns.of(metric, self.rows.columns, self.file)[0]
                for record in self.rows.records:
                    value = record.get(wanted)
                    texts += [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str)]
        return language_of(texts)

    @property
    def speak(self) -> bool:
        """Whether some metric depends on the language."""
        return any(metric.takes == "texts" for metric in self.metrics.values())

    def values(self, name: str, rows: "Table") -> tuple[list[Any], list[Any]]:
        """References and predictions of all rows for one metric."""
        metric = self.metrics[name]
        wanted, given = self._columns.of(metric, rows.columns, rows.records[0].file)
        sides: tuple[list[Any], list[Any]] = ([], [])
        for record in rows.records:
            for side, column in zip(sides, (wanted, given), strict=True):
                value = record.get(column)
                if value is None and (column == wanted or metric.takes not in ("labels", "one label")):
                    raise DataError(f"{record.place}: nothing under '{column}'; leave the row out or fill it")
                side.append(_as(metric.takes, value, record.place, column))
        return sides

    def vectors(self, texts: Sequence[Any]) -> list[Any]:
        """Vectors of the tokens of texts, by the encoder."""
        if self._vectors is None:
            from handscroll.evaluate.similarity import token_vectors
            from handscroll.lm import load

            lm = load(self._encoder)
            self._vectors = lambda many: [token_vectors(lm, text) for text in many]
        return self._vectors(texts)


def _read(file: Path) -> "Table":
    """The rows of one file, every one; what was repaired is said."""
    from handscroll.data.table.read import read_table

    rows = read_table([file])
    if rows.account.repaired or rows.account.notes:
        error_screen().print(str(rows.account))
    return rows


def _chosen(rows: "Table", columns: Columns, file: str) -> list[str]:
    """The metrics that fit the columns and what stands in them: labels, numbers, answers or other texts."""
    from handscroll.metrics import METRICS

    if not columns.reference and {"tokens", "loss"} <= set(rows.columns):
        return ["perplexity"]
    wanted, given = columns.of(METRICS["accuracy"], rows.columns, file)
    true, said = ([record.get(column) for record in rows.records] for column in (wanted, given))
    chances = (columns.probabilities or "probabilities") in rows.columns
    if wanted.startswith("answer"):
        return ["exact-match", "token-f1"]
    if not chances and _numbers(true, said):
        varied = all(len({float(one) for one in side}) > 1 for side in (true, said))  # a constant has no correlation
        return ["pearson", "spearman", "rmse"] if varied else ["rmse"]
    if chances or wanted.startswith("label") or _labels(true, said, rows.columns):
        if any(isinstance(value, list) for value in [*true, *said]):
            return ["accuracy", "f1-micro", "f1-macro"]
        if len({json.dumps(one) for one in true}) == 1:  # of preferences the better one is always "chosen"
            return ["accuracy"]
        return ["accuracy", "f1-macro", "mcc", *(["ece"] if chances else [])]
    return ["rouge-1", "rouge-2", "rouge-l"]


def _numbers(true: Sequence[Any], said: Sequence[Any]) -> bool:
    """Whether all values are numbers, in figures or words of JSON, and some of them is a fraction."""
    try:
        numbers = [float(one) for one in [*true, *said] if not isinstance(one, bool)]
    except (TypeError, ValueError):
        return False
    whole = len(numbers) == len(true) + len(said) and all(map(math.isfinite, numbers))
    return whole and not all(number.is_integer() for number in numbers)


def _labels(true: Sequence[Any], said: Sequence[Any], names: Sequence[str]) -> bool:
    """Whether references are labels rather than texts: lists on both sides, no texts, or few different short ones."""
    if any(isinstance(one, list) for one in said) or {"chosen", "rejected"} <= set(names):
        return True
    if any(isinstance(one, list) for one in true):  # several texts that are all right
        return False
    texts = [one for one in true if isinstance(one, str)]
    return 2 * len(set(texts)) <= len(texts) and all(len(one) <= LABEL for one in texts)


def _as(takes: str, value: Any, place: str, column: str) -> Any:
    """A cell as a metric takes it: labels are spelled as text, so that 1, 1.0 and "1" are one; numbers may be text."""
    from handscroll.data.table.spelling import spelled

    if takes in ("labels", "one label"):
        return [spelled(one) for one in value] if isinstance(value, list) else spelled(value)
    if takes == "probabilities":
        several = isinstance(value, Mapping)
        return {spelled(label): chance for label, chance in value.items()} if several else spelled(value)
    if takes in ("numbers", "losses") and isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            raise DataError(f"{place}: '{column}' is {value!r}, not a number") from None
    return value


def _same(wanted: Sequence[Any], other: Sequence[Any], rows: "Table", second: "Table") -> None:
    """
    Raises:
        DataError: the two files have other references, so their predictions cannot be paired.
    """
    if len(wanted) != len(other):
        files = rows.records[0].file, second.records[0].file
        raise DataError(f"{files[0]} has {len(wanted):,} rows and {files[1]} {len(other):,}; score the same rows")
    for at, (one, two) in enumerate(zip(wanted, other, strict=True)):
        if one != two:
            places = f"{rows.records[at].place} and {second.records[at].place}"
            raise DataError(f"{places} have different references; list the same rows in the same order in both files")


def _list() -> None:
    from handscroll.metrics.table import METRICS, TAKES

    rows = [(one.name, one.said, one.takes, one.better) for one in METRICS.values()]
    screen().print(table(("metric", "what it is", "takes", "better is"), rows))
    screen().print(table(("takes", "references", "predictions"), [(n, *pair) for n, pair in TAKES.items()]))


def _say(sides: Sides, settings: "Settings", found: Mapping[str, Any], other: Path | None) -> None:
    from handscroll.metrics import METRICS
    from handscroll.metrics.scores import shown

    language = f", language {settings.language}" if sides.speak else ""
    screen().print(f"{sides.file}: {len(sides.rows.records):,} rows, {sides.named}{language}")
    if other is None:
        lines = [(name, shown(one.value), one.interval, METRICS[name].better) for name, one in found.items()]
        screen().print(table(("metric", "value", "95 % interval", "better is"), lines))
        return
    screen().print(f"against {other}")
    lines = []
    for name, one in found.items():
        p = "-" if one.p is None else f"{one.p:.3f}"
        change = f"{one.difference.value:+.3f}"
        values = shown(one.first.value), one.first.interval, shown(one.second.value), one.second.interval
        lines.append((name, *values, change, one.difference.interval, p, METRICS[name].better))
    columns = ("metric", "value", "interval", "other", "interval", "difference", "interval", "p", "better is")
    screen().print(table(columns, lines))


def _confusion(sides: Sides, rows: "Table", settings: "Settings") -> None:
    from handscroll.metrics.labels import by_label, confusion

    name = next((name for name in sides.metrics if sides.metrics[name].takes in ("labels", "one label")), None)
    if name is None:
        raise ConfigError("--confusion is for metrics of labels, such as accuracy; add one (--metric accuracy)")
    wanted, given = sides.values(name, rows)
    scores = [tuple(row) for row in by_label(wanted, given, settings.labels)]
    screen().print()
    screen().print(table(("label", "precision", "recall", "F1", "examples", "predicted"), scores))
    if any(isinstance(value, list) for value in [*wanted, *given]):
        return
    found = confusion(wanted, given, settings.labels)
    screen().print()
    if len(found.labels) > MOST:
        pairs = [
            (int(found.counts[at, to]), label, called)
            for at, label in enumerate(found.labels)
            for to, called in enumerate(found.labels)
            if at != to and found.counts[at, to]
        ]
        pairs.sort(key=lambda pair: -pair[0])
        screen().print(f"The {min(MOST, len(pairs))} commonest of {len(pairs):,} confusions:")
        screen().print(table(("times", "label", "called"), pairs[:MOST]))
        return
    none = found.nameless.any()
    lines = [
        (label, *map(int, row), *([int(missed)] if none else []))
        for label, row, missed in zip(found.labels, found.counts, found.nameless, strict=True)
    ]
    columns = ("label \\ called", *map(str, found.labels), *(["none of them"] if none else []))
    screen().print(table(columns, lines))


def _keep(
    path: Path, sides: Sides, settings: "Settings", found: Mapping[str, Any], other: Path | None, how: tuple[int, int]
) -> None:
    from handscroll.base.runs import write_file

    record = {
        "file": sides.file,
        "other": None if other is None else str(other),
        "rows": len(sides.rows.records),
        "columns": sides.named,
        "settings": asdict(settings),
        "resamples": how[0],
        "seed": how[1],
        "metrics": {name: asdict(one) for name, one in found.items()},
    }
    write_file(path, (json.dumps(record, ensure_ascii=False) + "\n").encode())
    screen().print(f"record: {path}")


def register(app: typer.Typer) -> None:
    app.command()(metrics)
