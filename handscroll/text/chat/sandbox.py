"""The sandbox of chat templates: Jinja's own, with bounds on the time and the memory that one rendering takes.

Every loop, call and growing text passes through here. What Jinja leaves open would stop a program for hours with a
hundred letters: loops in loops, macros that call themselves twice, texts that double, powers of powers.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, wraps
from time import thread_time
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MOST = 1 << 26  # characters that a template may write, and the longest text or list that it may make
SECONDS = 5.0  # of processor time for one rendering; conversations of a million tokens take less than one
SOURCE = 1 << 18  # characters of a template; those of large families have some 20,000
_BITS = 1 << 16  # of a whole number that is made of others
BOUNDS = " bounds"  # a variable that no template can name
_STEPS, _HELD, _JOINED = " steps", " held", " joined"
# Fields of a format: their widths and precisions, and whether an argument tells them (a star, braces in braces).
_PERCENT = re.compile(r"%(?:\([^)]*\))?[-+ #0]*(\*|\d*)(?:\.(\*|\d*))?[hlL]?[a-zA-Z]")
_BRACES = re.compile(r"\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}")
_NUMBER = re.compile(r"\d+")
# What makes a text or list as long as a number says; the second kind once for every character of a text.
_WIDE, _WIDER = ("center", "ljust", "rjust", "zfill", "batch", "slice"), ("indent", "expandtabs")


class Bounds:
    """What one rendering may still use: processor time of this thread, and characters written into any text."""

    def __init__(self) -> None:
        self.end = thread_time() + SECONDS
        self.room = 4 * MOST  # what a macro writes is written again by who calls it

    def step(self) -> None:
        if thread_time() > self.end:
            raise SecurityError(f"it takes more than {SECONDS:g} s of processor time")

    def write(self, count: int) -> None:
        self.room -= count
        if self.room < 0:
            raise SecurityError(f"it writes more than {4 * MOST:,} characters in all")


class Refusal(jinja2.TemplateError):
    """`raise_exception` of a template."""


@lru_cache(maxsize=16)
def compiled(source: str) -> jinja2.Template:
    """The template, ready to be rendered with a `Bounds` under the name `BOUNDS`.

    Raises:
        jinja2.TemplateError: it is no template. SecurityError: it is too long.
    """
    if len(source) > SOURCE:
        raise SecurityError(f"it has {len(source):,} characters, and at most {SOURCE:,} are read")
    made = _Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, "jinja2.ext.loopcontrols"],
        finalize=_written,
        optimized=False,  # what is computed while a template is compiled is not bounded
    )
    made.filters["tojson"] = _json
    for name in (*_WIDE, *_WIDER, "replace", "join", "format", "string", "tojson"):
        if name in made.filters:
            made.filters[name] = _affordable(name, made.filters[name])
    made.filters.update({_STEPS: _steps, _HELD: _held, _JOINED: _joined})
    made.globals.update(raise_exception=_refuse, namespace=_namespace, dict=_dict)
    del made.globals["lipsum"]  # paragraphs of nonsense, as many as one likes
    return made.from_string(source)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, which also counts steps and refuses what would fill the memory."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _Watched().visit(super()._parse(source, name, filename))

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        method = getattr(obj, "__wrapped__", obj)  # the sandbox has wrapped `format`
        if isinstance(text := getattr(method, "__self__", None), str):
            _afford(method.__name__, (text, *args, *kwargs.values()))
        return _held(context, super().call(context, obj, *args, **kwargs))

    def _filter_test_common(self, name: Any, value: Any, args: Any, kwargs: Any, context: Any, *rest: Any) -> Any:
        if context is not None:  # `map`, `select` and their like come through here with every value
            context.parent[BOUNDS].step()
        return super()._filter_test_common(name, value, args, kwargs, context, *rest)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        texts = [len(side) for side in (left, right) if isinstance(side, str | list | tuple)]
        numbers = [side for side in (left, right) if isinstance(side, int)]
        bits = [number.bit_length() for number in numbers]
        if operator == "%" and isinstance(left, str):
            _afford("format", (left, *(right if isinstance(right, tuple) else (right,))))
        large = False
        if operator == "+" and len(texts) == 2:
            large = sum(texts) > MOST
        elif operator == "*":
            large = sum(bits) > _BITS if len(bits) == 2 else bool(texts and bits) and texts[0] * abs(numbers[0]) > MOST
        elif operator == "**" and len(bits) == 2:
            large = bits[0] * abs(numbers[1]) > _BITS
        if large:
            raise SecurityError(f"the result of {operator} is too large")
        return super().call_binop(context, operator, left, right)


class _Watched(NodeTransformer):
    """Puts a step into every loop, and a step and a look at the length behind what may make or search a long text."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = _filter(node.iter, _STEPS, node)
        return node

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> nodes.AssignBlock:
        self.generic_visit(node)
        node.filter = _filter(node.filter, _HELD, node)
        return node

    def _held(self, node: nodes.Expr) -> nodes.Filter:
        return _filter(self.generic_visit(node), _HELD, node)

    visit_Filter = visit_Compare = visit_Getitem = _held

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes, lineno=node.lineno), _JOINED, node)


