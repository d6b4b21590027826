"""Conversations and pairs of prompt and answer as token ids with a loss mask: only what the assistant says is trained.

The mask comes from rendering the conversation up to each answer, as the model is asked, and again with the answer. What
the second text has more is the answer; it is trained through the token that ends the turn. So nothing that a template
writes around the answers is trained, and no mark in the template is needed.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from handscroll.base.errors import ConfigError, DataError
from handscroll.data.encoded import Encoded
from handscroll.data.preferred import Pair
from handscroll.generate.chat import Speaker
from handscroll.text.chat.messages import Message
from handscroll.text.chat.script import Script
from handscroll.text.tokenizer import Tokenizer

REWRITTEN = "each answer is its own example, since the template writes earlier turns in another way than the last"
UNENDED = "each answer is its own example with the model's end token, since the template writes none after an answer"
WEIGHT = "weight"  # key of OpenAI's format: an answer of weight 0 is read and not trained


def encode_conversation(
    speaker: Speaker,
    messages: Sequence[Message],
    *,
    variables: Mapping[str, Any] | None = None,
    ends: Sequence[int] = (),
    now: datetime | None = None,
    place: str = "",
) -> list[Encoded]:
    """The examples that a conversation gives, with the template of `speaker`: usually one.

    There is one for each answer where the template does not write earlier turns as it wrote them when they were the
    last (many drop what was thought), or ends no answer; `note` says so. An assistant's message with `weight` 0 is read
    and not trained. What follows the last answer is untrained.

    Args:
        variables: what else the template reads (`tools`, `enable_thinking`, ...).
        ends: the model's end tokens, for templates that write none (`model.config.eos`).
        now: the time that the template may write; the same for a whole data set makes it repeatable.

    Raises:
        DataError: no answer to train, an empty one, or messages that the template refuses.
        ConfigError: the template does not write answers where it asks for them.
    """
    try:
        return _encoded(speaker, messages, variables, ends, now, place)
    except (DataError, ConfigError) as error:
        raise type(error)(f"{place}: {error}" if place else str(error)) from None


def encode_preference(
    speaker: Speaker,
    prompt: Sequence[Message],
    chosen: Sequence[Message],
    rejected: Sequence[Message],
    *,
    ends: Sequence[int] = (),
    now: datetime | None = None,
    place: str = "",
) -> Pair:
    """Two ways to go on after `prompt`, of which only what the assistant says in them is trained.

    Raises:
        DataError: both are the same, or as `encode_conversation`.
        ConfigError: one of them gives several examples, since the template rewrites its turns.
    """
    if list(chosen) == list(rejected):
        raise DataError(f"{place}: the chosen and the rejected answer are the same; leave the row out")
    before = untrained(prompt)
    sides = [
        encode_conversation(speaker, [*before, *way], ends=ends, now=now, place=place) for way in (chosen, rejected)
    ]
    if any(len(side) > 1 for side in sides):
        raise ConfigError(
            f"{place}: an answer to compare has several turns, and the template writes earlier turns in another "
            "way than the last: compare one turn after a common prompt"
        )
    return Pair(sides[0][0], sides[1][0])


def untrained(messages: Sequence[Message]) -> list[Message]:
    """The messages with weight 0 for every answer: read and not trained, and their turns are not looked for."""
    return [{**one, WEIGHT: 0} if one.get("role") == "assistant" else one for one in messages]


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Token ids of a prompt for a model without a template: what the tokenizer puts before a text, and the text."""
    before, _ = tokenizer.frame()
    return before + tokenizer.encode(prompt, special=False)


def encode_pair(tokenizer: Tokenizer, prompt: str, answer: str, end: int | None, place: str = "") -> Encoded:
    """A prompt and its answer as plain text, for a model without a template; the answer and `end` are trained.

    Both are encoded apart, so that the prompt has the tokens with which the model is asked. No blank or line is put
    between them: a separator belongs to the prompt. `end` is `data/sources.py: end_token`.

    Raises:
        ConfigError: there is no end token, so the model would not learn to stop.
        DataError: the answer is empty.
    """
    if end is None:
        raise ConfigError("the tokenizer names no token that ends a text, so the model would not learn to stop")
    asked = encode_prompt(tokenizer, prompt)
    said = tokenizer.encode(answer, special=False, follows=bool(prompt))
    if not answer.strip() or not said:
        raise DataError(f"{place + ': ' if place else ''}the answer is empty; leave the row out")
    return Encoded([*asked, *said, end], [False] * len(asked) + [True] * (len(said) + 1), place)


def _encoded(
    speaker: Speaker,
    messages: Sequence[Message],
    variables: Mapping[str, Any] | None,
    ends: Sequence[int],
    now: datetime | None,
    place: str,
) -> list[Encoded]:
    script = speaker.script(messages, variables, now)
    answers = trained_answers(script.messages)
    if not script.turn(answers[0]).end:
        if not ends:
            raise ConfigError(
                "the chat template writes no special token after an answer and the model names none, so the model "
                "would not learn to stop: give another template"
            )
        return [_alone(script, number, ends[0], place, UNENDED) for number in answers]
    whole = _joined(script, answers, place)
    return [_alone(script, number, None, place, REWRITTEN) for number in answers] if whole is None else [whole]


def trained_answers(messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """The places of the answers that are trained.

    Raises:
        DataError: there is none, one of them is empty, or a weight is neither 0 nor 1.
    """
    answers = [number for number, one in enumerate(messages) if _trained(one, number)]
    if not answers:
        raise DataError("no message of the assistant is to be trained; give an answer, or leave the row out")
    return answers


def _joined(script: Script, answers: Sequence[int], place: str) -> Encoded | None:
    """All of a conversation with several answers trained; None if the template rewrites what it wrote before."""
    ids, trained, before = list[int](), list[bool](), ""
    for number in answers:
        turn = script.turn(number)
        for text, said in ((turn.before, False), (turn.through, True)):
            if not text.startswith(before):
                return None
            ids = script.grown(ids, before, text)
            trained += [said] * (len(ids) - len(trained))
            before = text
    whole = script.text(len(script.messages), answer=False)
    if not whole.startswith(before):
        return None
    ids = script.grown(ids, before, whole)
    return Encoded(ids, trained + [False] * (len(ids) - len(trained)), place)


def _alone(script: Script, number: int, end: int | None, place: str, note: str) -> Encoded:
    """One answer with all that stands before it."""
    turn = script.turn(number)
    asked = script.ids(turn.before)
    ids = script.grown(asked, turn.before, turn.through) + ([] if end is None else [end])
    return Encoded(ids, [False] * len(asked) + [True] * (len(ids) - len(asked)), place, note)


def _trained(message: Mapping[str, Any], number: int) -> bool:
    """Whether a message is an answer to train."""
    if message["role"] != "assistant":
        return False
    weight = message.get(WEIGHT, 1)
    if weight not in (0, 1):
        raise DataError(f"message {number} has the weight {weight!r}; allowed are 0 (not trained) and 1")
    content = message.get("content")
    said = content.strip() if isinstance(content, str) else content
    if weight and not said and not message.get("tool_calls"):
        raise DataError(f"message {number} of the assistant is empty; leave it out, or give it the weight 0")
    return bool(weight)
