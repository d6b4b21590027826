"""Turns a question about a text that was read before into a request that continues the saved reading.

If the text was read within a chat template, it stands in the user's turn and the question after it; otherwise the
question is appended to the plain text.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import torch

from handscroll.base.errors import ConfigError, DataError
from handscroll.cache.reading.about import About
from handscroll.cache.reading.reading import Document, Reading
from handscroll.cache.reading.store import Store
from handscroll.generate.chat import Rendered, Speaker, answered
from handscroll.generate.continuation import streamed
from handscroll.generate.prefill import shared_beginning
from handscroll.generate.prepare import afford_request, identity_of, keep_within
from handscroll.generate.request import Request
from handscroll.generate.settings import SamplingSettings, sampling_of
from handscroll.models.model import Model
from handscroll.text.chat.messages import Message
from handscroll.text.tokenizer import Tokenizer

QUESTION = "\n\nQuestion: {question}\nAnswer:"  # after a plain text
TURN = "\n\n{question}"  # after a document in the user's turn
SEAM = 16  # tokens at the end of a document that the first ones of a question may change


class AskSettings(SamplingSettings, total=False):
    """The settings of a question.

    With `again` the text may be read again if its reading does not fit the request. `on_thinking` is called with what
    a reasoning model thinks before it answers, `on_finish` with why the answer ended ("eos", "stop" or "length"). A
    question whose keys and values, with those of the reading, exceed `kv_budget` is refused.
    """

    again: bool
    beyond: bool
    on_thinking: Callable[[str], None] | None
    on_finish: Callable[[str], None] | None
    kv_budget: str | int | None


@dataclass(frozen=True)
class Question:
    """A question about the text of the saved reading `name`.

    `template` contains {question} and follows the text; the usual one (`TURN` or `QUESTION`) unless given.
    """

    name: str
    question: str
    template: str = ""

    def after(self, usual: str) -> str:
        """What follows the text.

        Raises:
            ConfigError: the template has no place for the question.
        """
        template = self.template or usual
        if "{question}" not in template:
            raise ConfigError(f"the template {template!r} has no {{question}} in it")
        return template.replace("{question}", self.question)


class Opening(NamedTuple):
    """What every question about a document has in common: the beginning of the template, and the document."""

    ids: list[int]
    document: Document


def opening(speaker: Speaker, document: Document) -> Opening:
    """The beginning that questions about a document share."""
    one, other = (within(speaker, document, TURN.replace("{question}", word)).ids for word in ("What", "谁"))
    return Opening(one[: shared_beginning(one, other)], document)


def within(
    speaker: Speaker,
    document: Document,
    after: str,
    later: Sequence[Message] = (),
    variables: Mapping[str, Any] | None = None,
) -> Rendered:
    """A user's turn, the document and what is asked about it, and the turns that came later."""
    turn = {"role": "user", "content": document.text + after}
    return speaker.render([turn, *later], variables, datetime.fromtimestamp(document.when))


@dataclass(frozen=True)
class Asked:
    """A question as a request over its saved reading.

    `rendered` and `speaker` are those of the chat template; None where the text was read as plain text. `document` is
    what was read there.
    """

    request: Request
    speaker: Speaker | None = None
    rendered: Rendered | None = None
    document: Document | None = None


def asked(model: Model, tokenizer: Tokenizer, store: Store, question: Question, settings: AskSettings) -> Asked:
    """The request that continues a saved reading with a question.

    Raises:
        ConfigError: the name is unknown; the text was read with another model, positions, tokenizer, dtype or chat
            template; or, under a length-dependent scaling, it was read for shorter requests than this one (unless
            `again` is set).
        CheckpointError: the reading is damaged, or was evicted. CapacityError: the memory is too small.
    """
    about, length = named(model, tokenizer, store, question.name)
    known, document = store.tokens(about.number)[:length].tolist(), store.document(question.name)
    if document is None:
        ids = known + tokenizer.encode(question.after(QUESTION), special=False, follows=True)
        return Asked(_request(model, tokenizer, store, (question, about, length, ids), settings))
    speaker = Speaker(tokenizer)
    rendered = within(speaker, document, question.after(TURN))
    shared = shared_beginning(known, rendered.ids)
    if shared < length - SEAM and not settings.get("again", False):
        raise ConfigError(
            f"'{question.name}' was read within another chat template, or this question changes the text before it "
            f"({shared:,} of {length:,} tokens are the same): read the text again, or allow it to be read again"
        )
    ends = None if settings.get("ignore_eos") else speaker.ends(model)
    request = _request(model, tokenizer, store, (question, about, shared, rendered.ids), settings, ends)
    return Asked(request, speaker, rendered, document)


def answers(
    model: Model, tokenizer: Tokenizer, store: Store, question: Question, settings: AskSettings
) -> Iterator[str]:
    """The answer to a question, piece by piece; impossible requests are refused here, not at the first piece.

    The errors are those of `asked`.
    """
    found = asked(model, tokenizer, store, question, settings)
    if found.speaker is None or found.rendered is None:
        return streamed(model, tokenizer, found.request)
    return answered(model, found.speaker, found.request, found.rendered, settings.get("on_thinking"))


def named(model: Model, tokenizer: Tokenizer, store: Store, name: str) -> tuple[About, int]:
    """What a name stands for, checked to be of this model: the part, and its tokens that belong to the name.

    Raises:
        ConfigError: the name is unknown, or the text was read with another model, positions, tokenizer or dtype.
        CheckpointError: the reading was evicted.
    """
    about, length = store.named(name)
    if wrong := differing(model, tokenizer, about, length):
        raise ConfigError(
            f"'{name}' was read with another {', '.join(wrong)} ({about.source}): read it again, or give the same "
            "--weights and --adapter"
        )
    return about, length


def differing(model: Model, tokenizer: Tokenizer, about: About, length: int) -> list[str]:
    """In which settings a model differs from the one that read a text of `length` tokens; [] if it may continue it."""
    differ = about.identity.differences(identity_of(model, tokenizer, length, about.identity.policy))
    return [field for field in differ if field != "bucket"]


def _request(
    model: Model,
    tokenizer: Tokenizer,
    store: Store,
    asked: tuple[Question, About, int, list[int]],
    settings: AskSettings,
    ends: frozenset[int] | None = None,
) -> Request:
    """The request over `ids`, of which the reading holds the first `length`."""
    question, about, length, ids = asked
    sampling = sampling_of(settings, AskSettings.__optional_keys__)
    total, policy = len(ids) + sampling.max_tokens, about.identity.policy
    same = identity_of(model, tokenizer, total, policy).bucket == about.identity.bucket
    if not same and not settings.get("again", False):
        raise ConfigError(
            f"'{question.name}' was read for shorter requests than {total} tokens, and the model's scaling depends on "
            "the length: ask for fewer new tokens, read the text with more room, or let it be read again"
        )
    reading = _beginning(store, about, ids[:length]) if same and length else None
    beyond, on_finish = settings.get("beyond", False), settings.get("on_finish")
    request = Request(ids, sampling, beyond=beyond, policy=policy, reading=reading, ends=ends, on_finish=on_finish)
    if (budget := settings.get("kv_budget")) is not None:
        keep_within(model, question.name, request, budget)
    afford_request(model, request, others=())
    return request


def _beginning(store: Store, about: About, ids: Sequence[int]) -> Reading | None:
    """The reading of `ids`, with which `about` begins; or of the most of them to which its windows reach back."""
    try:
        return store.open(about.number).part(len(ids))
    except DataError:
        return store.find(about.identity, torch.tensor(ids))
