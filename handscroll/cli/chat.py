"""`handscroll chat`: talk with an instruct model by its chat template, or write a text with a base model."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from handscroll.base.errors import ConfigError, DataError
from handscroll.cli.options import (
    Adapter,
    Device,
    Dtype,
    Guard,
    Model,
    Plain,
    Temperature,
    TopP,
    Weights,
    given,
    one_cache,
    say_defaults,
    say_weights,
)
from handscroll.cli.read import OwnerOption, StoreOption
from handscroll.cli.screen import error_screen, on_terminal

if TYPE_CHECKING:
    from handscroll.cli.session import Session
    from handscroll.lm import LM

ANSWER, LINE = 512, 128  # most new tokens of an answer, and of a continued line, unless given


def chat(
    model: Model,
    system: Annotated[str, typer.Option(help="System prompt: what the assistant is told beforehand.")] = "",
    load_file: Annotated[Path | None, typer.Option("--load", help="Go on with a conversation of /save.")] = None,
    reading: Annotated[str, typer.Option(help="Talk about this saved reading (handscroll read).")] = "",
    store: StoreOption = None,
    owner: OwnerOption = "",
    template: Annotated[str, typer.Option(help="Name of one of the model's templates, or a Jinja file.")] = "",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Variable of the template: enable_thinking=false; repeatable.")
    ] = None,
    raw: Annotated[
        bool,
        typer.Option("--raw", help="No template: the model continues your lines as one text."),
    ] = False,
    max_tokens: Annotated[int | None, typer.Option(help="Most new tokens of an answer. [512, with --raw 128]")] = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    plain: Plain = False,
    seed: Annotated[int, typer.Option(help="Seed of the sampling; equal seeds give equal text.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="End a reply before this text; repeatable.")] = None,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    adapter: Adapter = None,
    weights: Weights = "",
    kv_budget: Annotated[str, typer.Option(help="Most bytes of keys and values; N% refers to the context.")] = "",
    kv_guard: Guard = None,
) -> None:
    """Talk with MODEL: a line is a message, /help lists the commands. What was read is not read again."""
    from handscroll.cli.session import typed
    from handscroll.generate.budget import GUARD
    from handscroll.lm import load

    one_cache("", kv_budget, kv_guard)
    used = [
        name
        for name, value in (
            ("--system", system),
            ("--load", load_file),
            ("--reading", reading),
            ("--template", template),
            ("--set", set_),
        )
        if value
    ]
    if raw and used:
        raise ConfigError(
            f"--raw uses no chat template, and {' and '.join(used)} need one: leave out --raw, or {' and '.join(used)}"
        )
    lm = load(model, device, dtype, weights, adapter)
    lm.model.spec.require("a chat", forward=True, head=True)
    if not raw and not used and not lm.tokenizer.settings.get("chat_template"):
        error_screen().print(f"{model} has no chat template: it continues your lines as one text")
        raw = True
    say_weights(weights)
    limit = max_tokens if max_tokens is not None else LINE if raw else ANSWER
    settings = given(
        max_tokens=limit, temperature=temperature, top_p=top_p, seed=seed, stop=tuple(stop or ()), plain=plain
    )
    guard = GUARD if kv_guard is None else kv_guard
    if raw:
        _continued(lm, settings, kv_budget, guard)
        return
    session = _session(lm, settings, (template, kv_budget, guard), reading, (store, owner))
    _begin(session, system, load_file, set_ or [])
    say_defaults(lm, settings)
    if on_terminal():
        error_screen().print("/help lists the commands; Ctrl-D leaves.")
    session.run(typed())


def _session(
    lm: "LM", settings: dict, how: tuple[str, str, float], reading: str, where: tuple[Path | None, str]
) -> "Session":
    """A chat, over a saved reading if one is named."""
    from datetime import datetime

    from handscroll.cache.reading.store import Store
    from handscroll.cache.table import kind_of
    from handscroll.cli.session import Session, note
    from handscroll.generate.ask import named
    from handscroll.text.encodings import decode

    template, kv_budget, guard = how
    source = decode(Path(template).read_bytes(), template)[0] if Path(template).is_file() else template
    store = Store(*where) if reading else None
    chat = lm.chatting(source, kv_budget=kv_budget or None, kv_guard=guard, store=store)
    chat.on_note = chat.talk.on_note = note
    text = ""
    if store is not None:
        about, _ = named(lm.model, lm.tokenizer, store, reading)
        if not kind_of(about.identity.policy).exact:
            raise ConfigError(
                f"'{reading}' is kept in '{about.identity.policy}', which is approximate; a chat goes on from exact "
                "readings only: ask about it with handscroll ask, or read it again without --cache"
            )
        document = store.document(reading)
        if document is None:
            raise ConfigError(f"'{reading}' was read as plain text (--raw); ask about it with handscroll ask")
        text, chat.now = document.text, datetime.fromtimestamp(document.when)
    return Session(chat, lm.sampling(**settings), reading=text)


def _begin(session: "Session", system: str, load_file: Path | None, variables: list[str]) -> None:
    """What stands before the first message."""
    from handscroll.cli.session import load_messages, variable

    if load_file is not None:
        session.messages = load_messages(load_file)
        session.files.add(load_file.resolve())
    if system:
        if session.messages and session.messages[0]["role"] == "system":
            raise DataError(f"{load_file} has a system prompt of its own: leave out --system")
        session.messages.insert(0, {"role": "system", "content": system})
    session.begun = int(bool(session.messages) and session.messages[0]["role"] == "system")
    for pair in variables:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(f"--set {pair}: write NAME=VALUE, such as enable_thinking=false")
        session.variables[name] = variable(value)


def _continued(lm: "LM", settings: dict, kv_budget: str, guard: float) -> None:
    """Append each line to one text and print how the model continues it."""
    from handscroll.cli.session import note, typed

    talk = lm.conversation(note, kv_budget or None, guard)
    sampling = lm.sampling(**settings)
    say_defaults(lm, settings)
    for line in typed():
        for piece in talk.say(line if line.endswith("\n") else f"{line}\n", sampling):
            typer.echo(piece, nl=False)
            sys.stdout.flush()
        typer.echo("")


def register(app: typer.Typer) -> None:
    app.command()(chat)
