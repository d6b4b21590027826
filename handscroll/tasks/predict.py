"""Says of the rows of a table what a tuned model says, and scores it where the rows tell the truth."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handscroll.base.errors import ConfigError
from handscroll.cache.reading.store import Store
from handscroll.data.table.read import read_table
from handscroll.lm import LM, load
from handscroll.metrics.scores import Measured
from handscroll.models.weights import read_json
from handscroll.tasks.examples import drawn
from handscroll.tasks.finetune import TASK
from handscroll.tasks.prompting import Choose, Prompting, notes_of
from handscroll.tasks.recipe import TaskData
from handscroll.tasks.task import Example, OnDone, Part, Prediction, Task, task_from


@dataclass(frozen=True)
class Predicted:
    """The examples, what was said of each, and the scores if all of them have a target."""

    part: Part
    predictions: list[Prediction]
    scores: Mapping[str, Measured]


def load_tuned(source: str | Path, task: Any = None, prompted: bool = False) -> tuple[LM, Task]:
    """A model and its task: that for which it was tuned (`model/`, `adapter/` or the run folder that holds one).

    With `prompted` the model is asked as it is, and gets no head for the task.

    Raises:
        ConfigError: the folder does not say for which task, and none is given; or the model has no head for the task.
    """
    folder = Path(source)
    folder = next((folder / name for name in ("model", "adapter") if (folder / name / TASK).exists()), folder)
    known = folder / TASK
    if task is None and not known.exists():
        raise ConfigError(f"{source} was not tuned for a task here ({TASK} is missing): name one with --task")
    settled = task_from(task if task is not None else read_json(known), str(known))
    lm = load(folder if known.exists() else source)
    if prompted:
        return lm, settled
    own = lm.model
    if settled.ready(lm, 0).model is not own:  # a head was drawn, of which nothing was learned
        raise ConfigError(
            f"{source} was not tuned for the task '{settled.name}': its head would be drawn at random. Tune it first "
            f"(handscroll finetune {settled.name} {source} --data FILE), or ask a model that writes text with examples "
            "in its prompt (--shots N)"
        )
    return lm, settled


@dataclass(frozen=True)
class Asked:
    """How a model is asked that was not tuned for the task; `examples` are files from which `shots` are taken.

    `profile` are files of what is known of users (`user`, `text`). `encoder` is a model that finds similar examples.
    """

    shots: int = 0
    examples: tuple[str, ...] = ()
    choose: Choose = "first"
    profile: tuple[str, ...] = ()
    encoder: str = ""
    seed: int = 0
    store: Store | None = None


def prompting_of(task: Task, data: TaskData, asked: Asked) -> Prompting:
    """What stands in each prompt.

    Raises:
        DataError: the examples do not fit the task, or a row of a profile is not whole.
        ConfigError: fewer examples than shots, or settings that exclude each other.
    """
    if asked.examples and not asked.shots:
        raise ConfigError("examples are given, but no shots are asked for: give --shots N")
    examples: tuple[Example, ...] = ()
    if asked.examples:
        table = read_table(asked.examples, data.names, encoding=data.encoding, skip_broken=data.skip_broken)
        examples = task.read(table, data.columns, data.skip_unfit).examples
    notes = notes_of(read_table(asked.profile)) if asked.profile else {}
    encoder = load(asked.encoder) if asked.encoder else None
    return Prompting(asked.shots, examples, asked.choose, notes, encoder, asked.seed, asked.store)


def predict(
    lm: LM,
    task: Task,
    data: TaskData,
    on_done: OnDone = lambda done: None,
    asked: Asked | None = None,
    seed: int = 0,
) -> Predicted:
    """What the model says of the rows of `data.train`; with `asked`, as it is, by its prompt and examples in it.

    `seed` draws the rows where `data.most_scored` wants fewer than there are.
    """
    table = read_table(data.train, data.names, encoding=data.encoding, skip_broken=data.skip_broken)
    part = task.read(drawn(table, data.most_scored, seed), data.columns, data.skip_unfit)
    if asked is None:
        found = task.predict(lm, part.examples, on_done)
    else:
        prompting = prompting_of(task, data, asked)
        task = task.settled(prompting.examples, lm) if prompting.examples else task
        found = task.prompted(lm, part.examples, prompting, on_done)
    known = all(task.truth(example) is not None for example in part.examples)
    return Predicted(part, found, task.score(task.checked(part.examples), found) if known else {})
