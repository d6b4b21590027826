"""Questions about a document: the saved reading is the beginning of the prompt, and only what follows is read."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from handscroll.base.errors import ConfigError
from handscroll.cache.reading.reading import Document, Reading
from handscroll.generate.ask import QUESTION, SEAM, TURN, within
from handscroll.generate.prefill import shared_beginning
from handscroll.serve.documents.shelf import Entry
from handscroll.serve.errors import ApiError
from handscroll.serve.models import Served
from handscroll.serve.prompts import Prompt, check_characters, check_variables, dumped, said
from handscroll.serve.schemas.chat import ChatMessage

Opened = Callable[[], tuple[Reading, Document | None]]


def document_prompt(
    served: Served,
    entry: Entry,
    opened: Opened,
    messages: Sequence[ChatMessage],
    variables: Mapping[str, Any] | None = None,
) -> Prompt:
    """A conversation about a document, which stands in the first turn of the user.

    Raises:
        ApiError: a system message stands before it, or the first message is not the user's. ConfigError: this template
            changes the document. DataError: the template refuses the messages.
    """
    reading, document = opened()
    turns = check_turns(served, messages, variables)
    if document is None:
        return _plain(served, entry, reading, turns)
    speaker = served.speaker()
    rendered = within(speaker, document, TURN.replace("{question}", said(turns[0])), turns[1:], variables)
    shared = same_beginning(reading, rendered.ids)
    return Prompt(
        rendered.ids,
        rendered.text,
        speaker.ends(served.loaded.model),
        speaker,
        rendered,
        reading.part(shared),
        about(entry, reading.length, shared),
    )


def check_turns(
    served: Served, messages: Sequence[ChatMessage], variables: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """The messages of a conversation about documents, as the template reads them.

    Raises:
        ApiError: the first is not the user's, the model answers one question at a time, or its template does not read
            one of the `variables`. ConfigError: there are variables and no template. CapacityError: they cannot fit.
    """
    turns = dumped(messages)
    if turns[0]["role"] != "user":
        why = "a conversation about a document begins with the user's message; the text before a document cannot change"
        raise ApiError(400, why, "invalid_value", "messages")
    if len(turns) > 1 and not served.talks:
        message = f"'{served.name}' has no chat template, so it answers one question at a time"
        raise ApiError(400, message, "invalid_value", "messages")
    if variables:
        check_variables(served, served.speaker(), variables)
    check_characters(served, sum(map(len, map(said, turns))))
    return turns


def same_beginning(reading: Reading, ids: Sequence[int]) -> int:
    """How many tokens of a reading a prompt begins with.

    Raises:
        ConfigError: the prompt changes what stands before the document.
    """
    shared = shared_beginning(reading.tokens.tolist(), ids)
    if shared < reading.length - SEAM:
        raise ConfigError(
            f"these messages change the text before the document ({shared:,} of {reading.length:,} tokens are the "
            "same): leave out the variables of the template, or let the document be read again"
        )
    return shared


def about(entry: Entry, total: int, kept: int) -> dict[str, Any]:
    """What the contract says of a document that is read whole: its tokens, how many come from its reading, its text."""
    counts = {"how": "whole", "tokens": total, "seen": total, "from_reading": kept}
    return {"id": entry.number, "name": entry.name, **counts, "text_sha256": entry.text_sha256}


def _plain(served: Served, entry: Entry, reading: Reading, turns: Sequence[Mapping[str, Any]]) -> Prompt:
    """A question after a plain text, as a model without a template reads it."""
    after = QUESTION.replace("{question}", said(turns[0]))
    more = served.loaded.tokenizer.encode(after, special=False, follows=True)
    ids = [*reading.tokens.tolist(), *more]
    return Prompt(ids, after, reading=reading, document=about(entry, reading.length, reading.length))
