"""`handscroll predict`: what a tuned model says of the rows of a table."""

from pathlib import Path
from typing import Annotated, Any

import typer

from handscroll.base.config import apply_override
from handscroll.base.errors import ConfigError
from handscroll.cli.finetune import pairs, show_scores
from handscroll.cli.screen import bar, screen


def predict(
    model: Annotated[str, typer.Argument(help="A model that was tuned for a task, or with --task any model.")],
    data: Annotated[list[str], typer.Argument(help="Rows: CSV, TSV, JSON lines, Parquet, ...")],
    out: Annotated[Path | None, typer.Option(help="File for the predictions, JSON lines. [printed]")] = None,
    task: Annotated[str, typer.Option(help="The task, for a model that was not tuned for one.")] = "",
    map_: Annotated[list[str] | None, typer.Option("--map", metavar="FIELD=COLUMN", help="Name a column.")] = None,
    names: Annotated[str, typer.Option(help="Columns of tables without a head line, such as label,text.")] = "",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="task.KEY=VALUE", help="Setting of --task.")
    ] = None,
) -> None:
    """Say of each row of DATA what MODEL says, with scores where the rows hold the truth."""
    from handscroll.tasks.finetune import lines_of, write_predictions
    from handscroll.tasks.predict import load_tuned
    from handscroll.tasks.predict import predict as say
    from handscroll.tasks.recipe import TaskData

    if set_ and not task:
        raise ConfigError("--set changes the settings of --task; a tuned model brings its own")
    if out is not None and out.exists():
        raise ConfigError(f"--out {out} exists; choose a new file, so that nothing is overwritten")
    values: dict[str, Any] = {"task": {"name": task}}
    for override in set_ or ():
        apply_override(values, override)
    lm, settled = load_tuned(model, values["task"] if task else None)
    rows = {"train": tuple(data), "columns": pairs(map_ or ())}
    rows["names"] = tuple(name for name in names.split(",") if name)
    with bar("predicting", None) as advance:
        found = say(lm, settled, TaskData.parse(rows, "predict"), lambda done: advance(done))
    screen().print(f"{found.part.account}\ncolumns: {found.part.columns}", markup=False)
    if out is None:
        for line in lines_of(settled, found.part.examples, found.predictions):
            screen().print(line, markup=False)
    else:
        write_predictions(out, settled, found.part.examples, found.predictions)
        screen().print(f"written: {out}", markup=False)
    show_scores({"rows": found.scores} if found.scores else {})


def register(app: typer.Typer) -> None:
    app.command()(predict)
