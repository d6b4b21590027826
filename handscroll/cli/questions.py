"""`handscroll evaluate tasks`: real long tasks from local files, answered and scored."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from handscroll.cli.options import Adapter, Device, Dtype, Model
from handscroll.cli.records import Json, Report, keep
from handscroll.cli.screen import bar, screen, table
from handscroll.cli.tables import given_columns

if TYPE_CHECKING:
    from handscroll.evaluate.questions.forms import Sheet
    from handscroll.evaluate.questions.run import Plan

TASKS = "LongBench, LooGLE, L-Eval, QMSum, GSM8K, BIG-Bench Hard or plain tables, as JSON lines, JSON, CSV, Parquet."
STORE = "Folder that keeps what was read of documents, so that none is read again, also by later runs (large)."
TOO_LONG = "What does not fit into the context: refuse, skip (left out, counted) or middle (its middle left out)."


def tasks(
    model: Model,
    files: Annotated[list[str], typer.Argument(help=TASKS)],
    out: Annotated[Path | None, typer.Option(help="Folder that keeps answers as they are made; a run goes on.")] = None,
    form: Annotated[str, typer.Option(help="auto, chat (the model's template) or plain (plain text).")] = "auto",
    shots: Annotated[int, typer.Option(help="Examples before each question, from the same file.", min=0)] = 0,
    too_long: Annotated[str, typer.Option(help=TOO_LONG)] = "refuse",
    most: Annotated[int, typer.Option(help="Questions of each task, drawn by the seed; 0: all.", min=0)] = 0,
    max_tokens: Annotated[int, typer.Option(help="Tokens of an answer. [by the kind of task]", min=0)] = 0,
    map_: Annotated[list[str] | None, typer.Option("--map", metavar="FIELD=COLUMN", help="Name a column.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the choice of questions and examples.")] = 0,
    store: Annotated[Path | None, typer.Option(help=STORE)] = None,
    only_plan: Annotated[bool, typer.Option("--plan", help="Show what would be asked, and stop.")] = False,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    adapter: Adapter = None,
    json_out: Json = None,
    report: Report = None,
) -> None:
    """Answer and score real long tasks from local FILES; nothing is cut unless it was asked for."""
    from handscroll.cache.reading.store import Store
    from handscroll.evaluate.questions.asking import Asking
    from handscroll.evaluate.questions.forms import read_sheets
    from handscroll.evaluate.questions.run import plan, run
    from handscroll.lm import load

    values: dict[str, Any] = {"form": form, "shots": shots, "too_long": too_long, "most": most}
    asking = Asking.parse(values | {"max_tokens": max_tokens, "seed": seed}, "evaluate tasks")
    sheets = read_sheets(files, given_columns(map_ or []))
    for sheet in sheets:
        _say(sheet)
    kept = None if store is None else Store(store)
    todo = plan(load(model, device, dtype, adapter=adapter), sheets, asking, kept)
    _show_plan(todo)
    if only_plan:
        return
    with bar("questions", todo.questions) as advance:
        record = run(todo, out, lambda done, note: advance(done, note))
    _show(record)
    if out is not None:
        screen().print(f"answers: {out}")
    keep([record], json_out, report)


def _say(sheet: "Sheet") -> None:
    """What a file is taken for, and what of it was left out."""
    screen().print(f"{sheet.file}: {sheet.form} ({sheet.says})")
    counts = f"  {len(sheet.items):,} questions about {sheet.documents:,} documents"
    screen().print(f"{counts}; {str(sheet.account).splitlines()[0]}")
    for count in (*sheet.account.left_out, *sheet.account.repaired, *sheet.empty):
        screen().print(f"  {count}")
    for note in sheet.account.notes:
        screen().print(f"  note: {note.removeprefix(sheet.file).lstrip(': ')}")


def _show_plan(todo: "Plan") -> None:
    rows = [
        [
            part.task,
            len(part.prompts),
            len(part.left_out),
            part.cut,
            max((len(prompt.ids) for prompt in part.prompts), default=0),
            part.to_read,
            sum(prompt.most for prompt in part.prompts),
        ]
        for part in todo.parts
    ]
    columns = ["task", "asked", "too long, left out", "cut", "longest prompt", "tokens to read", "to write at most"]
    screen().print(table(columns, rows, f"plan: as {todo.asker.form}, context {todo.asker.lm.context:,} tokens"))
    screen().print(f"{todo.to_read:,} tokens to read; asked one by one it would be {todo.alone:,}")


def _show(record: dict[str, Any]) -> None:
    from handscroll.metrics.scores import Measured
    from handscroll.metrics.table import METRICS

    seen, cut = record["certificate"], sum(one["cut"] for one in record["tasks"])
    rows = []
    for one in record["tasks"]:
        for name, value in one["scores"].items():
            score = Measured(**value)
            rows.append([one["task"], METRICS[name].said, score.value, score.interval, score.count, one["cut"]])
    title = f"{record['model']}: {seen['seen']:,} of {seen['offered']:,} tokens seen"
    if cut:
        title = f"NOT THE WHOLE TEXTS ({cut:,} documents without their middle), {title}"
    left = sum(len(one["left_out"]) for one in record["tasks"])
    if left:
        title = f"{title}; {left:,} questions left out, too long"
    screen().print(table(["task", "metric", "score", "95 % interval", "n", "cut"], rows, title))
    for one in record["tasks"]:
        notes = [f"{one['ended_at_limit']:,} answers ended at their limit"] if one["ended_at_limit"] else []
        notes += [f"{one['empty']:,} are empty"] if one["empty"] else []
        if notes:
            screen().print(f"{one['task']}: of {one['questions']:,} answers, {' and '.join(notes)}")
    actual = cast(dict[str, Any], record["actual"])
    screen().print(
        f"read {actual['read']:,} tokens (planned {record['plan']['read']:,}), wrote {actual['written']:,}, "
        f"in {actual['seconds'] / 60:.1f} min",
    )
