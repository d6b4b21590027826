"""`ChatTemplate`: the Jinja template of a model turns messages into one text, in a sandbox, as `transformers` does it.

A template comes with a checkpoint, so it is code of a stranger. It runs in Jinja's sandbox over plain copies of the
messages: it can read them, write text and refuse them, and nothing else.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from handscroll.base.errors import ConfigError, DataError, nearest

DEFAULT, TOOLS = "default", "tool_use"  # the names of the usual template, and of the one for messages with tools
MOST = 1 << 26  # characters that a template may write, and the longest text or list that it may multiply
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

    Limits: the sandbox bounds what a template can reach and how much it writes, not how long it takes.
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
        written: list[str] = []
        room = MOST
        try:
            for piece in _compiled(self.source).generate(**given):
                written.append(piece)
                room -= len(piece)
                if room < 0:
                    raise jinja2.exceptions.SecurityError(f"it writes more than {MOST:,} characters")
        except _Refusal as error:
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


class _Refusal(jinja2.TemplateError):
    """`raise_exception` of a template."""


class _Generation(Extension):
    """`{% generation %}` ... `{% endgeneration %}`: marks what the assistant wrote, and writes it."""

    tags = {"generation"}  # noqa: RUF012  (the library declares it so)

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

    def _written(self, caller: Any) -> str:
        return caller()


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, which also refuses products and powers that would fill the memory."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        texts = [side for side in (left, right) if isinstance(side, str | list | tuple)]
        sizes = [len(side) if side in texts else abs(side) for side in (left, right)]
        if (operator == "**" and sizes[1] > 64) or (texts and sizes[0] * sizes[1] > MOST):
            raise jinja2.exceptions.SecurityError(f"{sizes[0]} {operator} {sizes[1]} is too large")
        return super().call_binop(context, operator, left, right)


class _Namespace(jinja2.utils.Namespace):
    """A namespace without names that begin with an underscore: they lead out of the sandbox."""

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace cannot hold '{name}'")
        super().__setitem__(name, value)


def _namespace(*args: Any, **kwargs: Any) -> _Namespace:
    made = _Namespace()
    for name, value in dict(*args, **kwargs).items():
        made[name] = value
    return made


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _refuse(message: str) -> None:
    raise _Refusal(str(message))


def _json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON as models were trained with it: Jinja's own filter writes `<` as `\\u003c` for web pages."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@lru_cache(maxsize=16)
def _compiled(source: str) -> jinja2.Template:
    made = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"])
    made.filters["tojson"] = _json
    made.globals.update(raise_exception=_refuse, namespace=_namespace, dict=_dict)
    return made.from_string(source)
