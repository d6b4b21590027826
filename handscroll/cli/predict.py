"""`handscroll predict`: what a tuned model says of the rows of a table."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from handscroll.base.config import apply_override
from handscroll.base.errors import ConfigError
from handscroll.cli.finetune import show_scores
from handscroll.cli.options import Encoding
from handscroll.cli.screen import bar, screen
from handscroll.cli.tables import Names, SkipBroken, SkipUnfit, Split, given_columns, given_names

if TYPE_CHECKING:
    from handscroll.tasks.predict import Predicted
    from handscroll.tasks.task import Task


def predict(
    model: Annotated[
        str, typer.Argument(help="A model tuned for a task, a checkpoint of its run, or with --task any model.")
    ],
    data: Annotated[list[str], typer.Argument(help="Rows: CSV, TSV, JSON lines, Parquet, ...")],
    out: Annotated[Path | None, typer.Option(help="File for the predictions, JSON lines. [printed]")] = None,
    task: Annotated[str, typer.Option(help="The task, for a model that was not tuned for one.")] = "",
    map_: Annotated[list[str] | None, typer.Option("--map", metavar="FIELD=COLUMN", help="Name a column.")] = None,
    names: Names = "",
    split: Split = "",
    encoding: Encoding = "",
    skip_broken: SkipBroken = False,
    skip_unfit: SkipUnfit = False,
    shots: Annotated[
        int | None, typer.Option(help="Ask MODEL as it is, with so many examples in the prompt; 0: none.")
    ] = None,
    examples: Annotated[list[str] | None, typer.Option(help="Rows from which the shots are taken.")] = None,
    choose: Annotated[str, typer.Option(help="Which shots: first, random, similar, user (the same user's).")] = "first",
    encoder: Annotated[str, typer.Option(help="--choose similar by the vectors of this encoder. [BM25]")] = "",
    profile: Annotated[
        list[str] | None, typer.Option(help="What is known of users: rows with user and text; each sees its own only.")
    ] = None,
    store: Annotated[Path | None, typer.Option(help="--choose first, random: folder that keeps what was read.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of --choose random and --most.", min=0)] = 0,
    most: Annotated[int, typer.Option(help="Rows of DATA that are used, drawn by the seed. [all]")] = 0,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="task.KEY=VALUE", help="Setting of --task.")
    ] = None,
    with_: Annotated[
        list[str] | None, typer.Option("--with", metavar="MODEL", help="Another model of the task: an ensemble.")
    ] = None,
    vote: Annotated[bool, typer.Option("--vote", help="--with: by majority; else probabilities are averaged.")] = False,
) -> None:
    """Say of each row of DATA what MODEL says, with scores where the rows hold the truth."""
    from handscroll.cache.reading.store import Store
    from handscroll.tasks.ensemble import together
    from handscroll.tasks.predict import Asked, load_tuned
    from handscroll.tasks.predict import predict as say
    from handscroll.tasks.prompting import choice
    from handscroll.tasks.recipe import TaskData

    if set_ and not task:
        raise ConfigError("--set changes the settings of --task; a tuned model brings its own")
    if out is not None and out.exists():
        raise ConfigError(f"--out {out} exists; choose a new file, so that nothing is overwritten")
    chosen, asked = choice(choose), None
    if shots is None and (examples or store or encoder or chosen != "first"):
        raise ConfigError("--examples, --choose, --store and --encoder are for --shots N: say how many examples")
    shots = 0 if shots is None and profile else shots
    if shots is not None:
        held = None if store is None else Store(store)
        asked = Asked(shots, tuple(examples or ()), chosen, tuple(profile or ()), encoder, seed, held)
    if (with_ and (task or asked)) or (vote and not with_):
        raise ConfigError("--with joins tuned models: leave --task and --shots out; --vote belongs to --with")
    values: dict[str, Any] = {"task": {"name": task}}
    for override in set_ or ():
        apply_override(values, override)
    if more := sorted(set(values) - {"task"}):
        raise ConfigError(f"--set {more[0]} is no setting of the task: give --set task.KEY=VALUE")
    rows: dict[str, Any] = {"train": tuple(data), "columns": given_columns(map_ or ()), "most_scored": most}
    rows |= {"names": given_names(names), "skip_broken": skip_broken, "skip_unfit": skip_unfit}
    rows |= {"encoding": encoding or None, "splits": {"train": split} if split else {}}
    given = TaskData.parse(rows, "predict")
    with bar("predicting", None) as advance:
        if with_:
            joint = together([model, *with_], given, vote, lambda name, done: advance(done, f"predicting, {name}"))
            settled, found = joint.task, joint.joint
        else:
            lm, settled = load_tuned(model, values["task"] if task else None, prompted=asked is not None)
            joint, found = None, say(lm, settled, given, lambda done: advance(done), asked, seed)
    columns = found.part.columns
    screen().print(f"{found.part.account}\ncolumns: {columns}")
    _write(out, settled, found)
    if found.untold:
        told = f"not scored: {found.untold:,} of {len(found.part.examples):,} rows do not tell what is right"
        lacking = [field.name for field in settled.fields if field.truth and f"{field.name} <- " not in columns]
        screen().print(told + "".join(f"; if a column does, name it (--map {name}=COLUMN)" for name in lacking))
    for note, count in found.notes.items():
        screen().print(f"{count:,} of {len(found.predictions):,} rows: {note}")
    show_scores({"rows": found.scores} if found.scores else {})
    if joint is not None and joint.gain is not None:
        show_scores({name: {joint.metric: one} for name, one in joint.members.items()})
        screen().print(f"together against the best of them, {joint.metric}: {joint.gain}")


def _write(out: Path | None, task: "Task", found: "Predicted") -> None:
    """The predictions as JSON lines, into a new file or onto the screen."""
    from handscroll.tasks.finetune import lines_of, write_predictions

    if out is None:
        for line in lines_of(task, found.part.examples, found.predictions):
            typer.echo(line)
    else:
        write_predictions(out, task, found.part.examples, found.predictions)
        screen().print(f"written: {out}")


def register(app: typer.Typer) -> None:
    app.command()(predict)
