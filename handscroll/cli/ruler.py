"""`handscroll evaluate ruler`: RULER's thirteen tasks, and more, on the user's machine and without a network."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from handscroll.base.errors import ConfigError
from handscroll.cli.options import LOADING, Loading, Model, with_loading
from handscroll.cli.records import Json, Report, keep
from handscroll.cli.screen import bar, error_screen, screen, table

if TYPE_CHECKING:
    from handscroll.lm import LM

TASKS = "Names of tasks, separated by commas; ruler: the thirteen, beyond: the other five, all."


@with_loading
def ruler(
    model: Model,
    lengths: Annotated[str, typer.Option(help="Lengths in tokens with the answer, from 256 on, separated by commas.")],
    tasks: Annotated[str, typer.Option(help=TASKS)] = "ruler",
    samples: Annotated[int, typer.Option(help="Samples of each task at each length.")] = 20,
    layout: Annotated[
        str, typer.Option(help="shared: tasks share texts. published: each sample by itself.")
    ] = "shared",
    template: Annotated[str, typer.Option(help="base, chat or few-shot. [chat if the model has a template]")] = "",
    language: Annotated[str, typer.Option(help="Language of the samples: en or zh.")] = "en",
    text: Annotated[list[str] | None, typer.Option(help="Haystack files. [what ships: docs/ruler.md]")] = None,
    qa: Annotated[list[str] | None, typer.Option(help="Questions in SQuAD's form, for qa_1. [invented]")] = None,
    hops: Annotated[list[str] | None, typer.Option(help="Questions in HotpotQA's form, for qa_2. [invented]")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder that keeps each sample; a killed run goes on there.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Say what it costs, and end.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of all samples.")] = 0,
    loading: Loading = LOADING,
    json_out: Json = None,
    report: Report = None,
) -> None:
    """Measure RULER's tasks by length: generated here, scored as published, one reading for many tasks."""
    from handscroll.evaluate.ruler.bench import bench
    from handscroll.evaluate.ruler.exams import Setting
    from handscroll.evaluate.ruler.run import measure

    values: dict[str, Any] = {"lengths": _numbers(lengths), "tasks": tasks.split(",")}
    values |= {"samples": samples, "seed": seed, "layout": layout}
    Setting.parse(values | {"template": template or "base"}, "evaluate ruler")  # refused before the model is loaded
    how = loading.reader()
    if text:
        how.check(text)
    lm = loading.model(model)
    given = template or ("chat" if lm.tokenizer.settings.get("chat_template") else "base")
    setting = Setting.parse(values | {"template": given}, "evaluate ruler")
    made = bench(lm.tokenizer, language, text, qa, hops, how)
    for asked in made.asked.values():
        if asked is not None and asked.skipped:
            error_screen().print(f"{asked.name}: {asked.skipped:,} questions without an answer are left out")
    _say_plan(lm, made, setting, out)
    if plan:
        return
    if out is None:
        error_screen().print("nothing is kept before the end: with --out FOLDER a killed run goes on")
    total = len(setting.tasks) * len(setting.lengths) * samples
    with bar("samples", total) as advance:
        record = measure(lm, made, setting, out, progress=lambda done, all_: advance(done))
    _show(model, record)
    keep([record], json_out, report)


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--lengths {text!r}: expected whole numbers separated by commas, such as 512,1024") from None


def _say_plan(lm: "LM", made: Any, setting: Any, out: Path | None) -> None:
    """What the run will cost, without what `out` holds, and what does not fit."""
    from handscroll.evaluate.ruler.run import plan
    from handscroll.plan.calibration import load_calibration
    from handscroll.plan.show import clock

    costs = plan(lm, made, setting, load_calibration(), out)
    rows = [[cost.length, cost.texts, cost.questions, cost.read, cost.written, clock(cost.seconds)] for cost in costs]
    columns = ["length", "texts", "questions", "tokens read", "written at most", "about"]
    say = error_screen().print
    say(table(columns, rows, f"plan: {setting.layout} texts, {setting.template} template"))
    whole = sum(cost.seconds for cost in costs)
    say(f"in all about {clock(whole)} at most; less where answers end early")
    for cost in costs:
        for task, missing in cost.unfit:
            say(
                f"{task} does not fit into {cost.length:,} tokens: it needs about {cost.length + missing:,}",
            )
    if long := [length for length in setting.lengths if length > lm.context]:
        say(f"beyond the model's context of {lm.context:,} tokens: {', '.join(f'{n:,}' for n in long)}")


def _show(model: str, record: dict[str, Any]) -> None:
    lengths = record["lengths"]
    rows = [
        [task, *("-" if value is None else f"{100 * value:.1f}" for value in scores)]
        for task, scores in zip(record["tasks"], record["scores"], strict=True)
    ]
    rows.append(["average", *("-" if value is None else f"{100 * value:.1f}" for value in record["average"])])
    ends = zip(record["low"], record["high"], strict=True)
    rows.append(["95 % interval", *("-" if low is None else f"{100 * low:.0f}-{100 * high:.0f}" for low, high in ends)])
    shares = [("-" if value is None else f"{100 * value:.0f}%") for value in record["long"]]
    rows.append(["answers cut at their room", *shares])
    title = f"{model}: {record['samples']} samples a cell, {record['layout']} texts, {record['template']} template"
    say = screen().print
    say(table(["task", *(f"{length:,}" for length in lengths)], rows, title))
    for one in record["effective"]:
        say(f"effective length, {_rule(one)}: {_length(one['length'])} ({_interval(one)})")
    for one in record["unfit"]:
        say(f"-: {one['task']} needs about {one['needs']:,} tokens, not {one['length']:,}")


def _rule(one: dict[str, Any]) -> str:
    share = f"{100 * one['threshold']:.1f}"
    return f"at least {share} (published)" if one["rule"] == "published" else f"at least {share} (85 % of the shortest)"


def _length(value: int | None) -> str:
    return "below the shortest length" if value is None else f"{value:,} tokens"


def _interval(one: dict[str, Any]) -> str:
    low, high = one["low"], one["high"]
    return f"95 %: {'below the shortest' if low is None else f'{low:,}'} to {_length(high)}"
