"""Keeps the records of evaluations: one JSON object a line, and a report page."""

import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from handscroll.base.errors import ConfigError
from handscroll.cli.screen import screen

_BEGUN = time.monotonic()  # this module is imported when the command starts


def file_to_write(option: typer.CallbackParam, value: Path | None) -> Path | None:
    """Refuse a file that cannot be written, when the options are read: a result must not be lost when it is ready."""
    if value is not None:
        folder = value.absolute().parent
        if value.is_dir():
            raise _unwritable(option, value, "it is a folder; name a file")
        if not folder.is_dir():
            raise _unwritable(option, value, f"there is no folder {folder}; make it, or name another file")
        _may_write(option, value, folder)
    return value


def folder_to_write(option: typer.CallbackParam, value: Path | None) -> Path | None:
    """Refuse a folder that cannot be made or written to, when the options are read."""
    if value is not None:
        there = next(folder for folder in (value.absolute(), *value.absolute().parents) if folder.exists())
        if not there.is_dir():
            raise _unwritable(option, value, f"{there} is a file; name a folder")
        _may_write(option, value, there)
    return value


def _may_write(option: typer.CallbackParam, value: Path, folder: Path) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise _unwritable(option, value, f"you may not write to {folder}; choose another place")


def _unwritable(option: typer.CallbackParam, value: Path, why: str) -> ConfigError:
    return ConfigError(f"{option.opts[0]} {value} cannot be written: {why}")


Json = Annotated[
    Path | None,
    typer.Option("--json", help="Write the records into this file, one JSON object a line.", callback=file_to_write),
]
OneJson = Annotated[
    Path | None, typer.Option("--json", help="Write the record into this file.", callback=file_to_write)
]
Report = Annotated[
    Path | None, typer.Option(help="Write a self-contained report.html into this folder.", callback=folder_to_write)
]


def keep(records: Sequence[dict[str, Any]], json_out: Path | None, report: Path | None) -> None:
    """Write the records and the page that were asked for, and say where.

    Each record gets `made`: the command, the seconds since it started, and the version, beside what was measured. In
    the command of an exposure the secrets are masked.
    """
    from handscroll import __version__
    from handscroll.base.runs import write_file
    from handscroll.report import evaluation_page, write
    from handscroll.report.secrets import masked

    words = ["handscroll", *sys.argv[1:]]
    if any(record.get("kind") == "exposure" for record in records):
        words = [masked(word) for word in words]
    command = shlex.join(words)
    made = {"command": command, "seconds": round(time.monotonic() - _BEGUN, 1), "version": __version__}
    told = [{**record, "made": made} for record in records]
    if json_out is not None:
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in told)
        write_file(json_out, lines.encode())
        screen().print(f"records: {json_out}")
    if report is not None:
        report.mkdir(parents=True, exist_ok=True)
        path = write(evaluation_page(told), report / "report.html")
        screen().print(f"report: {path}")
