"""The table of metrics by name, and the two calls that use it: `measure` one system, `compare` two."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from handscroll.base.errors import ConfigError, nearest
from handscroll.metrics import answers, calibration, labels, numbers, similarity, translation
from handscroll.metrics.likelihood import perplexity
from handscroll.metrics.rouge import rouge
from handscroll.metrics.scores import RESAMPLES, Comparison, Measured, Scores, compared, measured, paired

Takes = Literal["labels", "one label", "probabilities", "numbers", "texts", "code", "vectors", "losses"]


@dataclass(frozen=True)
class Settings:
    """What some metrics must be told: the `language` of the texts, what `words` are in Chinese ("characters" or
    "jieba"), and all `labels` (by default those that references and predictions name)."""

    language: str = "en"
    words: str = "characters"
    labels: tuple[Any, ...] | None = None


@dataclass(frozen=True)
class Metric:
    """One way to score predictions. `takes` is what references and predictions are (see `TAKES`), `said` how a report
    names the score, `unit` the top of its scale where it has one; `score` is the function behind it."""

    name: str
    takes: Takes
    higher: bool
    said: str
    unit: float | None
    score: Callable[[Sequence[Any], Sequence[Any], Settings], Scores]

    @property
    def better(self) -> str:
        return "higher" if self.higher else "lower"


TAKES: Mapping[str, tuple[str, str]] = {
    "labels": ("a label, or a list of labels", "the same; None or an empty one names none"),
    "one label": ("a label", "a label; None names none"),
    "probabilities": ("a label", "a probability for each label, by its name"),
    "numbers": ("a number", "a number"),
    "texts": ("a text, or several that are all right", "a text"),
    "code": ("the code that stood there", "the code that was written"),
    "vectors": ("vectors of the tokens (T, D)", "vectors of the tokens (T, D)"),
    "losses": ("number of tokens that were scored", "sum of their losses in nats"),
}


def _averages() -> list[Metric]:
    made = []
    scores = {"precision": labels.precision, "recall": labels.recall, "f1": labels.f1}
    for name, score in scores.items():
        for average in ("micro", "macro", "weighted"):
            said = f"{'F1' if name == 'f1' else name}, {average} average"

            def run(wanted: Any, given: Any, settings: Settings, score: Any = score, average: Any = average) -> Scores:
                return score(wanted, given, average, settings.labels)

            made.append(Metric(f"{name}-{average}", "labels", True, said, 1.0, run))
    return made


def _rouge(kind: Any, said: str) -> Metric:
    def run(wanted: Any, given: Any, settings: Settings) -> Scores:
        return rouge(wanted, given, kind, settings.language, settings.words)

    return Metric(f"rouge-{kind}", "texts", True, said, 1.0, run)


_METRICS = (
    Metric("accuracy", "labels", True, "accuracy", 1.0, lambda r, p, s: labels.accuracy(r, p, s.labels)),
    *_averages(),
    Metric("mcc", "one label", True, "Matthews correlation", 1.0, lambda r, p, s: labels.mcc(r, p, s.labels)),
    Metric("ece", "probabilities", False, "expected calibration error", 1.0, lambda r, p, s: calibration.ece(r, p)),
    Metric("brier", "probabilities", False, "Brier score", None, lambda r, p, s: calibration.brier(r, p)),
    Metric("pearson", "numbers", True, "Pearson correlation", 1.0, lambda r, p, s: numbers.pearson(r, p)),
    Metric("spearman", "numbers", True, "Spearman correlation", 1.0, lambda r, p, s: numbers.spearman(r, p)),
    Metric("margin", "numbers", True, "mean margin", None, lambda r, p, s: numbers.margin(r, p)),
    Metric("rmse", "numbers", False, "root mean square error", None, lambda r, p, s: numbers.rmse(r, p)),
    Metric("mae", "numbers", False, "mean absolute error", None, lambda r, p, s: numbers.mae(r, p)),
    Metric("exact-match", "texts", True, "exact match", 1.0, lambda r, p, s: answers.exact_match(r, p, s.language)),
    Metric("token-f1", "texts", True, "F1 of words", 1.0, lambda r, p, s: answers.token_f1(r, p, s.language)),
    Metric("code-match", "code", True, "exact match of code", 1.0, lambda r, p, s: answers.code_match(r, p)),
    Metric("edit-similarity", "code", True, "edit similarity", 1.0, lambda r, p, s: answers.edit_similarity(r, p)),
    _rouge("1", "ROUGE-1"),
    _rouge("2", "ROUGE-2"),
    _rouge("l", "ROUGE-L"),
    _rouge("lsum", "ROUGE-Lsum"),
    Metric("bleu", "texts", True, "BLEU", 100.0, lambda r, p, s: translation.bleu(r, p, s.language)),
    Metric("chrf", "texts", True, "chrF2", 100.0, lambda r, p, s: translation.chrf(r, p)),
    Metric("embedding", "vectors", True, "embedding F1", 1.0, lambda r, p, s: similarity.embedding_score(r, p)),
    Metric("perplexity", "losses", False, "perplexity", None, lambda r, p, s: perplexity(r, p)),
)
METRICS: Mapping[str, Metric] = {metric.name: metric for metric in _METRICS}


def metric(name: str) -> Metric:
    """
    Raises:
        ConfigError: there is no such metric; the message suggests the nearest name.
    """
    if name not in METRICS:
        raise ConfigError(f"unknown metric '{name}': {nearest(name, METRICS)}")
    return METRICS[name]


def measure(
    names: Sequence[str],
    references: Sequence[Any],
    predictions: Sequence[Any],
    settings: Settings | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Measured]:
    """Score predictions by several metrics, each with its 95 % interval over examples.

    >>> measure(["accuracy"], ["yes", "no", "no"], ["yes", "no", "yes"])["accuracy"].value
    0.6666666666666666

    Raises:
        DataError: what the metric says of its references and predictions. ConfigError: an unknown metric or setting.
    """
    known = [metric(name) for name in names]
    chosen = settings or Settings()
    return {one.name: measured(one.score(references, predictions, chosen), resamples, seed) for one in known}


def compare(
    names: Sequence[str],
    references: Sequence[Any],
    first: Sequence[Any],
    second: Sequence[Any],
    settings: Settings | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Comparison]:
    """Two systems on the same examples, by several metrics: their scores, the difference with its paired interval, and
    how likely one as large is by chance. Errors as in `measure`.

    Testing many metrics or systems finds differences by chance; choose the metric that decides before looking.
    """
    known = [metric(name) for name in names]
    chosen = settings or Settings()
    for predictions in (first, second):
        paired(references, predictions)
    twice = [*references, *references]
    return {one.name: compared(one.score(twice, [*first, *second], chosen), resamples, seed) for one in known}
