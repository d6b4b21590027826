"""Says of the rows of a table what a tuned model says, and scores it where the rows tell the truth."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handscroll.base.errors import ConfigError
from handscroll.data.table.read import read_table
from handscroll.lm import LM, load
from handscroll.metrics.scores import Measured
from handscroll.models.weights import read_json
from handscroll.tasks.finetune import TASK
from handscroll.tasks.recipe import TaskData
from handscroll.tasks.task import OnDone, Part, Prediction, Task, task_from


@dataclass(frozen=True)
class Predicted:
    """The examples, what was said of each, and the scores if all of them have a target."""

    part: Part
    predictions: list[Prediction]
    scores: Mapping[str, Measured]


def load_tuned(source: str | Path, task: Any = None) -> tuple[LM, Task]:
    """A model and its task: that for which it was tuned (`model/`, `adapter/` or the run folder that holds one).

    Raises:
        ConfigError: the folder does not say for which task, and none is given.
    """
    folder = Path(source)
    folder = next((folder / name for name in ("model", "adapter") if (folder / name / TASK).exists()), folder)
    known = folder / TASK
    if task is None and not known.exists():
        raise ConfigError(f"{source} was not tuned for a task here ({TASK} is missing): name one with --task")
    settled = task_from(task if task is not None else read_json(known), str(known))
    lm = load(folder if known.exists() else source)
    return settled.ready(lm, 0), settled


def predict(lm: LM, task: Task, data: TaskData, on_done: OnDone = lambda done: None) -> Predicted:
    """What the model says of the rows of `data.train`."""
    table = read_table(data.train, data.names, encoding=data.encoding, skip_broken=data.skip_broken)
    part = task.read(table, data.columns, data.skip_unfit)
    found = task.predict(lm, part.examples, on_done)
    known = all(task.truth(example) is not None for example in part.examples)
    return Predicted(part, found, task.score(task.checked(part.examples), found) if known else {})
