"""Which documents a request is about, and how they are read: one prompt for every endpoint that takes documents."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from handscroll.serve.documents.asking import document_prompt
from handscroll.serve.documents.gathering import Wish, gathered
from handscroll.serve.documents.shelf import Entry
from handscroll.serve.errors import ApiError
from handscroll.serve.keys import Owner
from handscroll.serve.models import Served
from handscroll.serve.prompts import Prompt
from handscroll.serve.schemas.chat import ChatMessage, Gathered
from handscroll.serve.serving import Serving


def wish_of(body: Gathered) -> Wish:
    """How a request wants documents to be read.

    Raises:
        ApiError: passages are wanted where everything is read whole.
    """
    mode = body.reading or "whole"
    if body.passages is not None and mode == "whole":
        why = '"passages" belongs to "reading": "auto" or "passages"; by default documents are read whole'
        raise ApiError(400, why, "invalid_value", "passages")
    return Wish(mode, body.passages)


def entries_of(serving: Serving, owner: Owner, numbers: Sequence[str] | Literal["all"]) -> list[Entry]:
    """The documents that a request names.

    Raises:
        ApiError: there are none, one of them is named twice, or is not the owner's.
    """
    if numbers == "all":
        if found := serving.shelf.all(owner.number):
            return found
        raise ApiError(404, "there are no documents yet: upload one first", "document_not_found", "documents")
    if twice := [one for at, one in enumerate(numbers) if one in numbers[:at]]:
        raise ApiError(400, f"'{twice[0][:64]}' is named twice", "invalid_value", "documents")
    return [serving.shelf.get(owner.number, number) for number in numbers]


def one_prompt(
    serving: Serving,
    served: Served,
    entry: Entry,
    wish: Wish,
    messages: Sequence[ChatMessage],
    variables: Mapping[str, Any] | None = None,
    strict: bool = True,
) -> Prompt:
    """A conversation about one document; the errors are those of `document_prompt` and `gathered`."""
    if wish.mode == "whole":
        opened = partial(serving.readings.opened, entry, served)
        return document_prompt(served, entry, opened, messages, variables)
    prompt = gathered(serving, served, [entry], wish, messages, variables, strict)
    return replace(prompt, document=prompt.documents[0], documents=())


def prompting(
    serving: Serving, owner: Owner, served: Served, body: Any, messages: Sequence[ChatMessage], strict: bool = True
) -> Callable[[], Prompt] | None:
    """What makes the prompt of a request with `document` or `documents`; None for one with neither.

    `strict` refuses a question for which nothing is found to read.

    Raises:
        ApiError: both are given, or settings that need them and are not.
    """
    variables = getattr(body, "chat_template_kwargs", None)
    if body.document is not None and body.documents is not None:
        raise ApiError(400, "give document or documents, not both", "invalid_value", "documents")
    if body.documents is not None:
        entries = entries_of(serving, owner, body.documents)
    elif body.document is not None:
        entries = [serving.shelf.get(owner.number, body.document)]
    else:
        for name in ("reading", "passages"):
            if getattr(body, name) is not None:
                raise ApiError(400, f"'{name}' belongs to document or documents", "invalid_value", name)
        return None
    if body.tools:
        raise ApiError(400, "tools are not handed on beside a document: leave one out", "invalid_value", "tools")
    wish = wish_of(body)
    if body.documents is None:
        return partial(one_prompt, serving, served, entries[0], wish, messages, variables, strict)
    return partial(gathered, serving, served, entries, wish, messages, variables, strict)


def writer(serving: Serving, owner: Owner, number: str, name: str) -> tuple[Entry, Served]:
    """A document, and the model that answers about it: the one that is named, else the only one that has read it.

    Raises:
        ApiError: no such document or model, several have read it, or the model is not ready or writes no text.
    """
    entry = serving.shelf.get(owner.number, number)
    served = serving.models.find(name) if name else _reader(serving, entry)
    served.writing  # noqa: B018 - the check
    return entry, served


def _reader(serving: Serving, entry: Entry) -> Served:
    names = [model for model in entry.readings if model in serving.models.all]
    if len(names) > 1:
        raise ApiError(400, f"several models have read it: name one of {', '.join(names)}", "invalid_value", "model")
    return serving.models.find(names[0]) if names else serving.models.first()
