"""Tasks: jobs that a model is tuned for. A task is what a row holds, what is trained, what is said, and its score."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from rich.text import Text

from handscroll.base.errors import ConfigError, DataError
from handscroll.base.named import Named, named
from handscroll.data.batch import Batch, collate
from handscroll.data.row import Row
from handscroll.data.stream import Stream
from handscroll.data.table.duplicates import text_column
from handscroll.data.table.fields import Field, match
from handscroll.data.table.table import Account, Table
from handscroll.lm import LM
from handscroll.metrics.scores import Measured
from handscroll.models.model import Decoder, Model
from handscroll.objectives.objective import Objective
from handscroll.tasks.batches import ExampleUpdates, packed
from handscroll.train.run import Run
from handscroll.train.validation import Validate, validator

if TYPE_CHECKING:
    from handscroll.tasks.prompting import Prompting

TASKS = {
    "classify": "handscroll.tasks.classify:Classify",
    "chat": "handscroll.tasks.chat:Chat",
    "instruct": "handscroll.tasks.chat:Instruct",
    "dialogue": "handscroll.tasks.chat:Dialogue",
    "summarise": "handscroll.tasks.summarise:Summarise",
    "translate": "handscroll.tasks.translate:Translate",
    "answer": "handscroll.tasks.answer:Answer",
    "extract": "handscroll.tasks.extract:Extract",
    "prefer": "handscroll.tasks.prefer:Prefer",
    "complete": "handscroll.tasks.complete:Complete",
    "regress": "handscroll.tasks.regress:Regress",
}

ANY = 1 << 40  # tokens: a row of any length is made, and judged by the run
LEFT_OUT = "give one, or leave such rows out, counted (--skip-unfit)"  # what helps where a row has no target
OnDone = Callable[[int], None]  # how many examples are done


@dataclass(frozen=True)
class Example:
    """One row as a task reads it: its place in a file and its values by the names of the task's fields."""

    place: str
    values: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]


@dataclass(frozen=True)
class Prediction:
    """What a model says of an example. `more` is written beside it: probabilities, evidence, tokens read.

    A `note` in it says that something is missing; a person is told how many predictions have it.
    """

    output: Any
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """The examples of a table, what happened to its rows, and how its columns were read, in words."""

    examples: tuple[Example, ...]
    account: Account
    columns: str
    notes: tuple[str, ...] = ()  # how its rows were split off
    leakage: str = ""  # how many of its rows are training rows too


