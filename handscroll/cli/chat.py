"""`handscroll chat`: you and a plain language model write one text together, line by line."""

import sys
from typing import Annotated

import typer

from handscroll.base.errors import ConfigError
from handscroll.cli.options import Adapter, Device, Dtype, Plain, Temperature, TopP, given, say_defaults
from handscroll.cli.screen import error_screen


def chat(
    model: Annotated[str, typer.Argument(help="The model: a checkpoint folder, a GGUF file or a hub id.")],
    max_tokens: Annotated[int, typer.Option(help="Most new tokens in a reply.")] = 128,
    temperature: Temperature = None,
    top_p: TopP = None,
    plain: Plain = False,
    seed: Annotated[int, typer.Option(help="Seed of the sampling; equal seeds give equal text.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="End a reply before this text; repeatable.")] = None,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    adapter: Adapter = None,
    kv_budget: Annotated[str, typer.Option(help="Most bytes of keys and values; N% refers to the context.")] = "",
    kv_guard: Annotated[
        float | None, typer.Option(help="Largest mean KL divergence for --kv-budget, in nats. [0.01]")
    ] = None,
) -> None:
    """Append each line of standard input to the text and print how MODEL continues it; nothing is read twice."""
    from handscroll.generate.budget import GUARD
    from handscroll.lm import load

    if kv_guard is not None and not kv_budget:
        raise ConfigError("--kv-guard belongs to --kv-budget; add it")
    lm = load(model, device, dtype, adapter=adapter)
    notes = error_screen()
    guard = GUARD if kv_guard is None else kv_guard
    talk = lm.conversation(lambda note: notes.print(note, markup=False), kv_budget or None, guard)
    settings = given(
        max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed, stop=tuple(stop or ()), plain=plain
    )
    sampling = lm.sampling(**settings)
    say_defaults(lm, settings)
    for line in sys.stdin:
        for piece in talk.say(line, sampling):
            typer.echo(piece, nl=False)
            sys.stdout.flush()
        typer.echo("")


def register(app: typer.Typer) -> None:
    app.command()(chat)
