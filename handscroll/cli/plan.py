"""`handscroll plan`: predict memory, disk and time of a run before it starts."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from handscroll.cli.options import Dtype
from handscroll.cli.screen import error_screen, screen, table

app = typer.Typer(
    help="Predict memory, disk and time of a run, and list other settings that fit.", no_args_is_help=True
)

Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Override a key of the recipe.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")]
Probe = Annotated[bool, typer.Option("--probe", help="Measure this machine again (about half a minute).")]


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="The TOML recipe.")],
    set_: Set = None,
    as_json: Json = False,
    probe: Probe = False,
) -> None:
    """Plan the training run of RECIPE on this machine."""
    from handscroll.base.config import read_recipe
    from handscroll.plan.workloads import recipe_workloads
    from handscroll.train.recipe import Recipe

    settings = Recipe.parse(read_recipe(recipe, set_ or ()), str(recipe))
    _here(recipe_workloads(settings), as_json, probe)


@app.command()
def extend(
    model: Annotated[str, typer.Argument(help="The model: a checkpoint folder, a GGUF file or a hub id.")],
    to: Annotated[int, typer.Option(help="Tokens of the new context.")],
    rows: Annotated[int, typer.Option(help="Rows per tuning step.")] = 4,
    steps: Annotated[int, typer.Option(help="Number of tuning steps.")] = 100,
    lora: Annotated[int, typer.Option(help="Rank of the LoRA tuning; 0 tunes all weights.")] = 0,
    precision: Annotated[str, typer.Option(help="Precision of the tuning: float32 or bfloat16.")] = "float32",
    as_json: Json = False,
    probe: Probe = False,
) -> None:
    """Plan the tuning of MODEL on rows of --to tokens."""
    from handscroll.plan.workloads import checkpoint_workload

    values = {"kind": "extend", "length": to, "micro": rows, "steps": steps, "packed": True, "precision": precision}
    _here([checkpoint_workload(model, values, lora)], as_json, probe)


@app.command()
def generate(
    model: Annotated[str, typer.Argument(help="The model: a checkpoint folder, a GGUF file or a hub id.")],
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of the prompt.")],
    max_tokens: Annotated[int, typer.Option(help="Most new tokens.")] = 256,
    dtype: Dtype = "auto",
    cache: Annotated[str, typer.Option(help="Cache policy, as in generate.")] = "full",
    as_json: Json = False,
    probe: Probe = False,
) -> None:
    """Plan how MODEL continues a prompt."""
    from handscroll.cache.table import footprint
    from handscroll.models.weights import locate, read_config
    from handscroll.plan.workloads import cache_itemsize, checkpoint_workload, precision_of

    _, config = read_config(locate(model))
    dtype = precision_of(model, dtype)
    kept = footprint(cache, config, cache_itemsize(model, dtype)).model_dump()
    values = {"kind": "generate", "cache": kept, "length": prompt_tokens, "new": max_tokens, "precision": dtype}
    _here([checkpoint_workload(model, values)], as_json, probe)


@app.command()
def serve(
    model: Annotated[str, typer.Argument(help="The model: a checkpoint folder, a GGUF file or a hub id.")],
    context: Annotated[int, typer.Option(help="Tokens of a conversation.")],
    slots: Annotated[int, typer.Option(help="Number of simultaneous conversations.")] = 1,
    dtype: Dtype = "auto",
    as_json: Json = False,
    probe: Probe = False,
) -> None:
    """Plan a server of MODEL with --slots conversations of --context tokens."""
    from handscroll.plan.workloads import checkpoint_workload, precision_of

    values = {"kind": "serve", "length": context, "rows": slots, "precision": precision_of(model, dtype)}
    _here([checkpoint_workload(model, values)], as_json, probe)


def _here(workloads: Any, as_json: bool, probe: bool) -> None:
    """Make the plan for this machine and show it."""
    from handscroll.plan.calibration import load_calibration
    from handscroll.plan.machine import this_machine
    from handscroll.plan.show import plan, plan_lines
    from handscroll.train.probe import calibrate

    if probe:
        calibrate(workloads[0].threads)
    elif load_calibration(workloads[0].threads) is None:
        error_screen().print("note: this machine has not been measured yet; --probe measures it once", markup=False)
    made = plan(workloads, this_machine(threads=workloads[0].threads))
    show(plan_lines(made), made.record(), as_json)


def show(lines: Any, record: dict[str, Any], as_json: bool) -> None:
    """Print a plan: sentences, and tables given as (title, columns, rows)."""
    if as_json:
        typer.echo(json.dumps(record, indent=2))
        return
    for line in lines:
        shown = line if isinstance(line, str) else table(line[1], line[2], line[0])
        screen().print(shown, markup=False) if isinstance(line, str) else screen().print(shown)


def register(group: typer.Typer) -> None:
    group.add_typer(app, name="plan")
