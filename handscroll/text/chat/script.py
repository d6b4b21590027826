"""A conversation as a template writes it, turn by turn: what stands before an answer, and what stands after it.

All is found by rendering beginnings of the conversation and comparing them. No name of a role, of a token or of a
family is looked for, since stock templates of large families mark no answer.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from handscroll.base.errors import ConfigError, DataError
from handscroll.text.chat.seal import Seal
from handscroll.text.chat.template import ChatTemplate

SHOWN = 40  # characters of a text that an error shows


class Turn(NamedTuple):
    """One answer in its place: the text `before` it, as the model is asked, and the same with the answer and its end.

    `end` is the special token that ends the turn, "" if the template writes none.
    """

    before: str
    through: str
    end: str


class Script:
    """Messages of one conversation with a model's template. Its texts are sealed: `ids` and `shown` read them."""

    def __init__(
        self,
        template: ChatTemplate,
        seal: Seal,
        messages: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any],
        now: datetime,
    ):
        self.template, self.messages, self.now = template, messages, now
        self._seal = seal
        self._mark = seal.mark([list(messages), dict(variables)], template.source)
        self._probe = seal.mark([list(messages), dict(variables)], template.source + self._mark)
        self._sealed = seal.sealed(list(messages), self._mark)
        self._variables = seal.sealed(dict(variables), self._mark)

    def text(self, count: int, answer: bool) -> str:
        """The first `count` messages; with `answer` it ends where the assistant's answer begins.

        The errors are those of `ChatTemplate.render`.
        """
        return self._render(self._sealed[:count], answer)

    def ids(self, text: str, follows: bool = False) -> list[int]:
        """Token ids of a text of this script; special tokens that stand in messages stay ordinary text."""
        return self._seal.encode(text, self._mark, follows)

    def shown(self, text: str) -> str:
        """A text of this script as a person should see it."""
        return self._seal.shown(text, self._mark)

    def grown(self, ids: list[int], before: str, text: str) -> list[int]:
        """Token ids of `text`, which goes on from `before`, whose ids are `ids`: these stay as they are.

        A tokenizer may join the end of a header and the beginning of an answer into one token. The model is asked
        without it, so the answer is then encoded apart, as the model says it.
        """
        # A tokenizer begins anew at a special token, so what stands before the last one is not encoded again.
        at = max(0, self._seal.last(before, self._mark))
        tail = self.ids(before[at:]) if before else []
        if tail == ids[len(ids) - len(tail) :]:
            more = self.ids(text[at:])
            if more[: len(tail)] == tail:
                return ids[: len(ids) - len(tail)] + more
        return ids + self.ids(text[len(before) :], follows=True)

    def turn(self, number: int) -> Turn:
        """The assistant's message `number` in its place.

        Raises:
            ConfigError: the template does not write it where it asks for an answer, or does not write it at all.
            DataError: the template refuses the messages.
        """
        before, whole = self.text(number, answer=True), self.text(number + 1, answer=False)
        asked = {"role": "assistant", "content": self._probe}
        probed = self._render([*self._sealed[:number], asked], answer=False)
        _, found, closing = probed.rpartition(self._probe)
        if not found or whole == before:
            raise ConfigError(
                f"the chat template does not write what the assistant says (message {number}), so there is nothing to "
                "learn from: give the template of the model's authors"
            )
        if not whole.startswith(before):
            at = next((n for n, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(whole))
            raise ConfigError(
                f"the chat template asks for message {number} with {self._tail(before[at:])}, but writes "
                f"{self._tail(whole[at:])} there once it is answered: the model would be asked in another way than it "
                "was trained. Give another template, or a variable of this one (such as enable_thinking) under which "
                "both agree"
            )
        end = self._first_special(closing)
        if not whole.endswith(closing):
            raise ConfigError(
                f"the chat template ends message {number} in another way than other answers, which end with "
                f"{self._tail(closing)}; so where it ends cannot be told: give another template"
            )
        kept = closing[: closing.index(end) + len(end)] if end else ""
        return Turn(before, whole[: len(whole) - len(closing)] + kept, end)

    def _first_special(self, closing: str) -> str:
        after = closing.lstrip()
        return max((token for token in self._seal.tokens if after.startswith(token)), key=len, default="")

    def _tail(self, text: str) -> str:
        shown = self.shown(text)
        return repr(shown if len(shown) <= SHOWN else shown[:SHOWN] + "...")

    def _render(self, messages: Sequence[Mapping[str, Any]], answer: bool) -> str:
        if not messages:
            raise DataError("the conversation begins with the assistant's answer: add the message that it answers")
        return self.template.render(messages, answer, self.now, self._variables)
