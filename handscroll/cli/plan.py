"""`handscroll plan`: what a run will take, before it is started."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from handscroll.cli.options import Dtype
from handscroll.cli.screen import error_screen, screen, table

app = typer.Typer(help="Predict memory, disk and time of a run, and what else would fit.", no_args_is_help=True)

Set = Annotated[list[str] | None, typer.Option("--set", metavar="TABLE.KEY=VALUE", help="override")]
Json = Annotated[bool, typer.Option("--json", help="print the plan as JSON")]
Probe = Annotated[bool, typer.Option("--probe", help="measure this machine anew (about half a minute)")]


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="TOML recipe")],
    set_: Set = None,
    as_json: Json = False,
    probe: Probe = False,
) -> None:
    """Plan the training run of RECIPE, on this machine."""
    from handscroll.base.config import read_recipe
    from handscroll.plan.workloads import recipe_workloads
    from handscroll.train.recipe import Recipe

    settings = Recipe.parse(read_recipe(recipe, set_ or ()), str(recipe))
    _here(recipe_workloads(settings), as_json, probe)


@app.command()
def extend(
    model: Annotated[str, typer.Argument(help="checkpoint folder, GGUF file or hub id")],
    to: Annotated[int, typer.Option(help="tokens of the new context")],
    rows: Annotated[int, typer.Option(help="tuning rows per step")] = 4,
    steps: Annotated[int, typer.Option(help="tuning steps")] = 100,
    lora: Annotated[int, typer.Option(help="tune by LoRA of this rank; 0: all weights")] = 0,
    precision: Annotated[str, typer.Option(help="float32 or bfloat16")] = "float32",
    as_json: Json = False,
    probe: Probe = False,
) -> None:
    """Plan the tuning of MODEL on rows of --to tokens."""
    from handscroll.plan.workloads import checkpoint_workload

    values = {"kind": "extend", "length": to, "micro": rows, "steps": steps, "packed": True, "precision": precision}
    _here([checkpoint_workload(model, values, lora)], as_json, probe)


@app.command()
def generate(
    model: Annotated[str, typer.Argument(help="checkpoint folder, GGUF file or hub id")],
    prompt_tokens: Annotated[int, typer.Option(help="tokens of the prompt")],
    max_tokens: Annotated[int, typer.Option(help="most new tokens")] = 256,
    dtype: Dtype = "auto",
    cache: Annotated[str, typer.Option(help="what is kept, as in generate")] = "full",
    as_json: Json = False,
    probe: Probe = False,
) -> None:
    """Plan a continuation of a prompt by MODEL."""
    from handscroll.cache.table import footprint
    from handscroll.models.weights import locate, read_config
    from handscroll.plan.workloads import checkpoint_workload, precision_of

    _, config = read_config(locate(model))
    dtype = precision_of(model, dtype)
    kept = footprint(cache, config, 2 if dtype == "bfloat16" else 4).model_dump()
    values = {"kind": "generate", "cache": kept, "length": prompt_tokens, "new": max_tokens, "precision": dtype}
    _here([checkpoint_workload(model, values)], as_json, probe)


@app.command()
def serve(
    model: Annotated[str, typer.Argument(help="checkpoint folder, GGUF file or hub id")],
    context: Annotated[int, typer.Option(help="tokens of a conversation")],
    slots: Annotated[int, typer.Option(help="conversations at a time")] = 1,
    dtype: Dtype = "auto",
    as_json: Json = False,
    probe: Probe = False,
) -> None:
    """Plan a server of MODEL with --slots conversations of --context tokens."""
    from handscroll.plan.workloads import checkpoint_workload, precision_of

    values = {"kind": "serve", "length": context, "rows": slots, "precision": precision_of(model, dtype)}
    _here([checkpoint_workload(model, values)], as_json, probe)


def _here(workloads: Any, as_json: bool, probe: bool) -> None:
    """The plan on this machine."""
    from handscroll.plan.calibration import load_calibration
    from handscroll.plan.machine import this_machine
    from handscroll.plan.show import plan, plan_lines
    from handscroll.train.probe import calibrate

    if probe:
        calibrate(workloads[0].threads)
    elif load_calibration(workloads[0].threads) is None:
        error_screen().print("note: this machine is not measured yet; --probe does it once", markup=False)
    made = plan(workloads, this_machine(threads=workloads[0].threads))
    show(plan_lines(made), made.record(), as_json)


def show(lines: Any, record: dict[str, Any], as_json: bool) -> None:
    """A plan on the screen: sentences, and tables of (title, columns, rows)."""
    if as_json:
        typer.echo(json.dumps(record, indent=2))
        return
    for line in lines:
        shown = line if isinstance(line, str) else table(line[1], line[2], line[0])
        screen().print(shown, markup=False) if isinstance(line, str) else screen().print(shown)


def register(group: typer.Typer) -> None:
    group.add_typer(app, name="plan")
