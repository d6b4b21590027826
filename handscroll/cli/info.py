"""`handscroll info`: what a checkpoint is, before anything is spent on it, and which kernels would run it."""

from pathlib import Path
from typing import Annotated

import typer

from handscroll.cli.screen import screen


def info(
    model: Annotated[str, typer.Argument(help="checkpoint folder, GGUF file or hub id; --kernels needs none")] = "",
    kernels: Annotated[bool, typer.Option("--kernels", help="which kernels run here, and why")] = False,
    dtype: Annotated[str, typer.Option(help="with --kernels: what the model is loaded in")] = "auto",
    device: Annotated[str, typer.Option(help="with --kernels: where it runs")] = "cpu",
    weights: Annotated[str, typer.Option(help="with --kernels: as generate's")] = "",
) -> None:
    """Show family, parameters, context, position method and bytes per token of KV cache."""
    from handscroll.base.errors import ConfigError
    from handscroll.models.describe import facts
    from handscroll.models.weights import locate

    if kernels:
        _kernels(model, dtype, device, weights)
        return
    if not model:
        raise ConfigError("no model was given: name a checkpoint folder, or ask for --kernels alone")
    for name, value in facts(Path(locate(model))):
        screen().print(f"{name:<22} {value}", markup=False)


def _kernels(model: str, dtype: str, device: str, weights: str) -> None:
    from handscroll import lm
    from handscroll.evaluate.kernels import lines, usual
    from handscroll.nn.quantised import quantise

    if model:
        loaded = lm.load(model, device, dtype, weights).model
    else:
        loaded = usual(lm.DTYPES["bfloat16" if dtype == "auto" else dtype]).to(device)
        loaded = quantise(loaded, weights) if weights else loaded
    for line in lines(loaded):  # type: ignore[arg-type]
        screen().print(line, markup=False)


def register(app: typer.Typer) -> None:
    app.command()(info)
