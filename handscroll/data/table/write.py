"""A table as a file of JSON lines, with the account beside it."""

import json
from base64 import b64encode
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from handscroll.base.errors import ConfigError, DataError
from handscroll.base.runs import write_file
from handscroll.data.table.table import Table


def write_rows(table: Table, file: Path) -> None:
    """Write the rows of a table as JSON lines; values that JSON does not know are written as `plain` says.

    Raises:
        ConfigError: the file exists, or its name ends in something else than .jsonl.
        DataError: a value is nothing that JSON holds.
    """
    if file.suffix != ".jsonl":
        raise ConfigError(f"{file}: rows are written as JSON lines; name the file .jsonl")
    if file.exists():
        raise ConfigError(f"{file} exists; give a new name, so that nothing is overwritten")
    lines = []
    for record in table:
        try:
            lines.append(json.dumps(dict(record.values), ensure_ascii=False, default=plain))
        except TypeError as error:
            raise DataError(f"{record.place}: {error}; leave out the column") from None
    file.parent.mkdir(parents=True, exist_ok=True)
    write_file(file, ("\n".join(lines) + "\n").encode())


def write_record(record: dict[str, Any], file: Path) -> None:
    """Write an account or a report of parts as JSON."""
    write_file(file, (json.dumps(record, ensure_ascii=False, indent=1) + "\n").encode())


def plain(value: Any) -> str:
    """A value of a Parquet or Arrow table as JSON holds it: dates and times as ISO 8601, bytes as base64.

    Raises:
        TypeError: the value is of another kind, as `json.dumps` wants it of a `default`.
    """
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Decimal | timedelta):
        return str(value)
    if isinstance(value, bytes):
        return b64encode(value).decode()
    raise TypeError(f"a {type(value).__name__} is nothing that JSON holds")
