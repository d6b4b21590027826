"""Options that several verbs share."""

from typing import Annotated

import typer

Device = Annotated[str, typer.Option(help="Device: cpu, or cuda for a GPU (docs/gpu.md).")]
Dtype = Annotated[
    str,
    typer.Option(help="Dtype of the computation: auto (as the checkpoint is stored), float32, bfloat16, ..."),
]
