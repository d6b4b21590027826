"""Options that several verbs have."""

from typing import Annotated

import typer

Device = Annotated[str, typer.Option(help="cpu, or cuda for a GPU (docs/gpu.md)")]
Dtype = Annotated[
    str,
    typer.Option(help="what is computed in: auto (as the checkpoint is stored), float32, bfloat16, ..."),
]
