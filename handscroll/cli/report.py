"""`handscroll report`: one page from the records of evaluations, or of two runs side by side."""

import json
from pathlib import Path
from typing import Annotated

import typer

from handscroll.base.errors import ConfigError
from handscroll.cli.records import file_to_write
from handscroll.cli.screen import screen


def report(
    records: Annotated[list[Path], typer.Argument(help="Records of a run (evaluate ... --json FILE); two compare.")],
    out: Annotated[Path, typer.Option(help="The page, one HTML file.")] = Path("report.html"),
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Write what the page shows as JSON, too.", callback=file_to_write)
    ] = None,
    language: Annotated[str, typer.Option(help="Language of the page: en or zh.")] = "en",
    title: Annotated[str, typer.Option(help="Title of the page. [the model]")] = "",
) -> None:
    """Write a self-contained report page of RECORDS; of two files, side by side."""
    from handscroll.base.runs import write_file
    from handscroll.report import evaluation_page, write
    from handscroll.report.changes import changes_section
    from handscroll.report.runs import names_of, read_run, side_by_side
    from handscroll.report.secrets import without_secrets

    if len(records) > 2:
        raise ConfigError(f"{len(records)} files of records: give one, or two to compare")
    runs = [read_run(path) for path in records]
    names = names_of(records)
    shown = runs[0] if len(runs) == 1 else side_by_side(runs[0], runs[1], names)
    name = title or (" / ".join(names) if len(runs) == 2 else None)
    changes = changes_section(runs[0], runs[1], names, language) if len(runs) == 2 else []
    page = evaluation_page(shown, title=name, language=language, first=changes)
    screen().print(f"report: {write(page, out)}")
    if json_out is not None:
        content = {"title": page.title, "about": page.subtitle, "made": dict(page.provenance)}
        content["records"] = [without_secrets(one) for one in shown]
        write_file(json_out, (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode())
        screen().print(f"JSON: {json_out}")


def register(app: typer.Typer) -> None:
    app.command()(report)
