"""Keeps the records of evaluations: one JSON object a line, and a report page."""

import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from handscroll.cli.screen import screen

Json = Annotated[Path | None, typer.Option("--json", help="Write the records into this file, one JSON object a line.")]
Report = Annotated[Path | None, typer.Option(help="Write a self-contained report.html into this folder.")]
_BEGUN = time.monotonic()  # this module is imported when the command starts


def keep(records: Sequence[dict[str, Any]], json_out: Path | None, report: Path | None) -> None:
    """Write the records and the page that were asked for, and say where.

    Each record gets `made`: the command, the seconds since it started, and the version, beside what was measured.
    """
    from handscroll import __version__
    from handscroll.base.runs import write_file
    from handscroll.report import evaluation_page, write

    command = shlex.join(["handscroll", *sys.argv[1:]])
    made = {"command": command, "seconds": round(time.monotonic() - _BEGUN, 1), "version": __version__}
    told = [{**record, "made": made} for record in records]
    if json_out is not None:
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in told)
        write_file(json_out, lines.encode())
        screen().print(f"records: {json_out}", markup=False)
    if report is not None:
        report.mkdir(parents=True, exist_ok=True)
        path = write(evaluation_page(told), report / "report.html")
        screen().print(f"report: {path}", markup=False)