class Task(Named):
    """A task. Its settings are its fields; it is frozen, and saved with what was tuned for it.

    A run (`tasks/finetune.py`) calls `read`, `settled`, `checked`, `ready`, `rows`, `objective`, `predict` and `score`,
    in this order; all but the first two are of the task that `settled` returned.
    """

    summary: ClassVar[str]
    rows_each: ClassVar[int] = 1  # training rows that belong together
    against_before: ClassVar[bool] = False  # whether a model is measured against what it is without its updates

    @property
    @abstractmethod
    def fields(self) -> tuple[Field, ...]:
        """What a row must and may hold."""

    def read(self, table: Table, columns: Mapping[str, str], skip_unfit: bool = False) -> Part:
        """The examples of a table; `columns` names the column of a field where it is not found by itself.

        Raises:
            DataError: a column is missing or not certain, or a row does not fit and `skip_unfit` is false.
        """
        matched = match(table, self.fields, columns)
        fitted = matched.fit(table, skip_unfit)
        examples = tuple(Example(record.place, record.values) for record in fitted)
        return Part(examples, fitted.account, str(matched))

    def by(self, table: Table, columns: Mapping[str, str]) -> Field | None:
        """The column whose labels should be as frequent on both sides of a split, if there is one."""
        column = match(table, self.fields, columns).columns.get("label")
        return next((Field(column, holds=one.holds) for one in self.fields if column and one.name == "label"), None)

    @property
    def compared(self) -> bool:
        """Whether a prediction is right or wrong, as a label is; a text is only nearer to the truth or farther."""
        return True

    @property
    def visible(self) -> tuple[Field, ...]:
        """The fields that a person reads to understand an error."""
        return tuple(field for field in self.fields if field.holds == "text")

    def baselines(self, train: Sequence[Example], examples: Sequence[Example]) -> Mapping[str, list[Prediction]]:
        """What simple systems say of `examples`, by their names: the least that a tuned model should beat."""
        return {}

    def told_apart_by(
        self, table: Table, columns: Mapping[str, str], skip_unfit: bool = False
    ) -> str | Sequence[str] | None:
        """The column by which rows are told to be the same: of those that a row must hold, the one with the longest
        texts. For conversations and preferences, what is asked in each row.

        Raises:
            DataError: as `read`.
        """
        found = match(table, self.fields, columns).columns
        given = {found[field.name] for field in self.fields if field.required and field.name in found}
        return text_column(table, besides=set(table.columns) - given) if given else None

    def taught(self, example: Example) -> bool:
        """Whether an example tells what is right, so that it can be learned from."""
        return self.truth(example) is not None

    def checked(self, examples: Sequence[Example]) -> Sequence[Example]:
        """The examples, after the task looked at all of them.

        Raises:
            DataError: an example cannot be used; its place is named.
        """
        return examples

    @abstractmethod
    def settled(self, examples: Sequence[Example], lm: LM) -> "Task":
        """The task with what the training data decides, such as the labels."""

    def settled_to_prompt(self, examples: Sequence[Example], lm: LM) -> "Task":
        """The task with what the examples decide from which shots are taken.

        Raises:
            DataError: they decide nothing.
        """
        return self.settled(examples, lm)

    def room(self, lm: LM) -> int:
        """The most tokens of a training row."""
        return lm.context

    def needed(self, lm: LM, examples: Sequence[Example]) -> list[int]:
        """The tokens of the context that a prediction of each example takes; 0 where texts of any length are read."""
        return [0] * len(examples)

    def scorable(self, examples: Sequence[Example]) -> None:
        """Refuse, before anything is trained, examples that could not be scored after it.

        Raises:
            DataError: an example has no target, or one that no score can be made of.
        """
        if lacking := [example.place for example in examples if self.truth(example) is None]:
            raise DataError(
                f"{lacking[0]}: no target to compare with ({len(lacking):,} of {len(examples):,} rows that are to be "
                "scored have none): give rows with the right answers, or leave these out, counted (--skip-unfit)"
            )

    def reach(self, context: int) -> str:
        """How long texts may be, in a sentence for the model card."""
        return f"Texts of more than {context:,} tokens are refused."

    @abstractmethod
    def ready(self, lm: LM, seed: int) -> LM:
        """The model with the head that the task needs; a new head is drawn from `seed`.

        Raises:
            ConfigError: the model cannot do the task.
        """

    @abstractmethod
    def rows(self, lm: LM, example: Example) -> list[Row]:
        """The training rows of one example, without padding: one, or one for each answer in it.

        They are whole, of any length: the run refuses or counts those that are too long.
        """

    def in_words(self, rows: Sequence[Row]) -> str:
        """What a person is told of the training rows beside their tokens."""
        return ""

    @abstractmethod
    def objective(self, model: Model) -> Objective:
        """The loss on such rows."""

    def updates(self, rows: Sequence[Row], count: int, length: int, seed: int, fingerprint: str) -> Stream[list[Batch]]:
        """Endless updates of `count` examples each, in rows of at most `length` tokens."""
        return ExampleUpdates(rows, count, length, seed, fingerprint)

    def begin(self, run: Run, rows: Sequence[Row]) -> None:
        """What happens before the first update, for a task that steps in its own way."""

    def validator(self, model: Decoder, rows: Sequence[Row], length: int, run: Run) -> Validate:
        """A function that computes the mean loss of a model on held-out rows, which are packed once."""
        return validator(self.objective(model), [collate([row]) for row in packed(rows, length)])

    def finished(self, lm: LM) -> "Task":
        """The task as it is saved, after the last change of the trained weights, in place."""
        return self

    @abstractmethod
    def predict(self, lm: LM, examples: Sequence[Example], on_done: OnDone = lambda done: None) -> list[Prediction]:
        """What the model says of each example, in their order. The target of an example plays no part."""

    def prompted(
        self, lm: LM, examples: Sequence[Example], prompting: "Prompting", on_done: OnDone = lambda done: None
    ) -> list[Prediction]:
        """What a model that was not tuned says of each example, from its prompt and the examples in it.

        Raises:
            ConfigError: a prompt cannot do the task.
        """
        raise ConfigError(f"the task '{self.name}' is not done by prompting: tune a model for it (handscroll finetune)")

    def likeness(self, example: Example) -> str:
        """The text by which examples are compared: what is given, without the target."""
        names = [field.name for field in self.fields if field.required]
        return " ".join(str(example.values[name]) for name in names if name in example.values)

    def given(self, example: Example) -> tuple[str, str]:
        """What is given without the target, by which copies are counted: a text, and what is asked about it."""
        return self.likeness(example), ""

    def shown(self, lm: LM, example: Example) -> list[Text]:
        """The training rows of an example as a person reads them, with what is trained in them."""
        texts = [lm.tokenizer.decode(row.tokens.tolist(), special=True) for row in self.rows(lm, example)]
        return [Text(f"{example.place}: {text}\n-> {self.truth(example)}") for text in texts]

    @abstractmethod
    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, Measured]:
        """The scores of predictions, the deciding one first, with their intervals.

        Raises:
            DataError: an example has no target.
        """

    def together(self, members: Sequence[Sequence[Prediction]], vote: bool = False) -> list[Prediction]:
        """The predictions of several models as one of each example, averaged or with `vote` by majority.

        Raises:
            ConfigError: predictions of this task cannot be joined.
        """
        raise ConfigError(f"predictions of task '{self.name}' cannot be averaged: name one model")

    @abstractmethod
    def truth(self, example: Example) -> Any:
        """The target of an example as predictions give it; None if the example has none."""


def task_from(values: Any, where: str = "task") -> Task:
    """A task from its name, or from a table with a name and settings. A `Task` is returned unchanged.

    Raises:
        ConfigError: the name is missing or unknown, or a setting is wrong; the message gives the nearest valid name.
    """
    return named(Task, TASKS, values, "task", where, '{ name = "classify" }')
