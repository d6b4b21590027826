"""`handscroll plan`: predict memory, disk and time of a run before it starts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from handscroll.cli.options import Dtype, Model
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
    without_text: Annotated[
        bool, typer.Option("--without-text", help="Plan the model alone; its text is neither read nor checked.")
    ] = False,
) -> None:
    """Plan the training run of RECIPE on this machine, and refuse a text that the run would refuse."""
    from handscroll.base.config import read_recipe
    from handscroll.plan.workloads import recipe_workloads
    from handscroll.train.recipe import Recipe
    from handscroll.train.rehearse import rehearse

    settings = Recipe.parse(read_recipe(recipe, set_ or ()), str(recipe))
    config, size, account = (None, None, None) if without_text else rehearse(settings)
    _here(recipe_workloads(settings, config, size), as_json, probe, rows=account)


@app.command()
def extend(
    model: Model,
    to: Annotated[int, typer.Option(help="Tokens of the new context.")],
    method: Annotated[str, typer.Option(help="As in extend: auto measures every method.")] = "auto",
    text: Annotated[list[str] | None, typer.Option(help="Text for the choice, as in extend.")] = None,
    search: Annotated[bool, typer.Option("--search", help="A search of LongRoPE's factors, as in extend.")] = False,
    compare: Annotated[bool, typer.Option("--compare", help="A comparison of all methods, as in extend.")] = False,
    measured: Annotated[int, typer.Option(help="Tokens that each finalist reads, as in extend.")] = 8192,
    rows: Annotated[int, typer.Option(help="Rows per tuning step.")] = 4,
    steps: Annotated[int, typer.Option(help="Number of tuning steps.")] = 100,
    lora: Annotated[int, typer.Option(help="Rank of the LoRA tuning; 0 tunes all weights.")] = 0,
    precision: Annotated[str, typer.Option(help="Precision of the tuning: float32 or bfloat16.")] = "float32",
    as_json: Json = False,
    probe: Probe = False,
) -> None:
    """Plan the measuring of methods for MODEL, and its tuning on rows of --to tokens."""
    from handscroll.extend.compare import Comparing
    from handscroll.extend.search import Search
    from handscroll.plan.workloads import checkpoint_workload
    from handscroll.text.readers import Reader

    if text:
        Reader().check(text)
    values = {"kind": "extend", "length": to, "micro": rows, "steps": steps, "packed": True, "precision": precision}
    workload = checkpoint_workload(model, values, lora)
    more = {"measured": measured, "search": Search() if search else None, "compare": Comparing() if compare else None}
    _here([workload], as_json, probe, _measuring(model, to, method, bool(text), workload, more))


def _measuring(
    model: str, to: int, method: str, text: bool, workload: Any, more: dict[str, Any]
) -> Callable[[Any], str]:
    """What is measured before the tuning, in words, for the speeds of a machine."""
    from handscroll.extend.bakeoff import Goal
    from handscroll.extend.choice import Field, Wanted, planned
    from handscroll.extend.extend import GUARD
    from handscroll.models.locate import locate
    from handscroll.models.weights import settled_config
    from handscroll.plan.workloads import reading_workload

    _, config = settled_config(locate(model))
    stored = reading_workload(model, workload)  # without a tuning it is loaded so
    field = Field.of(config, method, to, config.spec.positions[0], None, more["search"] is not None)
    if field.count < 2 and not text and more["search"] is None:
        return lambda calibration: "measuring: nothing, since the method is named and there is no --text"
    wanted = Wanted(Goal(to, config.trained, GUARD), **more)
    measuring = planned(field, config.spec, wanted, own=not text)
    return lambda calibration: measuring.words(measuring.seconds(stored, calibration))


@app.command()
def generate(
    model: Model,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of the prompt.")],
    max_tokens: Annotated[int, typer.Option(help="Most new tokens.")] = 256,
    dtype: Dtype = "auto",
    cache: Annotated[str, typer.Option(help="Cache policy, as in generate.")] = "full",
    as_json: Json = False,
    probe: Probe = False,
) -> None:
    """Plan how MODEL continues a prompt."""
    from handscroll.cache.table import footprint
    from handscroll.models.locate import locate
    from handscroll.models.weights import read_config
    from handscroll.plan.workloads import cache_itemsize, checkpoint_workload, precision_of

    _, config = read_config(locate(model))
    dtype = precision_of(model, dtype)
    kept = footprint(cache, config, cache_itemsize(model, dtype)).model_dump()
    values = {"kind": "generate", "cache": kept, "length": prompt_tokens, "new": max_tokens, "precision": dtype}
    long = prompt_tokens + max_tokens > config.context
    beyond = (
        f"{prompt_tokens + max_tokens:,} tokens are more than the model's context of {config.context:,}: generate "
        "refuses them (handscroll extend lengthens the context, --beyond goes past it)"
    )
    _here([checkpoint_workload(model, values)], as_json, probe, (lambda _: beyond) if long else None)


@app.command()
def serve(
    model: Model,
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


def _here(
    workloads: Any, as_json: bool, probe: bool, before: "Callable[[Any], str] | None" = None, rows: Any = None
) -> None:
    """Make the plan for this machine and show it.

    `before` gives a line on what comes first, and `rows` is an account of the texts.
    """
    from handscroll.plan.calibration import load_calibration
    from handscroll.plan.machine import this_machine
    from handscroll.plan.show import plan, plan_lines
    from handscroll.train.planned import card_bytes
    from handscroll.train.probe import calibrate

    threads = workloads[0].threads
    if probe or load_calibration(threads) is None:
        error_screen().print("measuring this machine, once: about half a minute ...")
        calibrate(threads)
    gpu = card_bytes() if any(one.device == "cuda" for one in workloads) else None
    made = plan(workloads, this_machine(threads=threads, gpu=gpu))
    lines, record = plan_lines(made), made.record()
    if before is not None:
        sentence = before(made.machine.calibration)
        lines, record = [*lines, sentence], record | {"before": sentence}
    if rows is not None:
        lines, record = [*lines, *rows.lines()], record | {"rows": rows.record()}
    show(lines, record, as_json)


def show(lines: Any, record: dict[str, Any], as_json: bool) -> None:
    """Print a plan: sentences, and tables given as (title, columns, rows)."""
    if as_json:
        typer.echo(json.dumps(record, indent=2))
        return
    for line in lines:
        screen().print(line if isinstance(line, str) else table(line[1], line[2], line[0]))


def register(group: typer.Typer) -> None:
    group.add_typer(app, name="plan")
