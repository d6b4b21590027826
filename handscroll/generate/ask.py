"""Turns a question about a text that was read before into a request that continues the saved reading."""

from dataclasses import dataclass

from handscroll.base.errors import ConfigError
from handscroll.cache.reading.store import Store
from handscroll.generate.admission import afford_request, identity_of
from handscroll.generate.request import Request
from handscroll.generate.settings import SamplingSettings, sampling_of
from handscroll.models.model import Model
from handscroll.text.tokenizer import Tokenizer

QUESTION = "\n\nQuestion: {question}\nAnswer:"


class AskSettings(SamplingSettings, total=False):
    """The settings of a question. With `again` the text may be read again if its reading does not fit the request."""

    again: bool
    beyond: bool


@dataclass(frozen=True)
class Question:
    """A question about the text of the saved reading `name`; `template` contains {question} and follows the text."""

    name: str
    question: str
    template: str = QUESTION


def asked(model: Model, tokenizer: Tokenizer, store: Store, question: Question, settings: AskSettings) -> Request:
    """The request that answers a question.

    Raises:
        ConfigError: the name is unknown; the text was read with another model, positions, tokenizer or dtype; or, under
            a length-dependent scaling, it was read for shorter requests than this one (unless `again` is set).
        CheckpointError: the reading is damaged, or was evicted. CapacityError: the memory is too small.
    """
    sampling = sampling_of(settings, AskSettings.__optional_keys__)
    if "{question}" not in question.template:
        raise ConfigError(f"the template {question.template!r} has no {{question}} in it")
    name = question.name
    about, length = store.named(name)
    policy = about.identity.policy
    differ = about.identity.differences(identity_of(model, tokenizer, length, policy))
    if wrong := [field for field in differ if field != "bucket"]:
        raise ConfigError(f"'{name}' was read with another {', '.join(wrong)} ({about.source}): read it again")
    text = question.template.replace("{question}", question.question)
    ids = store.tokens(about.number)[:length].tolist() + tokenizer.encode(text, special=False)
    total = len(ids) + sampling.max_tokens
    same = identity_of(model, tokenizer, total, policy).bucket == about.identity.bucket
    if not same and not settings.get("again", False):
        raise ConfigError(
            f"'{name}' was read for shorter requests than {total} tokens, and the model's scaling depends on the "
            "length: ask for fewer new tokens, read the text with more room, or let it be read again"
        )
    reading = store.open(about.number).part(length) if same else None
    request = Request(ids, sampling, beyond=settings.get("beyond", False), policy=policy, reading=reading)
    afford_request(model, request, others=())
    return request
