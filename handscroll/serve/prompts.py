"""From the body of a request to requests for the engine. Runs beside the event loop: tokens of long texts take time."""

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from handscroll.base.errors import CapacityError
from handscroll.cache.reading.reading import Reading
from handscroll.generate.chat import Rendered, Speaker
from handscroll.generate.constrain import Constraint
from handscroll.generate.request import Request
from handscroll.generate.sample import Sampling
from handscroll.serve.errors import ApiError
from handscroll.serve.models import Served
from handscroll.serve.schemas.chat import ChatMessage, Speaking
from handscroll.serve.schemas.choosing import Choosing
from handscroll.serve.schemas.formats import ByChoice, ByExpression, ByGrammar, BySchema, Format, Text

CUTS = ("top_k", "top_p", "min_p")


@dataclass(frozen=True, eq=False)
class Prompt:
    """What a model reads before it answers.

    `ends` are the tokens that end the answer (None: the model's own). `rendered` is there if a template wrote it,
    `reading` if a saved reading is its beginning; `document` says what was read of the one document that was asked
    about, `documents` of each of several, `notes` what a person should know.
    """

    ids: list[int]
    text: str = ""
    ends: frozenset[int] | None = None
    speaker: Speaker | None = None
    rendered: Rendered | None = None
    reading: Reading | None = None
    document: Mapping[str, Any] = field(default_factory=dict)
    documents: Sequence[Mapping[str, Any]] = ()
    notes: tuple[str, ...] = ()


def text_prompt(served: Served, given: str | list[int], suffix: str | None) -> Prompt:
    """A plain text, token ids, or code with a hole before `suffix`.

    Raises:
        CapacityError: it cannot fit. ConfigError: a suffix, and the model fills no holes. ApiError: ids and a suffix.
    """
    tokenizer = served.loaded.tokenizer
    if not isinstance(given, str):
        if suffix is not None:
            raise ApiError(400, "a suffix belongs to a prompt that is a text, not token ids", "invalid_value", "suffix")
        return Prompt(given, tokenizer.decode(given))
    check_characters(served, len(given) + len(suffix or ""))
    if suffix is None:
        return Prompt(tokenizer.encode(given), given)
    infill = served.infill
    ends = frozenset({infill.end, *served.loaded.model.config.eos})
    return Prompt(infill.prompt(given, suffix), given, ends)


def chat_prompt(
    served: Served,
    messages: Sequence[ChatMessage],
    tools: Sequence[Mapping[str, Any]] | None = None,
    variables: Mapping[str, Any] | None = None,
) -> Prompt:
    """Messages by the template of the model.

    Raises:
        CapacityError: they cannot fit. DataError: the template refuses them. ConfigError: there is no template.
    """
    speaker, plain = served.speaker(bool(tools)), dumped(messages)
    check_characters(served, sum(len(said(one)) for one in plain))
    check_variables(served, speaker, variables)
    given = dict(variables or {}) | ({"tools": list(tools)} if tools else {})
    rendered = speaker.render(plain, given)
    ends = speaker.ends(served.loaded.model)
    return Prompt(rendered.ids, rendered.text, ends, speaker, rendered, notes=left_out(plain, rendered))


def check_variables(served: Served, speaker: Speaker, variables: Mapping[str, Any] | None) -> None:
    """Refuse variables that the template never reads.

    Raises:
        ApiError: names the first.
    """
    source = speaker.template.source
    if unread := [name for name in variables or () if not re.search(rf"\b{re.escape(name)}\b", source)]:
        why = f"the chat template of '{served.name}' reads no variable '{unread[0][:64]}'"
        raise ApiError(400, why, "unknown_field", "chat_template_kwargs")


