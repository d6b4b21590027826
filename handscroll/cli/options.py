"""Options that several verbs share."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from handscroll.cli.screen import error_screen

if TYPE_CHECKING:
    from handscroll.lm import LM

Device = Annotated[str, typer.Option(help="Device: cpu, or cuda for a GPU (docs/gpu.md).")]
Dtype = Annotated[
    str,
    typer.Option(help="Dtype of the computation: auto (as the checkpoint is stored), float32, bfloat16, ..."),
]
Temperature = Annotated[
    float | None, typer.Option(help="Sampling temperature; 0 is greedy. [the checkpoint's, or greedy]")
]
TopP = Annotated[float | None, typer.Option(help="Keep the likeliest tokens up to this probability mass.")]
Plain = Annotated[
    bool, typer.Option("--plain", help="Leave out the settings that the checkpoint recommends (docs/generate.md).")
]


def given(**options: Any) -> Any:
    """The options that were given, as settings; the others are left to the checkpoint."""
    return {name: value for name, value in options.items() if value is not None}


def say_defaults(lm: "LM", settings: Any) -> None:
    """Name the settings that come from the checkpoint, on standard error."""
    from handscroll.generate.defaults import told

    if taken := lm.defaults.taken(settings):
        error_screen().print(f"as the checkpoint recommends: {told(taken)} (--plain leaves it out)", markup=False)
