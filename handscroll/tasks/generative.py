"""Tasks whose answer is a text: a prompt made of a row's values, an answer that is trained, greedy answers, scores."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, Self

from pydantic import Field as Setting
from pydantic import model_validator
from rich.text import Text

from handscroll.base.errors import ConfigError, DataError, nearest
from handscroll.data.encoded import Encoded
from handscroll.data.row import Row
from handscroll.data.table.fields import Field
from handscroll.generate.asked import Form
from handscroll.lm import LM
from handscroll.metrics.scores import Measured
from handscroll.metrics.table import Settings, measure
from handscroll.models.model import Model
from handscroll.objectives.causal import NextToken
from handscroll.objectives.objective import Objective
from handscroll.search.similar import Similar
from handscroll.tasks.language import check_language
from handscroll.tasks.prompting import Prompting
from handscroll.tasks.show import headline, show
from handscroll.tasks.task import LEFT_OUT, Example, OnDone, Prediction, Task
from handscroll.tasks.writer import Writer, learned
from handscroll.text.chat.messages import Message

USER = Field("user", ("userid", "customerid"), False, "label")
Framed = Callable[[list[Message]], list[Message]]  # what is asked, with what stands before it


class Generative(Task):
    """A task whose answer is a text.

    `prompt` is what the user says, with {fields} of the row and of the task's settings in it. The answer is what the
    assistant says, by the model's own chat template or, without one, as plain text. Only the answer is trained.
    """

    prompts: ClassVar[Mapping[str, str]] = {}  # by language, where none is set
    metrics: ClassVar[tuple[str, ...]] = ("rouge-l",)
    smaller: ClassVar[str] = ""  # what would fit where a prompt does not
    prompt: str = Setting(default="", description="what the user says, with {fields}; by default the task's own")
    system: str = Setting(default="", description="what the system says before")
    language: Literal["en", "zh"] = Setting(default="en", description="of the prompts and of the answers, for scores")
    max_tokens: int = Setting(default=128, ge=1, description="the most tokens of an answer")
    stop: tuple[str, ...] = Setting(default=(), description="strings that end an answer")
    form: Form = Setting(default="auto", description="chat: by the model's template; plain: as plain text")
    perplexity: bool = Setting(default=True, description="also score how likely the right answers are")

    @model_validator(mode="after")
    def _known(self) -> Self:
        named = re.findall(r"\{(\w+)\}", self.prompt)
        known = [*self.named, *(name for name in type(self).model_fields if name != "prompt")]
        if self.target in named:
            raise ValueError(f"the prompt names {{{self.target}}}, which is the answer itself: leave it out")
        if wrong := [name for name in named if name not in known]:
            raise ValueError(f"the prompt names {{{wrong[0]}}}: {nearest(wrong[0], known)}")
        return self

    @property
    def target(self) -> str:
        """The name of the field that holds the answer: the one that says what is right."""
        return next(field.name for field in self.fields if field.truth)

    @property
    def named(self) -> tuple[str, ...]:
        """The fields of a row that a prompt may name."""
        return tuple(field.name for field in self.fields if field.name != self.target)

    @property
    def compared(self) -> bool:
        return False

    def baselines(self, train: Sequence[Example], examples: Sequence[Example]) -> Mapping[str, list[Prediction]]:
        """The answer to the most similar training example (BM25)."""
        ranked = Similar([self.likeness(one) for one in train])
        nearest = [self.truth(train[ranked.best(self.likeness(example), 1)[0]]) for example in examples]
        return {"nearest": [Prediction(one if isinstance(one, str) else one[0]) for one in nearest]}

    def settled(self, examples: Sequence[Example], lm: LM) -> Task:
        return self

    def checked(self, examples: Sequence[Example]) -> Sequence[Example]:
        check_language(self.language, [self.truth(example) for example in examples], examples)
        return examples

    def ready(self, lm: LM, seed: int) -> LM:
        lm.model.spec.require(f"the task '{self.name}'", one_text=True, forward=True, head=True)
        return lm

    def rows(self, lm: LM, example: Example) -> list[Row]:
        return [one.row() for one in self.learned(lm, example)]

    def learned(self, lm: LM, example: Example) -> list[Encoded]:
        """What is learned from an example: token ids, of which the answers are trained.

        Raises:
            DataError: there is no answer.
        """
        return learned(lm, self.form, self.turns(example), example.place)

    def shown(self, lm: LM, example: Example) -> list[Text]:
        return [Text(f"{headline(one)}\n").append(show(one, lm.tokenizer)) for one in self.learned(lm, example)]

    def objective(self, model: Model) -> Objective:
        return NextToken().objective(model)

    def asked(self, example: Example) -> list[Message]:
        """What is said before the answer."""
        return [*self._system(), {"role": "user", "content": self.filled(example)}]

    def turns(self, example: Example) -> list[Message]:
        """What is asked, and the answer.

        Raises:
            DataError: there is no answer.
        """
        truth = self.truth(example)
        if truth is None:
            raise DataError(f"{example.place}: no {self.target}; training needs one: {LEFT_OUT}")
        answer = truth if isinstance(truth, str) else truth[0]
        return [*self.asked(example), {"role": "assistant", "content": answer}]

    def filled(self, example: Example, template: str = "") -> str:
        """The prompt with the values of an example in it.

        Raises:
            DataError: the example lacks a value that the prompt names.
        """
        settings = self.model_dump()

        def value(found: re.Match[str]) -> str:
            given = example.values.get(found[1], settings.get(found[1]))
            if given is None:
                raise DataError(f"{example.place}: no {found[1]}, which the prompt names")
            return str(given)

        return re.sub(r"\{(\w+)\}", value, template or self.prompt or self.standard(example))

    def standard(self, example: Example) -> str:
        """The task's own prompt.

        Raises:
            ConfigError: it has none in the language.
        """
        if self.language not in self.prompts:
            raise ConfigError(f"the task {self.name} has no prompt of its own in '{self.language}': give task.prompt")
        return self.prompts[self.language]

    def likeness(self, example: Example) -> str:
        named = [field.name for field in self.fields if field.name not in (self.target, USER.name)]
        return " ".join(str(example.values[name]) for name in named if example.values.get(name) is not None)

    def needed(self, lm: LM, examples: Sequence[Example]) -> list[int]:
        writer = Writer(lm, self.form)
        return [len(self.prompt_ids(writer, example)) + self.max_tokens for example in examples]

    def prompt_ids(self, writer: Writer, example: Example) -> list[int]:
        """The token ids of what is asked; of several answers, before the last."""
        return writer.prompt(self.asked(example))

    def scorable(self, examples: Sequence[Example]) -> None:
        super().scorable(examples)
        self.score(examples, [Prediction(self.right(example)) for example in examples])

    def right(self, example: Example) -> Any:
        """The answer that would be right, in the form of a prediction."""
        truth = self.truth(example)
        return truth if isinstance(truth, str) else truth[0]

    def predict(self, lm: LM, examples: Sequence[Example], on_done: OnDone = lambda done: None) -> list[Prediction]:
        return self.prompted(lm, examples, Prompting(), on_done)

    def prompted(
        self, lm: LM, examples: Sequence[Example], prompting: Prompting, on_done: OnDone = lambda done: None
    ) -> list[Prediction]:
        writer, found = Writer(lm, self.form, prompting.store, self.stop), list[Prediction]()
        self.check_sizes(writer, examples)
        if examples and prompting.fixed:
            before = prompting.chosen(self, examples[0])
            writer.keep(self._after_shots(before, prompting, examples[0], self.asked(examples[0])))
        chosen = [prompting.chosen(self, example) for example in examples]
        framed = [
            partial(self._after_shots, shots, prompting, one) for one, shots in zip(examples, chosen, strict=True)
        ]
        asked = list(zip(examples, framed, strict=True))
        for shots, one in zip(chosen, self.answered(writer, asked), strict=True):
            more = {"shots": [shot.place for shot in shots]} if prompting.shots else {}
            found.append(Prediction(one.output, {**one.more, **more}))
            on_done(len(found))
        return found

    def check_sizes(self, writer: Writer, examples: Sequence[Example]) -> None:
        """Refuse, before anything is written, prompts that do not fit even without others before them.

        Raises:
            CapacityError: a prompt and an answer exceed the context.
        """
        for example, size in zip(examples, self.needed(writer.lm, examples), strict=True):
            if size:
                writer.check(size - self.max_tokens, self.max_tokens, example.place, self.smaller)

    def answered(self, writer: Writer, asked: Sequence[tuple[Example, Framed]]) -> Iterator[Prediction]:
        """What the model says of each example, in their order; `predicted` says it of one."""
        return (self.predicted(writer, example, framed) for example, framed in asked)

    def predicted(self, writer: Writer, example: Example, framed: Framed) -> Prediction:
        """What the model says of one example; `framed` puts what else is known before what is asked."""
        asked = framed(self.asked(example))
        said = writer.write(asked, self.max_tokens, example.place, self.smaller)
        return Prediction(said.text.strip(), {**said.counts, **self._surprise(writer, example, asked)})

    def _surprise(self, writer: Writer, example: Example, asked: Sequence[Message]) -> dict[str, Any]:
        """The loss of the right answer where it is known, for the perplexity."""
        truth = self.truth(example)
        if not self.perplexity or truth is None:
            return {}
        answer = truth if isinstance(truth, str) else truth[0]
        turns = [*asked, {"role": "assistant", "content": answer}]
        last = learned(writer.lm, self.form, turns, example.place)[-1]
        return lost(writer, last)

    def _after_shots(
        self, shots: Sequence[Example], prompting: Prompting, example: Example, asked: list[Message]
    ) -> list[Message]:
        """Examples as earlier turns, and what is known of the user before what is asked."""
        system, rest = _apart(asked)
        notes = prompting.known(example, self.language)
        if notes:
            last = {**rest[-1], "content": f"{notes}\n\n{rest[-1]['content']}"}
            rest = [*rest[:-1], last]
        turns = [turn for shot in shots for turn in _apart(self.turns(shot))[1]]
        return [*system, *turns, *rest]

    def _system(self) -> list[Message]:
        return [{"role": "system", "content": self.system}] if self.system else []

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, Measured]:
        wanted = [self.truth(example) for example in examples]
        if lacking := [e.place for e, truth in zip(examples, wanted, strict=True) if truth is None]:
            raise DataError(f"{lacking[0]}: no {self.target} to compare with ({len(lacking)} rows have none)")
        given = [prediction.output for prediction in predictions]
        scores = measure(self.metrics, wanted, given, Settings(language=self.language))
        return scores | perplexity(predictions)

    def truth(self, example: Example) -> Any:
        return example.values.get(self.target)


def _apart(messages: Sequence[Message]) -> tuple[Sequence[Message], Sequence[Message]]:
    """What the system says at the beginning, and what follows."""
    first = next((at for at, one in enumerate(messages) if one["role"] != "system"), len(messages))
    return messages[:first], messages[first:]


def lost(writer: Writer, one: Encoded) -> dict[str, Any]:
    """The loss of an example's last answer, in nats, and its tokens."""
    found = writer.surprise(one)
    return {"truth": {"nats": -found.logprob, "tokens": found.tokens}}


def perplexity(predictions: Sequence[Prediction]) -> dict[str, Measured]:
    """The perplexity of the right answers, if each prediction tells their loss."""
    told = [prediction.more["truth"] for prediction in predictions if "truth" in prediction.more]
    if not told or len(told) < len(predictions):
        return {}
    return measure(["perplexity"], [one["tokens"] for one in told], [one["nats"] for one in told])
