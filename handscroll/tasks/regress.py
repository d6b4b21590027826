"""Texts to numbers: ratings, similarities, grades. A head over a model tells them, in their own units."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field as Setting
from pydantic import model_validator
from torch import Tensor

from handscroll.base.errors import DataError
from handscroll.base.spec import HeadSpec
from handscroll.data.table.fields import Field
from handscroll.generate.asked import Form
from handscroll.lm import LM
from handscroll.metrics.scores import Measured
from handscroll.metrics.table import measure
from handscroll.models.model import Model
from handscroll.objectives.classify import NUMBER
from handscroll.objectives.classify import Classify as Loss
from handscroll.tasks.asked_number import AskedNumber, question, written
from handscroll.tasks.headed import TEXTS, Headed
from handscroll.tasks.prompting import Prompting
from handscroll.tasks.task import LEFT_OUT, Example, OnDone, Prediction


class Regress(Headed):
    """A number of a text or of a pair of texts.

    It is learned in units of the standard deviation from the mean of the training data. Afterwards both go into the
    last layer, so that the saved head gives the numbers themselves; a head without a bias (decoders) keeps them here.
    """

    name: ClassVar[str] = "regress"
    summary: ClassVar[str] = "numbers of texts: ratings, similarities, grades"
    mean: float = Setting(default=0.0, allow_inf_nan=False, description="added to the outputs of the head")
    deviation: float = Setting(default=1.0, gt=0, allow_inf_nan=False, description="multiplies the outputs of the head")
    prompt: str = Setting(
        default="", description="without tuning: what is asked, with {text} (of a pair both) and possibly {range}"
    )
    language: Literal["en", "zh"] = Setting(default="en", description="without tuning: of the prompt")
    form: Form = Setting(default="auto", description="without tuning: chat, by the model's template, or plain text")

    @model_validator(mode="after")
    def _asking(self) -> Self:
        if self.prompt and "{text}" not in self.prompt:
            raise ValueError("the prompt does not name {text}, of which a number is asked: put it in")
        return self

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

    def settled_to_prompt(self, examples: Sequence[Example], lm: LM) -> "Regress":
        return self  # a mean and a deviation are for a head

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

    def prompted(
        self, lm: LM, examples: Sequence[Example], prompting: Prompting, on_done: OnDone = lambda done: None
    ) -> list[Prediction]:
        """A number is asked for (`asked_number.py`), in the range of the examples unless they are chosen by user.

        Raises:
            DataError: an example without a number.
        """
        known = [self._known(one) for one in prompting.examples]
        mean = sum(known) / len(known) if known else None
        numbers = [] if prompting.choose == "user" else known  # nothing of another user enters a prompt

        def asked(one: Example) -> Example:
            text, number = self.likeness(one), self.truth(one)
            values = {"text": text, "question": question(text, self.prompt, self.language, numbers)}
            values |= {} if number is None else {"number": written(number)}
            return Example(one.place, {**one.values, **values})

        shots = replace(prompting, examples=[asked(one) for one in prompting.examples])
        teller = AskedNumber(language=self.language, form=self.form, fallback=mean)
        return teller.prompted(lm, [asked(one) for one in examples], shots, on_done)

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
        if lacking := [one.place for one, number in zip(examples, given, strict=True) if number is None]:
            raise DataError(
                f"{lacking[0]}: the model said no number ({len(lacking):,} rows have none), so there is no score: give "
                "examples, whose mean stands for it (--shots N --examples FILE), say in task.prompt which number is "
                "meant, or tune a model (handscroll finetune regress)"
            )
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
