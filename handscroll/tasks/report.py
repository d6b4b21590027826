"""The page of a tuning run: scores beside baselines, curves, confusions, errors to read, and what was read."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from handscroll.base.records import read_records
from handscroll.metrics.scores import Measured
from handscroll.metrics.table import METRICS
from handscroll.report.page import write
from handscroll.report.tuning import Counted, Curve, Matrix, Mistake, Score, SecondSet, Tuning, tuning_page
from handscroll.tasks.task import Example, Prediction, Task

SHOWN = 40  # errors
TUNED = "tuned"

Scores = Mapping[str, Mapping[str, Measured]]  # by system and metric


def write_page(
    path: Path,
    record: Mapping[str, Any],
    task: Task,
    scored: Mapping[str, Scores],
    told: tuple[Sequence[Example], Sequence[Prediction]],
) -> None:
    """The report of a run.

    `record` is that of the run (`result.json`), `scored` the scores of every system on "valid", "test" and "second",
    and `told` what was predicted of the main table, "test" if there is one.
    """
    main = "test" if "test" in scored else "valid"
    source, data = record["model"]["source"], record["recipe"]["data"]
    files = data[main] or data["train"]
    known = [(e, p) for e, p in zip(*told, strict=True) if task.truth(e) is not None]
    told_wrong = [(e, p) for e, p in known if not _right(task.truth(e), p.output)]
    run = Tuning(
        task=task.name,
        model=Path(source).name,
        data=", ".join(Path(file).name for file in files) + ("" if data[main] else " (held out)"),
        system=TUNED,
        scores=_scores(scored.get(main, {})),
        second=_second(scored.get("second", {}), data["second"]),
        curves=_curves(path.parent / "records.jsonl"),
        matrix=_matrix(task, *told),
        mistakes=_mistakes(task, told_wrong) if task.compared else (),
        wrong=len(told_wrong) if task.compared else None,
        examined=len(told[0]) if task.compared else None,
        counts=_counts(record),
    )
    versions = {name: str(version) for name, version in record["versions"].items()}
    write(tuning_page(run, versions), path)


def _scores(by_system: Scores) -> tuple[Score, ...]:
    return tuple(
        Score(
            system=system,
            metric=METRICS[name].said,
            value=one.value,
            low=one.low,
            high=one.high,
            count=one.count,
            higher=METRICS[name].higher,
        )
        for system, scores in by_system.items()
        for name, one in scores.items()
    )


def _second(by_system: Scores, files: Sequence[str]) -> SecondSet | None:
    scores = _scores(by_system)
    return SecondSet(name=", ".join(Path(file).name for file in files), scores=scores) if scores else None


def _curves(records: Path) -> tuple[Curve, ...]:
    rows = list(read_records(records))
    found = []
    for key, name, unit in (
        ("loss", "training loss", "nats"),
        ("validation_loss", "loss on held-out rows", "nats"),
        ("accuracy", "accuracy", "share of an update's examples"),
    ):
        held = [(row["step"], row[key]) for row in rows if key in row]
        if len(held) > 1:
            steps, values = zip(*held, strict=True)
            found.append(Curve(name=name, steps=steps, values=values, unit=unit))
    return tuple(found)


def _matrix(task: Task, examples: Sequence[Example], predictions: Sequence[Prediction]) -> Matrix | None:
    labels = getattr(task, "labels", ())
    pairs = [(task.truth(e), p.output) for e, p in zip(examples, predictions, strict=True)]
    if not labels or not all(isinstance(truth, str) and isinstance(output, str) for truth, output in pairs):
        return None
    counts = Counter(pairs)
    nameless = dict.fromkeys(labels, 0)
    for (truth, said), count in counts.items():
        if said not in nameless:
            nameless[truth] += count
    return Matrix(
        labels=labels,
        counts=tuple(tuple(counts[truth, said] for said in labels) for truth in labels),
        nameless=tuple(nameless.values()),
    )


def _right(truth: Any, output: Any) -> bool:
    """Whether a prediction is the truth; the order of several labels plays no part."""
    several = isinstance(truth, list) and isinstance(output, list)
    return set(truth) == set(output) if several else truth == output


def _mistakes(task: Task, wrong: Sequence[tuple[Example, Prediction]]) -> tuple[Mistake, ...]:
    """The errors of which the model was surest come first."""
    found = []
    for example, prediction in wrong:
        chances = prediction.more.get("probabilities")
        sure = max(chances.values()) if chances else None
        text = "\n".join(str(example.values[field.name]) for field in task.visible if example.values.get(field.name))
        found.append(
            Mistake(
                text=text,
                truth=_said(task.truth(example)),
                prediction=_said(prediction.output),
                confidence=sure,
                place=example.place.rsplit("/", 1)[-1],
            )
        )
    return tuple(sorted(found, key=lambda one: -(one.confidence or 0))[:SHOWN])


def _said(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _counts(record: Mapping[str, Any]) -> tuple[Counted, ...]:
    found = []
    for name, table in record["tables"].items():
        found.append(Counted(what=f"{name}: rows read", count=table["read"], note=table["columns"]))
        for kind in ("left_out", "repaired", "added"):
            for one in table[kind]:
                what = f"{name}: {kind.replace('_', ' ')}: {one['reason']}"
                found.append(Counted(what=what, count=one["count"], note="; ".join(one["places"])))
    tokens = record["rows"]["train"]
    for kind in ("offered", "trained", "untrained", "left_out"):
        found.append(Counted(what=f"tokens of the training rows: {kind.replace('_', ' ')}", count=tokens[kind]))
    return tuple(found)
