"""Preferences: of two answers to the same prompt the better one becomes likelier (DPO)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field as Setting
from rich.text import Text

from handscroll.base.errors import CapacityError, ConfigError, DataError
from handscroll.data.batch import Batch, collate
from handscroll.data.encoded import Encoded
from handscroll.data.preferred import Pair, Preferred
from handscroll.data.row import Row
from handscroll.data.stream import Stream
from handscroll.data.table.conversations import asked, by_row, preferences
from handscroll.data.table.fields import Field
from handscroll.data.table.table import Table
from handscroll.generate.asked import Form
from handscroll.lm import LM
from handscroll.metrics.scores import Measured
from handscroll.metrics.table import measure
from handscroll.models.model import Decoder, Model
from handscroll.nn.adapted import Adapted
from handscroll.objectives.causal import NextToken
from handscroll.objectives.objective import Objective
from handscroll.objectives.preference import Preference
from handscroll.tasks.prompting import Prompting
from handscroll.tasks.show import headline, show
from handscroll.tasks.task import Example, OnDone, Part, Prediction, Task
from handscroll.tasks.writer import learned
from handscroll.text.chat.messages import Message
from handscroll.train.assemble import Updates
from handscroll.train.preference import PreferenceStep, reference_likelihoods, row_likelihoods, without_updates
from handscroll.train.run import Run
from handscroll.train.validation import Pulse, Validate, beating

SIDES = ("chosen", "rejected")


class Prefer(Task):
    """Of two answers the better one becomes likelier than the other (`objectives/preference.py`).

    The reward of an answer is how much likelier the model finds it than the model before tuning did. The score is the
    share of pairs in which the chosen answer has the higher reward, and the margin between both in nats. A model
    without an adapter has no model before it: there the answers are compared by their likelihood alone.
    """

    name: ClassVar[str] = "prefer"
    summary: ClassVar[str] = "preferences between two answers (DPO)"
    rows_each: ClassVar[int] = 2
    against_before: ClassVar[bool] = True
    preference: Preference = Setting(default=Preference(), description="how a margin becomes a loss")
    form: Form = Setting(default="auto", description="chat: by the model's template; plain: as plain text")

    @property
    def fields(self) -> tuple[Field, ...]:
        return tuple(Field(name, holds="any") for name in SIDES)

    def read(self, table: Table, columns: Mapping[str, str], skip_unfit: bool = False) -> Part:
        found = preferences(table, columns, skip_unfit)
        examples = [
            Example(
                one.place,
                {"prompt": list(one.prompt), "chosen": list(one.chosen), "rejected": list(one.rejected)},
            )
            for one in found.items
        ]
        forms = ", ".join(f"{form} ({count:,} pairs)" for form, count in found.forms.items())
        return Part(tuple(examples), found.account, f"recognised: {forms}")

    def told_apart_by(self, table: Table, columns: Mapping[str, str], skip_unfit: bool = False) -> list[str]:
        found = self.read(table, columns, skip_unfit).examples
        return by_row(table, [(one.place, one["prompt"]) for one in found])

    def by(self, table: Table, columns: Mapping[str, str]) -> Field | None:
        return None

    def likeness(self, example: Example) -> str:
        return asked(example["prompt"])

    @property
    def compared(self) -> bool:
        return False

    def settled(self, examples: Sequence[Example], lm: LM) -> Task:
        return self

    def ready(self, lm: LM, seed: int) -> LM:
        lm.model.spec.require("the task 'prefer'", one_text=True, forward=True, head=True)
        return lm

    def learned(self, lm: LM, example: Example) -> list[Encoded]:
        """The chosen and the rejected answer after their prompt; only what they do not share is trained.

        Raises:
            DataError: an answer cannot be encoded in one row.
        """
        found = []
        for side in SIDES:
            messages: list[Message] = [*(_read_only(one) for one in example["prompt"]), *example[side]]
            made = learned(lm, self.form, messages, f"{example.place} ({side})")
            if len(made) != 1:
                raise DataError(f"{example.place}: {side} has {len(made)} answers that are not one row; {made[0].note}")
            found += made
        return found

    def needed(self, lm: LM, examples: Sequence[Example]) -> list[int]:
        return [max(len(one.ids) for one in self.learned(lm, example)) for example in examples]

    def rows(self, lm: LM, example: Example) -> list[Row]:
        return [one.row() for one in self.learned(lm, example)]

    def shown(self, lm: LM, example: Example) -> list[Text]:
        return [Text(f"{headline(one)}\n").append(show(one, lm.tokenizer)) for one in self.learned(lm, example)]

    def objective(self, model: Model) -> Objective:
        return NextToken().objective(model)

    def updates(self, rows: Sequence[Row], count: int, length: int, seed: int, fingerprint: str) -> Stream[list[Batch]]:
        return Updates(Preferred(_pairs(rows), seed, None), 2 * count, 1)

    def begin(self, run: Run, rows: Sequence[Row]) -> None:
        """Measure the answers by the model as it is, and make the run's step one on pairs."""
        reference = reference_likelihoods(
            run.model, Preferred(_pairs(rows)), run.folder / "reference.json", autocast=run.step.autocast
        )
        run.step = PreferenceStep(run.step, self.preference, reference)  # type: ignore[assignment]

    def validator(self, model: Decoder, rows: Sequence[Row], length: int, run: Run) -> Validate:
        held = Preferred(_pairs(rows))
        reference = reference_likelihoods(model, held, run.folder / "reference-valid.json", autocast=run.step.autocast)
        batches = [collate([row]) for row in held.rows]
        step = PreferenceStep(run.step, self.preference, reference)  # type: ignore[arg-type]

        def validate(tuned: Any, pulse: Pulse = lambda done: None) -> float:
            return step.measured(row_likelihoods(tuned, beating(batches, pulse)), batches)

        return validate

    def predict(self, lm: LM, examples: Sequence[Example], on_done: OnDone = lambda done: None) -> list[Prediction]:
        """Which answer has the higher reward. Where they are is known, which is the better one plays no part.

        Raises:
            CapacityError: an answer with its prompt exceeds the context.
        """
        tuned = any(isinstance(module, Adapted) for module in lm.model.modules())
        return self._compared(lm, examples, tuned, on_done)

    def prompted(
        self, lm: LM, examples: Sequence[Example], prompting: Prompting, on_done: OnDone = lambda done: None
    ) -> list[Prediction]:
        """Which answer the model as it is finds likelier.

        Raises:
            ConfigError: there are shots or notes. CapacityError: as `predict`.
        """
        if prompting.shots or prompting.notes:
            raise ConfigError(
                "of two answers the likelier one after its own prompt is told, so nothing else stands before it: ask "
                "with --shots 0 and without --examples and --profile, or tune a model (handscroll finetune prefer)"
            )
        return self._compared(lm, examples, False, on_done)

    def _compared(self, lm: LM, examples: Sequence[Example], tuned: bool, on_done: OnDone) -> list[Prediction]:
        """Both answers of each example by their reward if the model is `tuned`, else by their likelihood."""
        for example, size in zip(examples, self.needed(lm, examples), strict=True):
            if size > lm.context:
                raise CapacityError(
                    f"{example.place}: the prompt with the longer answer has {size:,} tokens, the model's context is "
                    f"{lm.context:,}, and nothing is cut. Leave the row out, or tune a longer model (handscroll extend "
                    f"... --to {size})"
                )
        found: list[Prediction] = []
        for example in examples:
            pair = Preferred([Pair(*self.learned(lm, example))])
            batches = [collate([row]) for row in pair.rows]
            now, before = row_likelihoods(lm.model, batches), {0: 0.0, 1: 0.0}
            if tuned:
                with without_updates(lm.model):
                    before = row_likelihoods(lm.model, batches)
            margin = (now[0] - before[0]) - (now[1] - before[1])
            told = {"margin": margin, "likelihoods": [now[0], now[1]], "compared": "reward" if tuned else "likelihood"}
            found.append(Prediction(SIDES[margin <= 0], told))
            on_done(len(found))
        return found

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, Measured]:
        said, margins = [one.output for one in predictions], [one.more["margin"] for one in predictions]
        scores = measure(["accuracy"], [SIDES[0]] * len(said), said)
        return scores | measure(["margin"], [0.0] * len(margins), margins)

    def truth(self, example: Example) -> Any:
        return SIDES[0]


def _read_only(message: Message) -> Message:
    """A message of the prompt: what the assistant said there is read and not trained."""
    return {**message, "weight": 0} if message["role"] == "assistant" else message


def _pairs(rows: Sequence[Row]) -> list[Pair]:
    """Pairs of rows that follow each other."""
    each = [Encoded(row.tokens.tolist(), [False, *(row.targets[:-1] >= 0).tolist()]) for row in rows]
    return [Pair(one, other) for one, other in zip(each[::2], each[1::2], strict=True)]
