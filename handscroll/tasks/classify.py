"""Texts to labels, one or several each: topics, sentiment, intents, abuse. A head over a model tells them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field as Setting
from torch import Tensor

from handscroll.base.errors import ConfigError, DataError
from handscroll.base.spec import HeadSpec
from handscroll.data.table.fields import Field
from handscroll.generate.asked import Form
from handscroll.lm import LM
from handscroll.metrics.scores import Measured
from handscroll.metrics.table import Settings, measure
from handscroll.models.model import Model
from handscroll.objectives.classify import Classify as Loss
from handscroll.objectives.classify import check_several
from handscroll.tasks.headed import TEXTS, WEIGHT, Headed
from handscroll.tasks.label_words import LabelWords
from handscroll.tasks.prompting import Prompting
from handscroll.tasks.task import LEFT_OUT, Example, OnDone, Prediction

NAMED = 3  # unseen labels that a message names besides the first


class Classify(Headed):
    """Labels of texts or of pairs of texts. With `several`, each label is right or wrong on its own."""

    name: ClassVar[str] = "classify"
    summary: ClassVar[str] = "labels of texts: topics, sentiment, intents"
    labels: tuple[str, ...] = Setting(default=(), description="the labels in order; unless given, those of the data")
    several: bool = Setting(default=False, description="whether a text may have several labels, or none")
    weights: Literal["", "balanced"] = Setting(default="", description="balanced: rare labels count more in the loss")
    prompt: str = Setting(
        default="", description="without tuning: what is asked, with {text} (of a pair both) and {words}"
    )
    words: tuple[str, ...] = Setting(default=(), description="without tuning: what is said for each label, in order")
    language: Literal["en", "zh"] = Setting(default="en", description="without tuning: of the prompt")
    form: Form = Setting(default="auto", description="without tuning: chat, by the model's template, or plain text")
    counts: tuple[int, ...] = Setting(default=(), description="how often each label was seen in the training data")

    @property
    def fields(self) -> tuple[Field, ...]:
        label = Field("label", ("labels", "class", "category", "intent", "target"), False, "label", truth=True)
        return (*TEXTS, replace(label, holds="labels") if self.several else label)

    @property
    def head(self) -> HeadSpec:
        return HeadSpec(labels=self.labels, problem="several" if self.several else "one")

    def ready(self, lm: LM, seed: int) -> LM:
        if not self.labels:
            own = f"; those of its head are {list(lm.labels)}" if lm.labels else ""
            raise ConfigError(
                f"the labels are not known: tune the model (handscroll finetune classify), or name them in order "
                f'(--set \'task.labels=["no", "yes"]\'){own}'
            )
        return super().ready(lm, seed)

    def settled(self, examples: Sequence[Example], lm: LM) -> "Classify":
        found: dict[str, int] = {}
        for example in examples:
            for label in self._named(example, f"training needs one: {LEFT_OUT}"):
                found[label] = found.get(label, 0) + 1
        own = tuple(label for label in lm.labels if label != WEIGHT)
        own = own if set(found) <= set(own) else ()
        labels = self.labels or own or tuple(sorted(found, key=_natural))
        if unknown := sorted(set(found) - set(labels)):
            raise DataError(f"the training data has the labels {unknown}, which task.labels does not name: add them")
        if len(labels) < 2 and not self.several:
            raise DataError(
                f"all {len(examples)} examples have the label {next(iter(labels))!r}: a classifier needs two labels; "
                "add examples of another one"
            )
        if self.several:
            check_several(labels)
        counts = tuple(found.get(label, 0) for label in labels)
        if self.weights and not all(counts):
            missing = [label for label, count in zip(labels, counts, strict=True) if not count]
            raise DataError(f"weights = 'balanced' needs an example of each label, and there is none of {missing}")
        return self.model_copy(update={"labels": labels, "counts": counts})

    def checked(self, examples: Sequence[Example]) -> Sequence[Example]:
        places: dict[str, str] = {}
        for example in examples:
            for label in self._labels(example):
                places.setdefault(label, example.place)
        unseen = [label for label in places if label not in self.labels]
        if unseen and self.labels:
            first, *others = unseen
            named = ", ".join(map(repr, others[:NAMED])) + (", ..." if len(others) > NAMED else "")
            more = f", nor were {len(others):,} more ({named})" if others else ""
            raise DataError(
                f"{places[first]}: the label {first!r} was not in the training data{more}; known are "
                f"{list(self.labels)}. Give training rows with such labels, or take the rows that have them out"
            )
        return examples

    def scorable(self, examples: Sequence[Example]) -> None:
        super().scorable(examples)
        if not any(self._labels(example) for example in examples):
            raise DataError(
                f"{examples[0].place}: none of the {len(examples):,} rows that are to be scored has a label, so there "
                "is nothing to find in them: give rows with labels (--valid, --test), or hold out more (data.held_out)"
            )

    def target(self, example: Example) -> int:
        chosen = sum(1 << self.labels.index(label) for label in self._named(example, f"training needs one: {LEFT_OUT}"))
        return chosen if self.several else chosen.bit_length() - 1

    def objective(self, model: Model) -> Loss:
        weights: tuple[float, ...] = ()
        if self.weights and self.several:
            raise ConfigError("weights = 'balanced' is for one label a text: with several = true leave weights out")
        if self.weights:
            weights = tuple(sum(self.counts) / (len(self.counts) * count) for count in self.counts)
        return self.loss(model, weights)

    def said(self, outputs: Tensor) -> Prediction:
        chances = outputs.sigmoid() if self.several else outputs.softmax(dim=-1)
        return self._likely(dict(zip(self.labels, chances.tolist(), strict=True)))

    def _likely(self, chances: Mapping[str, float]) -> Prediction:
        likely = max(chances, key=chances.__getitem__)
        output = [label for label, chance in chances.items() if chance > 0.5] if self.several else likely
        return Prediction(output, {"probabilities": dict(chances)})

    def together(self, members: Sequence[Sequence[Prediction]], vote: bool = False) -> list[Prediction]:
        found = []
        for said in zip(*members, strict=True):
            chances = [one.more["probabilities"] for one in said]
            if vote:  # the share of the members that say a label; a tie goes to the likelier one
                chances = [self._votes(one) for one in said]
            mean = {label: sum(one[label] for one in chances) / len(chances) for label in self.labels}
            found.append(self._likely(mean))
        return found

    def _votes(self, one: Prediction) -> dict[str, float]:
        said = one.output if self.several else [one.output]
        nudge = 1e-6  # so that the probabilities decide a tie and nothing else
        chances = one.more["probabilities"]
        return {label: (label in said) * (1 - nudge) + nudge * chances[label] for label in self.labels}

    def prompted(
        self, lm: LM, examples: Sequence[Example], prompting: Prompting, on_done: OnDone = lambda done: None
    ) -> list[Prediction]:
        """The word of each label is scored as the answer, calibrated (`label_words.py`)."""
        if self.several:
            raise ConfigError(
                "several labels of a text are not told by prompting: tune a model (handscroll finetune classify ... "
                "--set task.several=true), or ask for each label by itself, as a task of two labels (--set "
                '\'task.labels=["no", "yes"]\', with a task.prompt that names what is asked)'
            )
        teller = LabelWords(lm, self.labels, self.words, self.prompt, self.language)
        shots = [
            [(self.likeness(one), self._named(one, "a shot needs one")[0]) for one in prompting.chosen(self, e)]
            for e in examples
        ]
        return teller.said([(e, self.likeness(e)) for e in examples], shots, prompting, self.form, on_done)

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, Measured]:
        wanted = [self.truth(example) for example in examples]
        if lacking := [e.place for e, truth in zip(examples, wanted, strict=True) if truth is None]:
            raise DataError(f"{lacking[0]}: no label to compare with ({len(lacking)} rows have none)")
        given = [prediction.output for prediction in predictions]
        settings = Settings(labels=self.labels)
        if self.several:
            return measure(["f1-micro", "f1-macro", "accuracy"], wanted, given, settings)
        scores = measure(["accuracy", "f1-macro", "mcc"], wanted, given, settings)
        chances = [prediction.more["probabilities"] for prediction in predictions if "probabilities" in prediction.more]
        return scores | (measure(["ece"], wanted, chances, settings) if len(chances) == len(given) else {})

    def baselines(self, train: Sequence[Example], examples: Sequence[Example]) -> dict[str, list[Prediction]]:
        if self.several:
            return {}
        label = self.labels[max(range(len(self.counts)), key=self.counts.__getitem__)]
        return {f"always '{label}'": [Prediction(label) for _ in examples]}

    def truth(self, example: Example) -> Any:
        if example.values.get("label") is None:
            return None
        named = self._labels(example)
        return named if self.several else named[0]

    def _named(self, example: Example, why: str) -> list[str]:
        named = self._labels(example)
        if not named and not (self.several and example.values.get("label") is not None):
            raise DataError(f"{example.place}: no label; {why}")
        return named

    def _labels(self, example: Example) -> list[str]:
        value = example.values.get("label")
        return [] if value is None else list(dict.fromkeys(value)) if isinstance(value, list) else [value]


def _natural(label: str) -> tuple[int, float | str]:
    """Numbers in their order, before words in theirs."""
    try:
        return 0, float(label)
    except ValueError:
        return 1, label
