"""`handscroll finetune`: tune a model for a task on the rows of a table."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from handscroll.base.config import apply_override, read_recipe
from handscroll.base.errors import ConfigError
from handscroll.cli.options import Encoding, given_options
from handscroll.cli.screen import bar, error_screen, screen, table
from handscroll.cli.tables import Names, SkipBroken, SkipUnfit, given_columns, given_names
from handscroll.cli.train import Shown

BESIDE_RECIPE = {"task", "out", "set", "show", "plan"}  # what may stand beside a recipe


def finetune(
    context: typer.Context,
    task: Annotated[str, typer.Argument(help="The task (docs/finetune.md lists them), or a TOML recipe.")],
    model: Annotated[
        str | None, typer.Argument(help="A checkpoint folder, a GGUF file, a hub id, or an adapter to go on with.")
    ] = None,
    data: Annotated[list[str] | None, typer.Option(help="Training rows: CSV, TSV, JSON lines, Parquet, ...")] = None,
    valid: Annotated[list[str] | None, typer.Option(help="Held-out rows. [a tenth of --data]")] = None,
    test: Annotated[list[str] | None, typer.Option(help="Rows that are scored at the end.")] = None,
    second: Annotated[list[str] | None, typer.Option(help="Another data set of the task, scored at the end.")] = None,
    adapter: Annotated[str, typer.Option(help="Adapter folder over MODEL: lora tunes it further, others merge.")] = "",
    out: Annotated[Path | None, typer.Option(help="Run folder. [runs/TASK]")] = None,
    map_: Annotated[list[str] | None, typer.Option("--map", metavar="FIELD=COLUMN", help="Name a column.")] = None,
    names: Names = "",
    encoding: Encoding = "",
    skip_broken: SkipBroken = False,
    skip_unfit: SkipUnfit = False,
    way: Annotated[str, typer.Option(help="What is trained: lora, full, head, last.")] = "lora",
    layers: Annotated[int, typer.Option(help="--way last: how many layers.")] = 0,
    rank: Annotated[int, typer.Option(help="Rank of --way lora. An adapter keeps its own.")] = 16,
    epochs: Annotated[float, typer.Option(help="How often each example is learned from.")] = 3.0,
    steps: Annotated[int, typer.Option(help="Updates, in place of --epochs.")] = 0,
    batch: Annotated[int, typer.Option(help="Examples of an update; no more than there are.")] = 32,
    length: Annotated[int, typer.Option(help="Most tokens of an example. [the model's context]")] = 0,
    lr: Annotated[
        float | None, typer.Option(help="Learning rate. [by width; at 768: 5e-5, lora 5e-4, head 1e-3]")
    ] = None,
    precision: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    seed: Annotated[int, typer.Option(help="Seed of order, split and new weights.")] = 0,
    too_long: Annotated[str, typer.Option(help="Examples that are too long: refuse, or skip (counted).")] = "refuse",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Any setting of a recipe.")
    ] = None,
    show: Annotated[int, typer.Option(help="Print so many examples with what is trained marked, and stop.")] = 0,
    plan: Annotated[bool, typer.Option("--plan", help="Print what it would take, and stop.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Start even if it is not expected to fit.")] = False,
) -> None:
    """Tune MODEL for TASK. What it takes is printed first; nothing is cut; a killed run goes on where it stopped."""
    from handscroll.tasks.finetune import Options
    from handscroll.tasks.finetune import finetune as tune
    from handscroll.tasks.recipe import TuningRecipe

    if task.endswith(".toml"):
        if model is not None or data:
            raise ConfigError(f"{task} names the model and the data: leave MODEL and --data out, or use --set")
        if given := sorted(given_options(context) - BESIDE_RECIPE):
            raise ConfigError(f"{task} has its own settings: leave --{given[0]} out, or give --set TABLE.KEY=VALUE")
        recipe = TuningRecipe.parse(read_recipe(Path(task), set_ or ()), task)
    else:
        if model is None or not data:
            raise ConfigError("give a MODEL and its training rows: handscroll finetune TASK MODEL --data FILE")
        how = {"way": way, "layers": layers, "epochs": epochs, "steps": steps, "batch": batch, "length": length}
        how |= {"lr": lr, "precision": precision, "seed": seed, "force": force}
        ranked = "rank" in given_options(context)
        how["lora"] = {"rank": rank} if ranked else {}
        rows = {"train": tuple(data), "valid": tuple(valid or ()), "test": tuple(test or ())}
        more = {"second": tuple(second or ()), "columns": given_columns(map_ or ()), "too_long": too_long}
        rows |= more | {"names": given_names(names), "skip_broken": skip_broken, "skip_unfit": skip_unfit}
        rows |= {"encoding": encoding or None}
        values: dict[str, Any] = {"task": {"name": task}, "model": model, "data": rows, "tuning": how}
        values["adapter"] = adapter
        for override in set_ or ():
            apply_override(values, override)
        how = values["tuning"]
        if isinstance(how, dict):
            if ranked and how.get("way") != "lora":  # which --set may have changed
                raise ConfigError(f"--rank belongs to --way lora, not to --way {how.get('way')}: leave it out")
            if how.get("lora") == {}:
                how.pop("lora")
        recipe = TuningRecipe.parse(values, "finetune")
    folder = out or Path("runs") / (Path(task).stem if task.endswith(".toml") else task)
    with bar("tuning", None) as advance:
        shown = Shown(advance)
        options = Options(
            shown.record,
            shown.pulse,
            lambda what, total, done: advance(done, what, total),
            lambda text: screen().print(text),
            lambda steps: advance(0, "", steps),
            plan,
            show,
        )
        tuned = tune(recipe, folder, options)
    if plan or show:
        return
    if not tuned.finished:
        error_screen().print(f"stopped; the same command goes on from {folder}")
        raise typer.Exit(130)
    show_scores(tuned.scores)
    for name, said in [(name, said) for name, by in tuned.baselines.items() for said in by.items()]:
        screen().print(f"baseline, {name}: {_told(*said)}")
    screen().print(f"saved: {tuned.lm.source} (model card beside the weights, predictions in {folder})")
    screen().print(f"use it: handscroll predict {tuned.lm.source} FILE")


def show_scores(scores: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a table of scores with their intervals."""
    from handscroll.metrics.table import METRICS

    rows = [
        [name, METRICS[metric].said, f"{one.value:.4g}", one.interval, one.count]
        for name, by in scores.items()
        for metric, one in by.items()
    ]
    if rows:
        screen().print(table(("data", "metric", "score", "95 % interval", "examples"), rows))


def _told(system: str, scores: Mapping[str, Any]) -> str:
    """The deciding score of a baseline in a line."""
    from handscroll.metrics.table import METRICS

    metric, one = next(iter(scores.items()))
    return f"{system}, {METRICS[metric].said} {one.value:.4g} {one.interval}"


def register(app: typer.Typer) -> None:
    app.command()(finetune)
