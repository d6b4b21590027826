"""Texts to numbers: ratings, similarities, grades. A head over a model tells them, in their own units."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field as Setting
from torch import Tensor

from handscroll.base.errors import DataError
from handscroll.base.spec import HeadSpec
from handscroll.data.table.fields import Field
from handscroll.lm import LM
from handscroll.metrics.scores import Measured
from handscroll.metrics.table import measure
from handscroll.models.model import Model
from handscroll.objectives.classify import NUMBER
from handscroll.objectives.classify import Classify as Loss
from handscroll.tasks.headed import TEXTS, Headed
from handscroll.tasks.task import LEFT_OUT, Example, Prediction


class Regress(Headed):
    """A number of a text or of a pair of texts.

    It is learned in units of the standard deviation from the mean of the training data. Afterwards both go into the
    last layer, so that the saved head gives the numbers themselves; a head without a bias (decoders) keeps them here.
    """

    name: ClassVar[str] = "regress"
    summary: ClassVar[str] = "numbers of texts: ratings, similarities, grades"
    mean: float = Setting(default=0.0, allow_inf_nan=False, description="added to the outputs of the head")
    deviation: float = Setting(default=1.0, gt=0, allow_inf_nan=False, description="multiplies the outputs of the head")

    @property
    def fields(self) -> tuple[Field, ...]:
        return (
            *TEXTS,
            Field("number", ("score", "rating", "value", "label", "target", "grade"), False, "number", truth=True),
        )

    @property
    def head(self) -> HeadSpec:
        return HeadSpec(labels=("number",), problem="number")

    def settled(self, examples: Sequence[Example], lm: LM) -> "Regress":
        numbers = [self._known(example) for example in examples]
        mean = sum(numbers) / len(numbers)
        deviation = math.sqrt(sum((one - mean) ** 2 for one in numbers) / len(numbers))
        if not deviation or not math.isfinite(deviation):
            raise DataError(
                f"the numbers of all {len(numbers):,} examples have the deviation {deviation:g} from their mean "
                f"{mean:g}: there is nothing to learn; give examples whose numbers differ"
            )
        return self.model_copy(update={"mean": mean, "deviation": deviation})

    def ready(self, lm: LM, seed: int) -> LM:
        before = lm.model
        last = super().ready(lm, seed).model.classifier
        if lm.model is before and last is not None and last.bias is not None:  # it gives numbers in their own units
            with torch.no_grad():
                last.weight[0] /= self.deviation
                last.bias[0] = (last.bias[0] - self.mean) / self.deviation
        return lm

    def target(self, example: Example) -> int:
        return round((self._known(example) - self.mean) / self.deviation * NUMBER)

    def objective(self, model: Model) -> Loss:
        return self.loss(model)

    @torch.no_grad()
    def finished(self, lm: LM) -> "Regress":
        last = lm.model.classifier
        if last is None or last.bias is None:
            return self
        last.weight[0] *= self.deviation
        last.bias[0] = last.bias[0] * self.deviation + self.mean
        return self.model_copy(update={"mean": 0.0, "deviation": 1.0})

    def said(self, outputs: Tensor) -> Prediction:
        return Prediction(float(outputs[0]) * self.deviation + self.mean)

    def together(self, members: Sequence[Sequence[Prediction]], vote: bool = False) -> list[Prediction]:
        middle = len(members) // 2
        found = []
        for said in zip(*members, strict=True):
            numbers = sorted(one.output for one in said)
            median = (numbers[middle] + numbers[-1 - middle]) / 2
            found.append(Prediction(median if vote else sum(numbers) / len(numbers)))
        return found

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, Measured]:
        wanted, given = [self._known(example) for example in examples], [one.output for one in predictions]
        varied = len(set(wanted)) > 1 and len(set(given)) > 1  # a constant has no correlation
        return measure(["pearson", "spearman", "rmse"] if varied else ["rmse"], wanted, given)

    @property
    def compared(self) -> bool:
        return False

    def baselines(self, train: Sequence[Example], examples: Sequence[Example]) -> dict[str, list[Prediction]]:
        mean = sum(self._known(example) for example in train) / len(train)
        return {"the mean of the training rows": [Prediction(mean) for _ in examples]}

    def truth(self, example: Example) -> Any:
        return example.values.get("number")

    def _known(self, example: Example) -> float:
        number = self.truth(example)
        if number is None:
            raise DataError(f"{example.place}: no number; training and scores need one: {LEFT_OUT}")
        return number
