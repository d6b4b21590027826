"""What the samples of a run show: scores by task and length, averages, and the length up to which they hold."""

from collections.abc import Sequence
from typing import Any

from handscroll.evaluate.certificate import Certificate, together
from handscroll.evaluate.effective import effective
from handscroll.evaluate.ruler.exams import Setting
from handscroll.lm import LM
from handscroll.metrics.scores import mean, measured

PUBLISHED = 0.856  # the score of Llama 2 7B at 4,096 tokens, RULER's threshold
RELATIVE = 0.85  # of the score at the shortest length, NoLiMa's threshold
Rows = Sequence[dict[str, Any]]


def summary(lm: LM, setting: Setting, about: dict[str, Any], rows: Rows, label: str = "") -> dict[str, Any]:
    """The record of a run. `scores[task][length]` are shares; null where a sample did not fit into the length.

    `average` is the mean over all samples of a length, with a bootstrap interval; `tasks_counted` are the tasks of
    which all samples fitted, and only they count. `long` is the share of answers that reached the end of their room
    without ending: of those a full score says little.
    """
    lengths = setting.lengths
    cells = {(task, length): [row for row in rows if (row["task"], row["length"]) == (task, length)]
             for task in setting.tasks for length in lengths}  # fmt: skip
    whole = {key: all("score" in row for row in found) for key, found in cells.items()}
    averages = [_average(cells, whole, setting, length) for length in lengths]
    counted = [
        [row for task in setting.tasks if whole[task, length] for row in cells[task, length]] for length in lengths
    ]
    scores = [
        [_mean(cells[task, length]) if whole[task, length] else None for length in lengths] for task in setting.tasks
    ]
    proof = together(Certificate(**row["certificate"]) for row in rows if "certificate" in row)
    return {
        "kind": "ruler",
        "model": lm.source,
        "label": label,
        "trained": lm.trained,
        "layout": setting.layout,
        "template": setting.template,
        "language": about["language"],
        "seed": setting.seed,
        "samples": setting.samples,
        "lengths": list(lengths),
        "tasks": list(setting.tasks),
        "scores": scores,
        "average": [one["value"] for one in averages],
        "low": [one["low"] for one in averages],
        "high": [one["high"] for one in averages],
        "tasks_counted": [sum(whole[task, length] for task in setting.tasks) for length in lengths],
        "long": [_share(found) for found in counted],
        "effective": _effective(lengths, counted),
        "unfit": _unfit(cells),
        "tokens": proof.seen,
        "certificate": proof.record(),
        "about": about,
        "outcomes": [
            {"task": task, "length": length, "scores": [row.get("score") for row in found]}
            for (task, length), found in cells.items()
        ],
    }


def _mean(rows: Rows) -> float:
    return sum(row["score"] for row in rows) / len(rows)


def _average(cells: Any, whole: Any, setting: Setting, length: int) -> dict[str, float | None]:
    each = [row["score"] for task in setting.tasks if whole[task, length] for row in cells[task, length]]
    if not each:
        return {"value": None, "low": None, "high": None}
    found = measured(mean(each))
    return {"value": found.value, "low": found.low, "high": found.high}


def _share(rows: Rows) -> float | None:
    return sum(row["finish"] == "length" for row in rows) / len(rows) if rows else None


def _effective(lengths: Sequence[int], counted: Sequence[Rows]) -> list[dict[str, Any]]:
    """The longest length that reaches each threshold. Parts of a score count as parts of a hit.

    A single length is not compared with itself.
    """
    known = [(length, rows) for length, rows in zip(lengths, counted, strict=True) if rows]
    if not known:
        return []
    hits = [sum(row["score"] for row in rows) for _, rows in known]
    trials = [len(rows) for _, rows in known]
    first = _mean(known[0][1])
    rules = [("published", PUBLISHED), *([("relative", RELATIVE * first)] if first and len(known) > 1 else [])]
    found = []
    for name, threshold in rules:
        one = effective([length for length, _ in known], hits, trials, threshold)
        found.append({"rule": name, "threshold": threshold, "length": one.length, "low": one.low, "high": one.high})
    return found


def _unfit(cells: Any) -> list[dict[str, Any]]:
    found = []
    for (task, length), rows in cells.items():
        missing = [row["missing"] for row in rows if "missing" in row]
        if missing:
            found.append({"task": task, "length": length, "samples": len(missing), "needs": length + max(missing)})
    return found
