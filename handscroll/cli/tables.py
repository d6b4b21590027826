"""`handscroll data look`, `clean` and `split`: tables of rows for tasks."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from handscroll.base.errors import ConfigError, DataError
from handscroll.cli.options import Encoding
from handscroll.cli.records import folder_to_write
from handscroll.cli.screen import screen, table
from handscroll.data.personal import REGIONS

if TYPE_CHECKING:
    from handscroll.data.table.table import Table

Files = Annotated[
    list[str],
    typer.Argument(help="CSV, TSV, JSON lines, JSON, Parquet: files, folders, globs, .zip, .gz, saved data sets."),
]
Names = Annotated[str, typer.Option(help="Columns of CSV and TSV files without a line of names: a,b,c.")]
Split = Annotated[str, typer.Option(help="Split of a folder, archive or saved data set: train, validation, test, ...")]
SkipBroken = Annotated[bool, typer.Option("--skip-broken", help="Leave out broken lines and count them.")]
SkipUnfit = Annotated[
    bool, typer.Option("--skip-unfit", help="Leave out rows that do not fit the task, and count them.")
]
Text = Annotated[str, typer.Option(help="Column of the text. [the one with the longest texts]")]
PERSONAL = "What has the form of personal data (telephone numbers, e-mail addresses, numbers of people, cards, ...)"
Regions = Annotated[
    str,
    typer.Option(help="With --personal: countries whose telephone numbers need no code. [CN,US]", show_default=False),
]
NEAR = "Least Jaccard index of near copies; 1.0 is exact copies only."


def given_columns(pairs: Sequence[str]) -> dict[str, str]:
    """Fields and their columns, from options such as `--map text=review`.

    Raises:
        ConfigError: a pair has no equals sign, or a field comes twice.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        field, sign, column = pair.partition("=")
        if not sign or not field or not column or field in found:
            raise ConfigError(f"--map {pair}: write FIELD=COLUMN, once for each field, such as --map text=review")
        found[field] = column
    return found


def look(
    files: Files,
    names: Names = "",
    split: Split = "",
    task: Annotated[str, typer.Option(help="Task of handscroll finetune whose columns are looked for.")] = "",
    map: Annotated[list[str] | None, typer.Option(help="Column of a field, as FIELD=COLUMN.")] = None,
    text: Text = "",
    label: Annotated[str, typer.Option(help="Column of the label. [a column of that name]")] = "",
    test: Annotated[list[str] | None, typer.Option(help="Test table; its rows are looked for in FILES.")] = None,
    near: Annotated[float, typer.Option(help=NEAR)] = 0.8,
    rows: Annotated[int, typer.Option(help="First rows that are shown.", min=0)] = 3,
    personal: Annotated[bool, typer.Option("--personal", help=PERSONAL + " is counted.")] = False,
    regions: Regions = "",
    encoding: Encoding = "",
    skip_broken: SkipBroken = False,
) -> None:
    """Show what is in tables: first rows, columns, conversations, copies, labels, and what was repaired or left out."""
    from handscroll.data.table.duplicates import leakage, text_column
    from handscroll.data.table.look import columns as described
    from handscroll.data.table.look import copies_line, personal_line, short
    from handscroll.data.table.look import look as first_rows

    places = _regions(regions, personal)
    found = _read(files, names, split, encoding, skip_broken)
    say = screen().print
    say(str(found.account))
    heads = ("column", "holds", "empty", "different", "median", "longest", "values")
    cells = []
    for one in described(found):
        values = ", ".join(f"{short(value, 16)} {count:,}" for value, count in one.counts[:6])
        cells.append((one.name, one.holds, one.empty, one.different, one.middle, one.longest, values))
    say("", table(heads, cells), "", sep="\n")
    if rows:
        say(first_rows(found, rows) + "\n")
    wrong = None  # said at the end: the rest may show why
    if task:
        from handscroll.tasks.task import task_from

        try:
            part = task_from(task).read(found, given_columns(map or []), skip_unfit=True)
        except DataError as error:
            wrong = error
        else:
            unfit = part.account.left_out[len(found.account.left_out) :]
            say(f"{task}: {part.columns}", *(f"  does not fit: {one}" for one in unfit), sep="\n")
    else:
        say(_forms(found, given_columns(map or [])))
    _say_labels(found, label, text)
    column = text_column(found, text or None, (label,))
    say(copies_line(found, column, None if near == 1 else near))
    if personal:
        say(personal_line(found, places))
    if test:
        tested = _read(test, names, "", encoding, skip_broken)
        say(str(leakage(found, tested, column, None if near == 1 else near)))
    if wrong is not None:
        raise wrong


