"""`handscroll export`: write a checkpoint as a GGUF file."""

from pathlib import Path
from typing import Annotated

import typer

from handscroll.base.errors import ConfigError
from handscroll.cli.screen import screen


def export(
    model: Annotated[str, typer.Argument(help="The model: a checkpoint folder, a GGUF file or a hub id.")],
    out: Annotated[Path, typer.Argument(help="The GGUF file to write; it must not exist.")],
    kind: Annotated[str, typer.Option("--type", help="Format of the matrices: f32, f16, bf16, q8_0 or q4_0.")] = "f16",
) -> None:
    """Write MODEL as a GGUF file, which llama.cpp and this package read."""
    from handscroll.lm import load

    if out.exists():
        raise ConfigError(f"{out} exists; give a new name, so that nothing is overwritten")
    load(model, weights="float").export_gguf(out, kind)
    screen().print(f"written: {out} ({out.stat().st_size / 1e6:,.1f} MB)", markup=False)


def register(app: typer.Typer) -> None:
    app.command()(export)