def _filter(inner: Any, name: str, place: nodes.Node) -> nodes.Filter:
    return nodes.Filter(inner, name, [], [], None, None, lineno=place.lineno)


class _Generation(Extension):
    """`{% generation %}` ... `{% endgeneration %}`: marks what the assistant wrote, and writes it."""

    tags = {"generation"}  # noqa: RUF012  (the library declares it so)

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

    def _written(self, caller: Any) -> str:
        return caller()


class _Namespace(jinja2.utils.Namespace):
    """A namespace without names that begin with an underscore: they lead out of the sandbox."""

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise SecurityError(f"a namespace cannot hold '{name}'")
        super().__setitem__(name, value)


@jinja2.pass_context
def _steps(context: Context, values: Iterable[Any]) -> Iterable[Any]:
    """The values of a loop; a list that is short enough stays one, since loops ask for its length."""
    bounds = context.parent[BOUNDS]
    bounds.step()
    return _Steps(values, bounds) if hasattr(values, "__len__") else _stepping(values, bounds)


def _stepping(values: Iterable[Any], bounds: Bounds) -> Iterator[Any]:
    for value in values:
        bounds.step()
        yield value


class _Steps:
    """Values with a length, each of which is a step."""

    def __init__(self, values: Any, bounds: Bounds):
        self._values, self._bounds = values, bounds

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Any]:
        return _stepping(self._values, self._bounds)


@jinja2.pass_context
def _written(context: Context, value: Any) -> Any:
    context.parent[BOUNDS].write(len(value) if isinstance(value, str) else _measured(value))
    return value


@jinja2.pass_context
def _joined(context: Context, values: list[Any]) -> str:
    """What `~` makes of its operands."""
    context.parent[BOUNDS].step()
    _measured(values)
    return "".join(map(str, values))


@jinja2.pass_context
def _held(context: Context, value: Any) -> Any:
    context.parent[BOUNDS].step()
    if isinstance(value, str | list | tuple) and len(value) > MOST:
        raise SecurityError(f"it makes a text or list longer than {MOST:,}")
    return value


def _measured(value: Any) -> int:
    """About how many characters a value is as a text.

    Raises:
        SecurityError: too many.
    """
    size, left = 0, [value]
    while left:
        one = left.pop()
        size += len(one) if isinstance(one, str) else 1
        if isinstance(one, dict):
            left += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple):
            left += one
        if size > MOST:
            raise SecurityError(f"it makes a text longer than {MOST:,}")
    return size


def _affordable(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        if name == "join":  # what a loop makes is not there yet, and may be used once
            at = next(at for at, one in enumerate(args) if not isinstance(one, nodes.EvalContext))
            args = (*args[:at], list(_counted(args[at])), *args[at + 1 :])
        _afford(name, (*args, *kwargs.values()))
        return function(*args, **kwargs)

    return bounded


def _counted(values: Iterable[Any]) -> Iterator[Any]:
    size = 0
    for one in values:
        size += _measured(one)
        if size > MOST:
            raise SecurityError(f"join would make a text longer than {MOST:,}")
        yield one


def _afford(name: str, values: tuple[Any, ...]) -> None:
    """Refuse a filter or a method of a text whose result would be too long, before it is made.

    Raises:
        SecurityError: it would.
    """
    texts = [value for value in values if isinstance(value, str | list | tuple)]
    width = max((abs(value) for value in values if isinstance(value, int)), default=0)
    size = 0
    if name in _WIDE:
        size = width
    elif name in _WIDER and texts:
        size = len(texts[0]) * max(width, *map(len, texts[1:]), 0)
    elif name == "join" and len(texts) > 1:
        size = len(texts[0]) * len(texts[1]) + sum(_measured(one) for one in texts)
    elif name in ("string", "tojson"):
        size = sum(_measured(one) for one in values if isinstance(one, str | list | tuple | dict))
    elif name == "replace" and len(texts) > 2 and isinstance(texts[0], str):
        size = texts[0].count(str(texts[1])) * len(texts[2])
    elif name in ("format", "format_map") and texts and isinstance(texts[0], str):
        longest = max((_measured(one) for one in values[1:] if isinstance(one, str | list | tuple | dict)), default=0)
        size = _formatted(texts[0], width, longest)
    if size > MOST:
        raise SecurityError(f"{name} would make a text or list longer than {MOST:,}")


def _formatted(text: str, width: int, longest: int) -> int:
    """How many characters a format makes at most, from the largest number and the longest text among its values."""
    size = len(text)
    for field in _PERCENT.finditer(text):
        size += longest + sum(width if told == "*" else _number(told) for told in field.groups() if told)
    for field in _BRACES.finditer(text):
        inner = field[0][1:-1]
        told = sum(_number(digits) for digits in _NUMBER.findall(inner.partition(":")[2]))
        size += longest + told + (width if "{" in inner else 0)
    return size


def _number(digits: str) -> int:
    return int(digits) if len(digits) < 10 else MOST + 1


def _namespace(*args: Any, **kwargs: Any) -> _Namespace:
    made = _Namespace()
    for name, value in dict(*args, **kwargs).items():
        made[name] = value
    return made


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _refuse(message: str) -> None:
    raise Refusal(str(message))


def _json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON as models were trained with it: Jinja's own filter writes `<` as `\\u003c` for web pages."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
