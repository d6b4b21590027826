"""Settings of objectives: the value of `objective` in a recipe names one. It makes the training rows and their loss."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from handscroll.base.errors import ConfigError
from handscroll.base.named import Named, named
from handscroll.base.tables import resolve
from handscroll.data.row import Row
from handscroll.data.stream import Stream
from handscroll.models.model import Model
from handscroll.objectives.objective import Objective
from handscroll.text.tokenizer import Tokenizer

OBJECTIVES = {
    "causal": "handscroll.objectives.causal:NextToken",
    "masked": "handscroll.objectives.masked:MaskedTokens",
    "span-corruption": "handscroll.objectives.span_corruption:SpanCorruption",
    "blanks": "handscroll.objectives.blanks:BlankInfilling",
    "classify": "handscroll.objectives.classify:Classification",
}


class ObjectiveSettings(Named):
    """An objective as a recipe names it; its fields are its settings there.

    It is frozen, and the same for every stage of a run.

    `kinds` are the kinds of rows that it can learn from (`train/rows.py`). `continued`: it also accepts contiguous
    rows, which continue the rows of the previous update. `text`: it can turn held-out text into rows, so a run can
    compute a validation loss. `quarters`: its loss has metrics by position, which a stage with `grow` needs.
    """

    kinds: ClassVar[tuple[str, ...]] = ("text",)
    continued: ClassVar[bool] = False
    text: ClassVar[bool] = True
    quarters: ClassVar[bool] = False

    @abstractmethod
    def fits(self, model: Model) -> bool:
        """Whether a model can learn this objective."""

    @abstractmethod
    def build(self, model: Model, data: Mapping[str, Any], smoothing: float, by_position: bool) -> Objective:
        """The loss for a model that fits; the arguments are those of `objective`."""

    def rows(self, rows: Stream[Row], length: int, seed: int, model: Model, tokenizer: Tokenizer) -> Stream[Row]:
        """The rows of this objective, made from `rows` of at most `length` tokens.

        Raises:
            ConfigError: the tokenizer or the length does not suit the objective.
        """
        return rows

    def labels(self, data: Mapping[str, Any]) -> tuple[str, ...]:
        """The labels that the model must tell apart; empty if it has none."""
        return ()

    def share(self, data: Mapping[str, Any]) -> float:
        """Approximate fraction of a row's tokens that count in the loss (used by the planner)."""
        return 1.0

    def check(self, data: Mapping[str, Any], validated: bool) -> None:
        """Check that the objective can learn from `data`, a recipe's tables of rows by name.

        Raises:
            ValueError: a table does not suit the objective, or `validated` is set and the objective cannot validate.
        """
        for name, rows in data.items():
            if rows.kind not in self.kinds:
                raise ValueError(
                    f"data.{name} is of kind '{rows.kind}', but objective '{self.name}' learns from "
                    f"{_listed(self.kinds)}"
                )
            if getattr(rows, "order", "") == "reading" and not self.continued:
                raise ValueError(
                    f"data.{name} is read in order, which only objective 'causal' supports, not '{self.name}'"
                )
        if validated and not self.text:
            raise ValueError(
                f"validation scores plain text, and objective '{self.name}' cannot: leave the [validation] table out"
            )

    def objective(
        self, model: Model, data: Mapping[str, Any] = {}, smoothing: float = 0.0, by_position: bool = False
    ) -> Objective:
        """The loss of `model` on the rows of `data`.

        `smoothing` is the label smoothing. `by_position` adds metrics by position, for tasks that have them.

        Raises:
            ConfigError: the model cannot learn this objective.
        """
        if not self.fits(model):
            fitting = [
                name for name in OBJECTIVES if resolve(OBJECTIVES, name, "objective").model_construct().fits(model)
            ]
            raise ConfigError(
                f"objective '{self.name}' does not fit this model of family '{model.config.family}': "
                + (f"use {_listed(fitting)}" if fitting else "no objective can train it")
            )
        return self.build(model, data, smoothing, by_position)


def objective_from(values: Any, where: str = "objective") -> ObjectiveSettings:
    """An objective from its name, or from a table with a name and settings. `ObjectiveSettings` are returned unchanged.

    Raises:
        ConfigError: the name is missing or unknown, or a setting is wrong; the message gives the nearest valid name.
    """
    return named(ObjectiveSettings, OBJECTIVES, values, "objective", where, '{ name = "causal" }')


def _listed(names: Any) -> str:
    return " or ".join(f"'{name}'" for name in names)
