"""Two runs side by side on one page: the records of both, under the names of their runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from handscroll.base.errors import DataError
from handscroll.base.records import read_records

Records = list[dict[str, Any]]


def read_run(path: Path) -> Records:
    """The records of a file of JSON lines, or of a folder with a `records.jsonl`, whose last line a kill may have cut.

    Raises:
        CheckpointError: the file cannot be read, or a line is no record. DataError: it has no records.
    """
    run = path.is_dir()
    file = path / "records.jsonl" if run else path
    found = list(read_records(file, whole=not run))
    if not found:
        raise DataError(f"{file} has no records: measure something with --json (handscroll evaluate ...)")
    return found


def side_by_side(
    first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> Records:
    """The records of two runs for one page, each under the name of its run.

    Curves, grids and scores of one kind then stand in one plot or table.
    """
    found: Records = []
    for records, name in zip((first, second), names, strict=True):
        for record in records:
            label = record.get("label")
            # Within a run labels tell records of one kind apart; a label that is alone says no more than the run does.
            alone = sum(other.get("kind") == record.get("kind") for other in records) == 1
            found.append({**record, "label": name if alone or label is None else f"{name}, {label}"})
    return found


def names_of(paths: Sequence[Path]) -> list[str]:
    """Short names of runs: those of their files, with the folder where these are the same."""
    names = [path.stem for path in paths]
    return names if len(set(names)) == len(names) else [f"{path.resolve().parent.name}/{path.stem}" for path in paths]
