"""`ChatTemplate`: the Jinja template of a model turns messages into one text, in a sandbox, as `transformers` does it.

A template comes with a checkpoint, so it is code of a stranger. It runs in a sandbox (`sandbox.py`) over plain copies
of the messages: it can read them, write text and refuse them, and nothing else.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2

from handscroll.base.errors import ConfigError, DataError, nearest
from handscroll.text.chat.sandbox import BOUNDS, MOST, Bounds, Refusal, compiled

DEFAULT, TOOLS = "default", "tool_use"  # the names of the usual template, and of the one for messages with tools
# What wrong messages or a wrong template raise while a template is compiled or rendered.
_FAULTS = (
    jinja2.TemplateError,
    SyntaxError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    MemoryError,
)


class ChatTemplate:
    """A chat template with the special tokens that it may name (`bos_token`, `eos_token`, ...).

    Limits: the sandbox bounds what a template can reach, how long it takes and how much it writes. Between its steps a
    single operation on a long text or list goes on to its end, which may take some seconds.
    """

    def __init__(self, source: str, tokens: Mapping[str, str] | None = None):
        self.source = source
        self.tokens = dict(tokens or {})

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        answer: bool = True,
        now: datetime | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of `messages`; with `answer` it ends where the assistant's answer begins.

        `variables` are what else the template reads: `tools`, `documents`, `enable_thinking` and the like. `now` is the
        time that it may write; the present unless given.

        Raises:
            DataError: the template refuses the messages (a role or an order that it does not have).
            ConfigError: the template cannot be compiled, or fails on these messages.
        """
        moment = now or datetime.now()
        given = {"tools": None, "documents": None, **self.tokens, **(variables or {})}
        given |= {"messages": list(messages), "add_generation_prompt": answer, "strftime_now": moment.strftime}
        given[BOUNDS] = Bounds()
        written: list[str] = []
        room = MOST
        try:
            for piece in compiled(self.source).generate(**given):
                written.append(piece)
                room -= len(piece)
                if room < 0:
                    raise jinja2.exceptions.SecurityError(f"it writes more than {MOST:,} characters")
        except Refusal as error:
            raise DataError(f"the model's chat template refuses these messages: {error.message}") from None
        except _FAULTS as error:
            raise ConfigError(
                f"the model's chat template fails on these messages ({type(error).__name__}: {error}); "
                "change the messages, or give another template"
            ) from None
        return "".join(written)


def template_in(settings: Mapping[str, Any], name: str = "", tools: bool = False) -> str | None:
    """The template named `name` in the settings of a tokenizer; without a name the one for `tools`, or the usual one.

    Returns None if the settings hold no template at all.

    Raises:
        ConfigError: there is no template of that name, or several and none is the usual one.
    """
    found = named_templates(settings)
    if not found and not name:
        return None
    wanted = name or (TOOLS if tools and TOOLS in found else DEFAULT)
    if wanted not in found:
        have = nearest(wanted, found) if found else "the model has none"
        raise ConfigError(f"there is no chat template '{wanted}': {have}; name one of them")
    return found[wanted]


def named_templates(settings: Mapping[str, Any]) -> dict[str, str]:
    """All templates of `tokenizer_config.json` by name: one text, or a list of names and texts.

    Raises:
        ConfigError: `chat_template` is neither.
    """
    value = settings.get("chat_template")
    if value is None:
        return {}
    if isinstance(value, str):
        return {DEFAULT: value}
    pairs = [(one.get("name"), one.get("template")) for one in value] if _listed(value) else []
    if isinstance(value, Mapping):
        pairs = list(value.items())
    if not pairs or not all(isinstance(part, str) for pair in pairs for part in pair):
        raise ConfigError("chat_template of the tokenizer is neither a text nor a list of names and templates")
    return dict(pairs)


def _listed(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, Mapping) for one in value)