def dumped(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """The messages as the template reads them."""
    return [one.model_dump(exclude_none=True) for one in messages]


def said(message: Mapping[str, Any]) -> str:
    """The text of a message."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def left_out(messages: Sequence[Mapping[str, Any]], rendered: Rendered) -> tuple[str, ...]:
    """What the template does not write, as people are told."""
    return tuple(
        f"the template leaves out or changes message {number} ({message['role']})"
        for number, message in enumerate(messages)
        if (text := said(message).strip()) and message["role"] in ("system", "user") and text not in rendered.text
    )


def check_characters(served: Served, count: int) -> None:
    """Refuse a text before its tokens are made, where even the longest ones are too many.

    Raises:
        CapacityError: it cannot fit; the numbers are those that are sure.
    """
    context, longest = served.loaded.context, served.longest
    if count > context * longest:
        raise CapacityError(
            f"the prompt has {count:,} characters, which are at least {-(-count // longest):,} tokens, but the "
            f"context of '{served.name}' is {context:,}; a text of {context * 3:,} characters is about what fits"
        )


def requests(served: Served, body: Choosing, prompt: Prompt, most: int | None, logprobs: int | None) -> list[Request]:
    """What the engine is asked for: one request a sample. `most` are the new tokens of each, as far as they are given.

    Raises:
        CapacityError: prompt and answer do not fit into the context or the blocks. ConfigError: settings that exclude
            each other. DataError: a token id that the model does not have.
    """
    lm, engine = served.loaded, served.writing
    length = len(prompt.ids)
    if most is None:
        most = max(1, lm.context - length)
    chosen = lm.defaults.under(body.chosen())
    if not chosen.get("temperature"):  # the likeliest token is in every cut, so they change nothing
        chosen = {name: value for name, value in chosen.items() if name not in CUTS}
    seed = secrets.randbits(62) if body.seed is None else body.seed
    bias = {int(token): value for token, value in (body.logit_bias or {}).items()}
    found = []
    for number in range(body.count):
        given = {**chosen, "max_tokens": most, "seed": seed + number, "stop": body.stops}
        sampling = Sampling.parse(given, "the request")
        request = Request(
            prompt.ids,
            sampling,
            logprobs=logprobs,
            constraint=constraint_of(served, body.response_format),
            bias=bias or None,
            ends=prompt.ends,
            reading=prompt.reading,
        )
        found.append(engine.check(request, number))
    return found


def spoken_limit(served: Served, body: Speaking, prompt: Prompt, usual: int) -> int:
    """The most tokens of an answer in turns: what is given, else the `usual` number or what the context leaves.

    Raises:
        ApiError: both names of the limit are given and differ. CapacityError: the context leaves nothing.
    """
    given = {one for one in (body.max_tokens, body.max_completion_tokens) if one is not None}
    if len(given) > 1:
        raise ApiError(400, "max_tokens and max_completion_tokens differ; give one", "invalid_value", "max_tokens")
    left = served.loaded.context - len(prompt.ids)
    if left < 1:
        raise CapacityError(
            f"the messages have {len(prompt.ids):,} tokens, but the context of '{served.name}' is "
            f"{served.loaded.context:,}: shorten them by {1 - left:,} tokens at least"
        )
    return given.pop() if given else min(usual, left)


def constraint_of(served: Served, form: Format | None) -> Constraint | None:
    """The compiled form of an answer.

    Raises:
        ConfigError: it cannot be compiled.
    """
    if form is None or isinstance(form, Text):
        return None
    return served.constraint(form.model_dump_json(by_alias=True), lambda: _compiled(served, form))


def _compiled(served: Served, form: Format) -> Constraint:
    tokenizer = served.loaded.tokenizer
    if isinstance(form, BySchema):
        return Constraint.schema(form.json_schema.schema_, tokenizer)
    if isinstance(form, ByExpression):
        return Constraint.regex(form.regex, tokenizer)
    if isinstance(form, ByChoice):
        return Constraint.choices(form.choices, tokenizer)
    if isinstance(form, ByGrammar):
        return Constraint(form.grammar, tokenizer, "the grammar")
    return Constraint.schema({"type": "object"}, tokenizer)


def check_form(form: Format | None, most: int) -> None:
    """Refuse a schema or grammar of more than `most` bytes before it is compiled.

    Raises:
        ApiError: it is larger.
    """
    size = 0 if form is None else len(form.model_dump_json().encode())
    if size > most:
        message = f"response_format has {size:,} bytes; at most {most:,} are compiled"
        raise ApiError(400, message, "too_large", "response_format")
