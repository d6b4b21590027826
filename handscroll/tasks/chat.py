"""Conversations: chats of any form, pairs of prompt and answer, and dialogues of customers with a service."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field as Setting

from handscroll.base.errors import DataError
from handscroll.data.encoded import Encoded
from handscroll.data.table.conversations import by_row, conversations
from handscroll.data.table.fields import Field
from handscroll.data.table.table import Table
from handscroll.lm import LM
from handscroll.metrics.scores import Measured
from handscroll.metrics.table import Settings, measure
from handscroll.search.similar import Similar
from handscroll.tasks.conversation import WEIGHT
from handscroll.tasks.generative import USER, Framed, Generative, lost, perplexity
from handscroll.tasks.task import Example, Part, Prediction
from handscroll.tasks.writer import Writer, learned
from handscroll.text.chat.messages import Message

Turns = Literal["last", "every", "next"]
NAMES = ("prompt", "answer", "input", "system", "messages")


class Chat(Generative):
    """What the assistant says in a conversation. All its turns are trained.

    Rows are of any usual form (`data/table/conversations.py`): messages, ShareGPT, Alpaca, prompt and answer, ... The
    last answer is predicted, or every one after the true turns before it, or what comes next (`predicted_turns`); a
    history is read once. Rows without an answer can be predicted, and neither learned from nor scored.
    """

    name: ClassVar[str] = "chat"
    summary: ClassVar[str] = "conversations: what the assistant says"
    metrics: ClassVar[tuple[str, ...]] = ("rouge-l",)
    smaller: ClassVar[str] = "a conversation with fewer turns"
    predicted_turns: Turns = Setting(default="last", description="which answers are predicted")

    @property
    def fields(self) -> tuple[Field, ...]:
        return (*(Field(name, required=False, holds="any") for name in NAMES), USER)

    @property
    def target(self) -> str:
        return "answer"

    @property
    def named(self) -> tuple[str, ...]:
        return ("prompt", USER.name)

    def read(self, table: Table, columns: Mapping[str, str], skip_unfit: bool = False) -> Part:
        given = {name: column for name, column in columns.items() if name != USER.name}
        users = {record.place: record.get(columns.get(USER.name, USER.name)) for record in table}
        found = conversations(table, given, skip_unfit, unanswered=True)
        examples = []
        for one in found.items:
            user = {} if users[one.place] is None else {"user": users[one.place]}
            tools = {"tools": list(one.tools)} if one.tools else {}
            examples.append(Example(one.place, {"messages": list(one.messages), **tools, **user}))
        forms = ", ".join(f"{form} ({count:,} conversations)" for form, count in found.forms.items())
        return Part(tuple(examples), found.account, f"recognised: {forms}")

    def told_apart_by(self, table: Table, columns: Mapping[str, str], skip_unfit: bool = False) -> list[str]:
        found = self.read(table, columns, skip_unfit).examples
        return by_row(table, [(one.place, one["messages"]) for one in found])

    def by(self, table: Table, columns: Mapping[str, str]) -> Field | None:
        return None

    def taught(self, example: Example) -> bool:
        return bool(self._answers(example["messages"]))

    def turns(self, example: Example) -> list[Message]:
        messages = example["messages"]
        own = messages and messages[0]["role"] == "system"
        messages = messages if own else [*self._system(), *messages]
        if not self.prompt:
            return messages
        last = max((at for at, one in enumerate(messages) if one["role"] == "user"), default=None)
        if last is None:
            raise DataError(f"{example.place}: no message of the user, in whose place the prompt stands")
        asked = Example(example.place, {**example.values, "prompt": messages[last]["content"]})
        return [*messages[:last], {**messages[last], "content": self.filled(asked)}, *messages[last + 1 :]]

    def asked(self, example: Example) -> list[Message]:
        turns = self.turns(example)
        return turns[: self._numbers(turns)[-1]]

    def learned(self, lm: LM, example: Example) -> list[Encoded]:
        return learned(lm, self.form, self.turns(example), example.place, _variables(example))

    def prompt_ids(self, writer: Writer, example: Example) -> list[int]:
        return writer.prompt(self.asked(example), _variables(example))

    def right(self, example: Example) -> Any:
        return self.truth(example)

    def likeness(self, example: Example) -> str:
        return " ".join(one["content"] for one in self.asked(example) if one["role"] == "user")

    def predicted(self, writer: Writer, example: Example, framed: Framed) -> Prediction:
        turns, texts, told = self.turns(example), list[str](), list[dict[str, Any]]()
        variables, losses = _variables(example), list[dict[str, Any]]()
        for number in self._numbers(turns):
            asked = framed(turns[:number])
            said = writer.write(asked, self.max_tokens, example.place, self.smaller, variables)
            texts.append(said.text.strip())
            told.append(said.counts)
            if self.perplexity and number < len(turns) and turns[number]["content"].strip():
                turn = {**turns[number], WEIGHT: 1}  # one that is not trained can be scored
                last = learned(writer.lm, self.form, [*asked, turn], example.place, variables)[-1]
                losses.append(lost(writer, last))
        more: dict[str, Any] = told[0] if len(told) == 1 else {"turns": told}
        if losses:
            sums = {key: sum(one["truth"][key] for one in losses) for key in ("nats", "tokens")}
            more = {**more, "truth": sums}
        return Prediction(texts if self.predicted_turns == "every" else texts[0], more)

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, Measured]:
        wanted, given = list[str](), list[str]()
        for example, prediction in zip(examples, predictions, strict=True):
            said = prediction.output if isinstance(prediction.output, list) else [prediction.output]
            truth = self.truth(example)
            if truth is None:
                raise DataError(f"{example.place}: no answer to compare with")
            for one, text in zip([truth] if isinstance(truth, str) else truth, said, strict=True):
                if one.strip():  # a turn that only calls a tool says nothing
                    wanted.append(one)
                    given.append(text)
        if not wanted:
            raise DataError("no answer of these conversations has a text to compare with")
        return measure(self.metrics, wanted, given, Settings(language=self.language)) | perplexity(predictions)

    def baselines(self, train: Sequence[Example], examples: Sequence[Example]) -> Mapping[str, list[Prediction]]:
        """The answer to the most similar training question (BM25)."""
        asked = [pair for one in train for pair in self._pairs(one)]
        ranked = Similar([question for question, _ in asked])
        found = [[asked[ranked.best(said, 1)[0]][1] for said, _ in self._pairs(one)] for one in examples]
        last = self.predicted_turns != "every"
        return {"nearest": [Prediction((one or [""])[-1] if last else one) for one in found]}

    def truth(self, example: Example) -> Any:
        turns = example["messages"]
        said = [turns[number]["content"] for number in self._answers(turns)]
        if not said or self.predicted_turns == "next":
            return None
        return said[-1] if self.predicted_turns == "last" else said

    def _numbers(self, turns: Sequence[Message]) -> list[int]:
        """The places at which something is predicted."""
        answers = self._answers(turns)
        if self.predicted_turns == "next" or not answers:
            return [len(turns)]
        return answers if self.predicted_turns == "every" else answers[-1:]

    def _pairs(self, example: Example) -> list[tuple[str, str]]:
        """Every answer and the message before it."""
        turns = example["messages"]
        return [(turns[at - 1]["content"], turns[at]["content"]) for at in self._answers(turns)]

    def _answers(self, turns: Sequence[Message]) -> list[int]:
        """The turns of the assistant that answer something."""
        return [at for at, one in enumerate(turns) if at and one["role"] == "assistant" and _asked(turns[:at])]


class Instruct(Chat):
    """Prompts and answers: instructions, questions, free writing, tutoring. `prompt` may put words around {prompt}."""

    name: ClassVar[str] = "instruct"
    summary: ClassVar[str] = "prompts and answers: instructions, free writing, tutoring"
    metrics: ClassVar[tuple[str, ...]] = ("rouge-l", "chrf")


class Dialogue(Chat):
    """A customer and a service: every next turn of the service is predicted, after the true turns before it."""

    name: ClassVar[str] = "dialogue"
    summary: ClassVar[str] = "dialogues with a service: its next turn"
    metrics: ClassVar[tuple[str, ...]] = ("bleu", "rouge-l")
    prompts: ClassVar[Mapping[str, str]] = {
        "en": "You are the assistant of a service. Answer the customer in one or two short sentences.",
        "zh": "你是客服助手。请用一两句简短的话回答顾客。",
    }
    predicted_turns: Turns = Setting(default="every", description="which answers are predicted")

    def _system(self) -> list[Message]:
        return [{"role": "system", "content": self.system or self.prompts[self.language]}]


def _asked(turns: Sequence[Message]) -> bool:
    return any(one["role"] in ("user", "tool") for one in turns)


def _variables(example: Example) -> dict[str, Any] | None:
    return {"tools": example["tools"]} if "tools" in example.values else None
