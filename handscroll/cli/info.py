"""`handscroll info`: what a checkpoint is, before anything is spent on it."""

from pathlib import Path
from typing import Annotated

import typer

from handscroll.cli.screen import screen


def info(
    model: Annotated[str, typer.Argument(help="checkpoint folder, GGUF file or hub id")],
) -> None:
    """Show family, parameters, context, position method and bytes per token of KV cache."""
    from handscroll.models.describe import facts
    from handscroll.models.weights import locate

    for name, value in facts(Path(locate(model))):
        screen().print(f"{name:<22} {value}", markup=False)


def register(app: typer.Typer) -> None:
    app.command()(info)
