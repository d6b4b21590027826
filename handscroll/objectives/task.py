"""What a run learns, as the key `objective` of a recipe names it: its rows, and its loss on them."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import SerializerFunctionWrapHandler, model_serializer

from handscroll.base.config import Config
from handscroll.base.errors import ConfigError
from handscroll.base.tables import resolve
from handscroll.data.row import Row
from handscroll.data.stream import Stream
from handscroll.models.model import Model
from handscroll.objectives.objective import Objective
from handscroll.text.tokenizer import Tokenizer

TASKS = {
    "causal": "handscroll.objectives.causal:NextToken",
    "masked": "handscroll.objectives.masked:MaskedTokens",
    "span-corruption": "handscroll.objectives.span_corruption:SpanCorruption",
    "blanks": "handscroll.objectives.blanks:BlankInfilling",
    "classify": "handscroll.objectives.classify:Classification",
}


class Task(Config):
    """A task; its fields are its settings in a recipe. Frozen, and the same for every stage.

    `kinds` are the kinds of rows that it learns from (`train/rows.py`); `continued`: also rows that continue those of
    the update before. `text`: held-out text can be turned into its rows, so that there is a loss to validate by.
    """

    name: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]] = ("text",)
    continued: ClassVar[bool] = False
    text: ClassVar[bool] = True

    @abstractmethod
    def fits(self, model: Model) -> bool:
        """Whether a model can learn this."""

    @abstractmethod
    def build(self, model: Model, data: Mapping[str, Any], smoothing: float, by_position: bool) -> Objective:
        """The loss, for a model that fits; `data` and the rest are those of `objective`."""

    def rows(self, rows: Stream[Row], length: int, seed: int, model: Model, tokenizer: Tokenizer) -> Stream[Row]:
        """Rows to learn from, made of rows of at most `length` tokens.

        Raises:
            ConfigError: tokenizer or length cannot do for it.
        """
        return rows

    def labels(self, data: Mapping[str, Any]) -> tuple[str, ...]:
        """The labels that a model has to tell apart for it."""
        return ()

    def share(self, data: Mapping[str, Any]) -> float:
        """Of the tokens of a row that the loss is of, about; the planner asks."""
        return 1.0

    def check(self, data: Mapping[str, Any], validated: bool) -> None:
        """Whether rows made by `data` (name to settings of a recipe's rows) are what it learns from.

        Raises:
            ValueError: they are not; says which and why.
        """
        for name, rows in data.items():
            if rows.kind not in self.kinds:
                raise ValueError(
                    f"data.{name} is of kind '{rows.kind}', objective '{self.name}' learns from {_listed(self.kinds)}"
                )
            if getattr(rows, "order", "") == "reading" and not self.continued:
                raise ValueError(f"data.{name} is read in order, which is for objective 'causal', not '{self.name}'")
        if validated and not self.text:
            raise ValueError(f"validation scores plain text, objective '{self.name}' does not; leave it out")

    def objective(
        self, model: Model, data: Mapping[str, Any] = {}, smoothing: float = 0.0, by_position: bool = False
    ) -> Objective:
        """The loss of `model` on the rows of `data`, with label smoothing, and metrics by position where there are any.

        Raises:
            ConfigError: the model cannot learn this.
        """
        if not self.fits(model):
            fitting = [name for name in TASKS if resolve(TASKS, name, "objective").model_construct().fits(model)]
            raise ConfigError(
                f"objective '{self.name}' does not fit family '{model.config.family}' as it is here: "
                + (f"take {_listed(fitting)}" if fitting else "nothing here trains it")
            )
        return self.build(model, data, smoothing, by_position)

    @model_serializer(mode="wrap")
    def _with_name(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The fields and the name, so that `task_from` can read the record back."""
        return {"name": self.name, **handler(self)}


def task_from(values: Any, where: str = "objective") -> Task:
    """A task from its name, or from a table with name and settings; a `Task` is returned as it is.

    Raises:
        ConfigError: no name, an unknown name, or wrong settings, with the nearest valid name.
    """
    if isinstance(values, Task):
        return values
    values = {"name": values} if isinstance(values, str) else values
    if not isinstance(values, dict) or not isinstance(values.get("name"), str):
        raise ConfigError(f'{where}: expected a name, or a table with a name, such as {{ name = "causal" }}')
    settings = {key: value for key, value in values.items() if key != "name"}
    return resolve(TASKS, values["name"], "objective").parse(settings, where)


def _listed(names: Any) -> str:
    return " or ".join(f"'{name}'" for name in names)
