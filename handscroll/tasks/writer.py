"""Asks a model and takes its answers, one after the other: as a chat by its own template, or as plain text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from handscroll.base.errors import CapacityError, DataError
from handscroll.cache.reading.store import SHARED, Store
from handscroll.data.encoded import Encoded
from handscroll.data.sources import end_token
from handscroll.generate.asked import NOW, Form, speaker_of
from handscroll.generate.chat import Chat, said
from handscroll.generate.likelihood import Likelihood
from handscroll.generate.prefill import shared_beginning
from handscroll.generate.read import ROOM
from handscroll.generate.request import Request
from handscroll.generate.sample import Sampling
from handscroll.lm import LM
from handscroll.tasks.conversation import encode_conversation, encode_pair, encode_prompt, trained_answers
from handscroll.text.chat.messages import Message

OTHER = "\ue0ff"  # a message with which nothing begins
BETWEEN = "\n\n"  # messages, in plain text
APART = "each answer is its own example, since in plain text the model's end token would stand between the turns"


@dataclass(frozen=True)
class Written:
    """An answer, how it ended ("eos", "length", "stop"), and its tokens.

    `prompt` tokens were asked with, of which `reused` had been read for an earlier prompt; `written` are the answer's,
    with the one that ended it, and `logprob` is the sum of their natural log-probabilities.
    """

    text: str
    finish: str
    prompt: int
    reused: int
    written: int
    logprob: float

    @property
    def counts(self) -> dict[str, Any]:
        """The counts that stand beside a prediction."""
        tokens = {"prompt": self.prompt, "read": self.prompt - self.reused, "written": self.written}
        return {"finish": self.finish, "tokens": tokens}

    @property
    def score(self) -> float:
        """The mean log-probability of its tokens: how likely the model holds it, whatever its length."""
        return self.logprob / self.written


def learned(
    lm: LM, form: Form, messages: Sequence[Message], place: str, variables: Mapping[str, Any] | None = None
) -> list[Encoded]:
    """Messages with the assistant's answers as examples in which only the answers and their ends are trained.

    In plain text each answer becomes an example of its own. An answer of weight 0 is read and not trained.

    Raises:
        DataError: there is no answer to train, or an empty one. ConfigError: nothing would teach the model to stop.
    """
    speaker, ends = speaker_of(lm.tokenizer, lm.source, form), lm.model.config.eos
    if speaker is not None:
        return encode_conversation(speaker, messages, variables=variables, ends=ends, now=NOW, place=place)
    try:
        answers = trained_answers(messages)
    except DataError as error:
        raise DataError(f"{place}: {error}") from None
    tokenizer, end = lm.tokenizer, end_token(lm.tokenizer, ends)
    pairs = [(plain(messages[:number]), messages[number]["content"]) for number in answers]
    note = APART if len(pairs) > 1 else ""
    return [replace(encode_pair(tokenizer, asked, answer, end, place), note=note) for asked, answer in pairs]


def plain(messages: Sequence[Message]) -> str:
    """Messages as plain text with blank lines between them, and one before the answer."""
    return "".join(message["content"] + BETWEEN for message in messages)


class Writer:
    """Writes answers greedily. What a prompt shares with the one before is not read again.

    `store` may hold the beginning of prompts as a saved reading. `stop` are strings that end an answer.
    """

    def __init__(self, lm: LM, form: Form = "auto", store: Store | None = None, stop: Sequence[str] = ()):
        """
        Raises:
            ConfigError: the model does not write texts from left to right.
        """
        lm.model.spec.require("a task whose answers are texts", one_text=True, forward=True, head=True)
        self.lm, self.stop, self._store = lm, tuple(stop), store
        self.form: Form = form
        self.talk = lm.conversation()
        if store is not None:
            held = store
            self.talk.find = lambda ids, total: held.find(lm.identity(total), torch.tensor(ids[:-1]))
        speaker = speaker_of(lm.tokenizer, lm.source, form)
        self._chat = None if speaker is None else Chat(speaker, self.talk, now=NOW)

    def prompt(self, messages: Sequence[Message], variables: Mapping[str, Any] | None = None) -> list[int]:
        """Token ids of messages up to where the answer begins.

        Raises:
            DataError: the template refuses the messages.
        """
        if self._chat is None:
            return encode_prompt(self.lm.tokenizer, plain(messages))
        return self._chat.speaker.render(messages, variables, NOW).ids

    def keep(self, messages: Sequence[Message]) -> None:
        """Read what stands before the last message into the store, if there is one, so that prompts begin with it."""
        if self._store is None:
            return
        other = [*messages[:-1], {**messages[-1], "content": OTHER}]
        ids = self.prompt(messages)
        shared = shared_beginning(ids, self.prompt(other))
        if shared >= SHARED:
            self.lm.read(ids[:shared], self._store, room=min(ROOM, self.lm.context - shared))

    def write(
        self,
        messages: Sequence[Message],
        most: int,
        place: str,
        smaller: str = "",
        variables: Mapping[str, Any] | None = None,
    ) -> Written:
        """The answer to messages, of at most `most` tokens; `smaller` says what else would fit where they do not.

        Raises:
            CapacityError: prompt and answer exceed the context or the memory.
        """
        if self._chat is None:
            return self.after(self.prompt(messages), most, place, smaller)
        self.check(len(self.prompt(messages, variables)), most, place, smaller)
        answer = self._chat.answer(messages, Sampling(max_tokens=most, stop=self.stop), variables, scored=True)
        reply = answer.whole(said(answer, None))
        return Written(str(reply), reply.finish, reply.prompt, reply.reused, reply.tokens, reply.logprob)

    def after(
        self, ids: Sequence[int], most: int, place: str, smaller: str = "", ends: frozenset[int] | None = None
    ) -> Written:
        """What follows given tokens; errors as in `write`."""
        self.check(len(ids), most, place, smaller)
        request = Request(ids, Sampling(max_tokens=most, stop=self.stop), logprobs=0, ends=ends)
        tokens = list(self.talk.reply(request))
        text, finish = "".join(token.text for token in tokens), tokens[-1].finish or ""
        logprob = sum(token.scored.logprob for token in tokens if token.scored is not None)
        return Written(text, finish, len(ids), self.talk.reused, len(tokens), logprob)

    def check(self, size: int, most: int, place: str, smaller: str = "") -> None:
        """
        Raises:
            CapacityError: a prompt of `size` tokens and an answer of `most` exceed the context.
        """
        context, wanted = self.lm.context, size + most
        if wanted > context:
            less = f"answers of at most {context - size:,} tokens (task.max_tokens), " if size < context else ""
            less += smaller or "a shorter row"
            raise CapacityError(
                f"{place}: the prompt has {size:,} tokens and the answer may have {most:,}: {wanted:,} in all, but "
                f"the model's context is {context:,}. Nothing is cut. What would fit: {less}, "
                f"or a model that was lengthened (handscroll extend ... --to {wanted})"
            )

    def surprise(self, one: Encoded) -> Likelihood:
        """How likely the last run of trained tokens of an example is: that of its last answer and its end."""
        last = max(at for at, trained in enumerate(one.trained) if trained) + 1
        first = max(at for at in range(last) if not one.trained[at]) + 1
        return self.talk.likelihood(one.ids[:first], one.ids[first:last])
