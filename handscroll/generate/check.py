"""Checks that a model can answer a request; impossible requests are refused here, before any work."""

from collections.abc import Sequence
from dataclasses import replace
from operator import index

import torch

from handscroll.base.errors import CapacityError, ConfigError, DataError
from handscroll.cache.table import DEFAULT
from handscroll.generate.request import Request
from handscroll.generate.source import check_source, only_whole
from handscroll.models.model import Model
from handscroll.nn.marks import Marks


def checked(model: Model, request: Request, number: int = 0) -> Request:
    """Check a request and return it with its checked token ids; messages name its prompt by `number`.

    Raises:
        CapacityError: the request is longer than the model's context, or than a learned position table.
        DataError: the prompt is empty and the model has no bos, a token id is outside the vocabulary, or the prompt
            does not begin with its reading.
        ConfigError: the model is an encoder, or lacks a capability that the request needs.
    """
    request = replace(request, prompt=started(model, number, request.prompt))
    if model.spec.recurrent and (request.policy != DEFAULT or request.draft is not None or request.reading is not None):
        raise ConfigError(
            f"family '{model.config.family}' keeps a state of constant size: no cache policy, draft or saved reading "
            "applies to it; leave them out"
        )
    if model.spec.encoder:
        only_whole(request.policy, reading=request.reading, drafts=request.draft)
    new = request.sampling.max_tokens
    check_tokens(model, request)
    check_length(model, number, len(request.prompt), new, request.beyond)
    if request.draft is not None:
        request.draft.check(model, len(request.prompt) + new, request.beyond)
    if request.reading is not None:
        _check_reading(model, request, number)
    return request


def check_tokens(model: Model, request: Request) -> None:
    """Refuse a bias or an end token that the vocabulary does not have (DataError)."""
    vocab = model.config.vocab
    for what, tokens in (("a bias is given for", request.bias or ()), ("the text shall end with", request.ends or ())):
        if wrong := [token for token in tokens if not 0 <= token < vocab]:
            raise DataError(f"{what} token id {wrong[0]}, but the model's vocabulary is 0 to {vocab - 1}")


def started(model: Model, number: int, prompt: Sequence[int]) -> list[int]:
    """The ids of prompt `number`, or the model's bos if it is empty; the errors are those of `checked`."""
    config = model.config
    model.spec.require("decoding", forward=True, head=True)
    ids = _whole(number, prompt) or ([] if config.bos is None else [config.bos])
    if not ids:
        raise DataError(f"prompt {number} is empty and the model has no bos token to begin with; give some text")
    wrong = next((token for token in ids if not 0 <= token < config.vocab), None)
    if wrong is not None:
        raise DataError(
            f"prompt {number} holds token id {wrong}, but the model's vocabulary is 0 to {config.vocab - 1}; "
            "was it encoded with this model's tokenizer?"
        )
    return ids


def _whole(number: int, prompt: Sequence[int]) -> list[int]:
    """The ids as Python's whole numbers, whatever array they came in."""
    ids: list[int] = []
    for token in prompt:
        try:
            ids.append(index(token))
        except TypeError:
            raise DataError(f"prompt {number} holds {token!r}, which is no token id; give whole numbers") from None
    return ids


def check_length(model: Model, number: int, prompt: int, new: int, beyond: bool) -> None:
    """Refuse prompt `number` of `prompt` tokens if `new` more do not fit; the errors are those of `checked`."""
    if model.spec.encoder:
        check_source(model, number, prompt, new, beyond)
        return
    context, total = model.config.context, prompt + new
    if total > context and not beyond:
        room = f"ask for at most {context - prompt} new tokens" if prompt < context else "shorten the prompt"
        raise CapacityError(
            f"prompt {number} has {prompt} tokens and {new} more are asked for: {total} in all, but the model's "
            f"context is {context}; {room}, or lengthen the model first (handscroll extend ... --to {total})"
        )
    # A learned position table refuses positions past its end. It is asked here, not in the middle of the text. The last
    # new token is never read, hence total - 2.
    model.embed(torch.zeros(1, 1, dtype=torch.long, device=model.device), Marks.run(total - 2, 1))


def declared(model: Model, length: int) -> tuple[int, int]:
    """The length that a request of `length` tokens declares to the scaling, and the key of its rotary tables.

    Requests with different keys are not read together: with one length for all, a long neighbour would change the text
    of a short one.
    """
    found = model.spec.declared(length)
    return found, model.spec.bucket(found)


def _check_reading(model: Model, request: Request, number: int) -> None:
    """Check that the prompt begins with its reading, is longer, and has the scaling of the reading."""
    assert request.reading is not None
    begin, prompt = request.reading.tokens.tolist(), list(request.prompt)
    if len(prompt) <= len(begin) or prompt[: len(begin)] != begin:
        raise DataError(
            f"prompt {number} does not continue the reading: its first {len(begin)} tokens must be those "
            "of the reading, and at least one must follow"
        )
    length, bucket = declared(model, len(prompt) + request.sampling.max_tokens)
    if bucket != request.reading.identity.bucket:
        raise ConfigError(
            f"the text was read for requests of up to {request.reading.identity.bucket} tokens, this one has "
            f"{length}: the model's scaling depends on the length, so read the text again"
        )