def clean(
    files: Files,
    out: Annotated[Path, typer.Option(help="The .jsonl file to write; it must not exist.")],
    text: Annotated[
        list[str] | None,
        typer.Option(
            help="Column to clean; the first also judges copies. [the one with the longest texts; for --personal all]"
        ),
    ] = None,
    names: Names = "",
    split: Split = "",
    mojibake: Annotated[bool, typer.Option("--mojibake", help="Repair text of a wrong encoding (ftfy).")] = False,
    unicode: Annotated[str, typer.Option(help="Normal form: NFC or NFKC.")] = "",
    control: Annotated[bool, typer.Option("--control", help="Take out control and zero-width characters.")] = False,
    html: Annotated[bool, typer.Option("--html", help="Turn tags and entities into text.")] = False,
    boilerplate: Annotated[int, typer.Option(help="Take out lines that stand in at least so many rows.")] = 0,
    personal: Annotated[bool, typer.Option("--personal", help=PERSONAL + " is replaced by its kind.")] = False,
    regions: Regions = "",
    space: Annotated[bool, typer.Option("--space", help="Fold blanks and blank lines.")] = False,
    empty: Annotated[bool, typer.Option("--empty", help="Leave out rows without text.")] = False,
    ids: Annotated[str, typer.Option(help="Column of ids: leave out rows with the id of an earlier row.")] = "",
    copies: Annotated[bool, typer.Option("--copies", help="Leave out exact copies but for the first.")] = False,
    near: Annotated[float | None, typer.Option(help="Leave out near copies too, from this Jaccard index.")] = None,
    encoding: Encoding = "",
    skip_broken: SkipBroken = False,
) -> None:
    """Clean the texts of tables; each step is asked for, and counted. The account stands beside OUT (.account.json)."""
    from handscroll.data.table.clean import Cleaning
    from handscroll.data.table.clean import clean as cleaned
    from handscroll.data.table.duplicates import text_column
    from handscroll.data.table.files import account_of
    from handscroll.data.table.write import write_record, write_rows

    form: Literal["", "NFC", "NFKC"] = unicode  # type: ignore[assignment]  # Cleaning refuses other words
    places = _regions(regions, personal)
    how = Cleaning(mojibake, form, control, html, boilerplate, personal, places, space, empty, copies, near, ids)
    if how == Cleaning():
        raise ConfigError("nothing to do: name the steps (--mojibake, --unicode NFC, --control, --html, --space, ...)")
    found = _read(files, names, split, encoding, skip_broken)
    made = cleaned(found, text or [text_column(found)], how, text or found.columns)
    write_rows(made, out)
    write_record({"files": files, "cleaning": asdict(how), "account": made.account.record()}, account_of(out))
    screen().print(f"{made.account}\nrows: {out}")


