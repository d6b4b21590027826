"""Says of the rows of a table what a tuned model says, and scores it where the rows tell the truth."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from handscroll.base.errors import ConfigError
from handscroll.cache.reading.store import Store
from handscroll.data.table.read import read_table
from handscroll.lm import LM, load
from handscroll.metrics.scores import Measured
from handscroll.models.weights import TASK, read_json
from handscroll.tasks.at_step import at_step, run_of
from handscroll.tasks.examples import drawn
from handscroll.tasks.prompting import Choose, Prompting, notes_of
from handscroll.tasks.recipe import TaskData
from handscroll.tasks.task import Example, OnDone, Part, Prediction, Task, task_from
from handscroll.tasks.tuned import tuned_folder

TAKEN = {"train", "columns", "names", "encoding", "splits", "skip_broken", "skip_unfit", "most_scored"}  # of TaskData


@dataclass(frozen=True)
class Predicted:
    """The examples, and what was said of each. `scores` are made when they are first read, so that predictions can be
    written before; there are none unless every example has a target.
    """

    part: Part
    predictions: list[Prediction]
    task: Task

    @property
    def untold(self) -> int:
        """How many examples have no target."""
        return sum(self.task.truth(example) is None for example in self.part.examples)

    @property
    def notes(self) -> Mapping[str, int]:
        """What is missing in predictions, and in how many of them."""
        return Counter(one.more["note"] for one in self.predictions if "note" in one.more)

    @cached_property
    def scores(self) -> Mapping[str, Measured]:
        return {} if self.untold else self.task.score(self.part.examples, self.predictions)


def load_tuned(source: str | Path, task: Any = None, prompted: bool = False) -> tuple[LM, Task]:
    """A model and its task: that for which it was tuned (`model/`, `adapter/` or the run folder that holds one).

    A checkpoint of a tuning run, such as `RUN/step-000200`, is the model as it was then. With `prompted` the model is
    asked as it is, and gets no head for the task.

    Raises:
        ConfigError: the folder does not say for which task, and none is given; or the model has no head for the task.
    """
    if run_of(source) is not None:
        if task is not None or prompted:
            raise ConfigError(
                f"{source} is a checkpoint of a run, which has its own task: leave --task and --shots out"
            )
        return at_step(source)
    folder = tuned_folder(source)
    known = (folder or Path(source)) / TASK
    if task is None and folder is None:
        raise ConfigError(f"{source} was not tuned for a task here ({TASK} is missing): name one with --task")
    settled = task_from(task if task is not None else read_json(known), str(known))
    lm = load(folder or source)
    if prompted:
        return lm, settled
    own = lm.model
    if settled.ready(lm, 0).model is not own:  # a head was drawn, of which nothing was learned
        raise ConfigError(
            f"{source} was not tuned for the task '{settled.name}': its head would be drawn at random. Tune it first "
            f"(handscroll finetune {settled.name} {source} --data FILE), or ask a model that writes text as it is, "
            "with examples in its prompt (--shots N) or without any (--shots 0)"
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
        if data.skip_unfit:  # an example teaches nothing that does not tell what is right
            examples = tuple(one for one in examples if task.taught(one))
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

    Of `data` it takes how that table is read, and `most_scored`: how many rows, drawn by `seed`. Targets are looked at
    before anything is predicted, if all examples have one.

    Raises:
        DataError: a row or a target cannot be used. CapacityError: an example is too long.
        ConfigError: the seed is negative, what `asked` says is impossible, or `data` has settings of tuning alone.
    """
    if seed < 0:
        raise ConfigError(f"seed {seed}: give 0 or a positive whole number")
    plain = TaskData(train=data.train)
    others = [name for name in TaskData.model_fields if name not in TAKEN]
    if unused := [name for name in others if getattr(data, name) != getattr(plain, name)]:
        raise ConfigError(
            f"predictions do nothing with data.{', data.'.join(unused)}: give {', '.join(sorted(TAKEN))} alone"
        )
    table = read_table(data.train, data.names, data.splits.get("train"), data.encoding, data.skip_broken)
    part = task.read(drawn(table, data.most_scored, seed), data.columns, data.skip_unfit)
    prompting = None if asked is None else prompting_of(task, data, asked)
    if prompting is not None and prompting.examples:
        task = task.settled_to_prompt(prompting.examples, lm)
    if all(task.truth(example) is not None for example in part.examples):
        task.checked(part.examples)
    if prompting is None:
        found = task.predict(lm, part.examples, on_done)
    else:
        found = task.prompted(lm, part.examples, prompting, on_done)
    return Predicted(part, found, task)
