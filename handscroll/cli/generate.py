"""`handscroll generate`: continue a prompt, streaming to the terminal."""

import sys
from typing import Annotated, Any

import typer

from handscroll.base.errors import DataError
from handscroll.cli.screen import error_screen


def generate(
    model: Annotated[str, typer.Argument(help="checkpoint folder or hub id")],
    prompt: Annotated[str, typer.Option(help="the prompt, or - for standard input")],
    max_tokens: Annotated[int, typer.Option(help="most new tokens")] = 256,
    temperature: Annotated[float, typer.Option(help="0: greedy")] = 0.0,
    top_k: Annotated[int, typer.Option(help="keep the k likeliest tokens; 0: all")] = 0,
    top_p: Annotated[float, typer.Option(help="keep the likeliest tokens up to this mass")] = 1.0,
    min_p: Annotated[float, typer.Option(help="keep tokens at least this share as likely as the likeliest")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="above 1: seen tokens become less likely")] = 1.0,
    seed: Annotated[int, typer.Option(help="equal seeds give equal text")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="end before this text (repeatable)")] = None,
    beyond: Annotated[bool, typer.Option("--beyond", help="allow more tokens than the model's context")] = False,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16")] = "float32",
    cache: Annotated[str, typer.Option(help="what is kept, and where (docs/generate.md)")] = "full",
    weights: Annotated[str, typer.Option(help="int8 or int4: read rounded weights (approximate)")] = "",
) -> None:
    """Continue --prompt with MODEL; only the new text goes to standard output."""
    from handscroll.generate.policies.table import exact
    from handscroll.lm import load

    text = sys.stdin.read() if prompt == "-" else prompt
    if prompt == "-" and not text:
        raise DataError("--prompt -: standard input is empty")
    settings: dict[str, Any] = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
        "stop": tuple(stop or ()),
    }
    lm = load(model, dtype=dtype, weights=weights)
    approximate = [f"--cache {cache}"] * (not exact(cache)) + [f"--weights {weights}"] * bool(weights)
    reports: list[str] = []
    pieces = lm.generate(text, stream=True, beyond=beyond, policy=cache, on_report=reports.append, **settings)
    if approximate:
        error_screen().print(f"approximate: {' and '.join(approximate)} (docs/generate.md says how far)", markup=False)
    for piece in pieces:
        typer.echo(piece, nl=False)
        sys.stdout.flush()
    typer.echo("")
    for report in reports:
        error_screen().print(f"--cache {cache}: {report}", markup=False)


def register(app: typer.Typer) -> None:
    app.command()(generate)