def split(
    files: Files,
    out: Annotated[
        Path, typer.Option(help="Folder for train.jsonl, test.jsonl, ... and split.json.", callback=folder_to_write)
    ],
    test: Annotated[float, typer.Option(help="Share of the rows for the test.")] = 0.1,
    valid: Annotated[float, typer.Option(help="Share of the rows for validation.")] = 0.0,
    label: Annotated[str, typer.Option(help="Column whose values keep their shares in every part.")] = "",
    group: Annotated[str, typer.Option(help="Column whose equal values stay in one part.")] = "",
    text: Text = "",
    near: Annotated[float, typer.Option(help=NEAR)] = 0.8,
    seed: Annotated[int, typer.Option(help="Seed of the split.", min=0)] = 0,
    names: Names = "",
    split: Split = "",
    encoding: Encoding = "",
    skip_broken: SkipBroken = False,
) -> None:
    """Split a table; copies and groups stay on one side, labels keep their shares."""
    from handscroll.data.table.split import split as divided
    from handscroll.data.table.write import write_record, write_rows

    found = _read(files, names, split, encoding, skip_broken)
    shares = {name: share for name, share in (("valid", valid), ("test", test)) if share}
    if not shares:
        raise ConfigError("no part besides 'train': give --test or --valid a share")
    kept_near = None if near == 1 else near
    parts = divided(found, shares, seed, label or None, group or None, text or None, kept_near)
    for name in parts.tables:
        if (out / f"{name}.jsonl").exists():
            raise ConfigError(f"{out / f'{name}.jsonl'} exists; give a new folder, so that nothing is overwritten")
    for name, part in parts.tables.items():
        write_rows(part, out / f"{name}.jsonl")
    record = {"files": files, "seed": seed, "shares": shares, **parts.record(), "account": found.account.record()}
    write_record(record, out / "split.json")
    screen().print(f"{found.account}\n{parts}\nrows and split.json: {out}")


def register(texts: typer.Typer) -> None:
    """Add the verbs to `handscroll data`."""
    for verb in (look, clean, split):
        texts.command()(verb)


def _regions(given: str, personal: bool) -> tuple[str, ...]:
    """The countries of `--regions`; the usual ones where it is not given."""
    if given and not personal:
        raise ConfigError(f"--regions {given}: it says where telephone numbers are from; give --personal too")
    return tuple(given.split(",")) if given else REGIONS


def given_names(text: str) -> tuple[str, ...]:
    """The columns that `--names a,b,c` gives to tables without a line of names."""
    return tuple(name.strip() for name in text.split(",")) if text else ()


def _read(files: list[str], names: str, split: str, encoding: str, skip_broken: bool) -> "Table":
    from handscroll.data.table.read import read_table

    return read_table(files, given_names(names), split or None, encoding or None, skip_broken)


def _forms(found: "Table", given: dict[str, str]) -> str:
    """What conversations or preferences the rows are, or why they are none."""
    from handscroll.data.table.conversations import conversations, preferences

    read = preferences if {"chosen", "rejected"} <= set(found.columns) else conversations
    try:
        made = read(found, given, skip_unfit=True)
    except DataError as error:
        why = next((line for line in str(error).splitlines() if line.startswith("left out: rows of no")), str(error))
        return f"{read.__name__}: none ({why.removeprefix('left out: rows of no known form: ').split(' (')[0]})"
    forms = ", ".join(f"{count:,} {form}" for form, count in made.forms.items())
    unfit = sum(one.count for one in made.account.left_out) - sum(one.count for one in found.account.left_out)
    return f"{read.__name__}: {forms}" + (f"; {unfit:,} rows of no known form" if unfit else "")


def _say_labels(found: "Table", label: str, text: str) -> None:
    from handscroll.data.table.duplicates import text_column
    from handscroll.data.table.labels import conflicts, label_counts
    from handscroll.data.table.spelling import alike_note

    named = label or next(
        (name for name in found.columns if name.lower() in ("label", "labels", "class", "category")), ""
    )
    if not named:
        return
    try:
        counts = label_counts(found, named)
    except DataError as error:
        screen().print(f"labels by '{named}': {error}")
        return
    say = screen().print
    shown = ", ".join(f"{name} {count:,}" for name, count in list(counts.items())[:20])
    say(f"labels by '{named}': {len(counts):,} ({shown}{', ...' * (len(counts) > 20)})")
    if note := alike_note(counts, named):
        say(f"note: {note}")
    noise = conflicts(found, text_column(found, text or None, (named,)), named)
    if noise:
        say(f"{len(noise):,} texts have several labels:", *(f"  {one}" for one in noise[:3]), sep="\n")
