"""Records: a file to which one JSON object per line is appended. A crash loses at most the line that is being written.

Lines are deterministic: keys in insertion order, Python's shortest exact floats, UTF-8, no NaN or infinity.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from handscroll.base.errors import CheckpointError, DataError
from handscroll.base.runs import saving, sync_folder, write_all


class RecordWriter:
    """Appends records to a file. Each line goes to the system at once, so a killed process loses none.

    Without `offset` the writer continues after the last finished line. With `offset` (the value of `.offset` at a
    checkpoint) the file is first cut back to that many bytes. So a resumed run leaves the same bytes as an
    uninterrupted run. Call `sync()` before the checkpoint that stores the offset; otherwise a power failure may remove
    lines that the checkpoint relies on.
    """

    def __init__(self, path: Path, offset: int | None = None) -> None:
        """Open or create the file.

        Raises:
            CheckpointError: the file is not writable or is shorter than `offset`, or `offset` is not the end of a line.
        """
        self.path = path
        self._descriptor = -1
        with saving(path):
            is_new = not path.exists()
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                self.offset = _end_of_lines(path) if offset is None else _checked_offset(path, offset)
                if self.offset != os.fstat(self._descriptor).st_size:
                    os.ftruncate(self._descriptor, self.offset)
                if is_new:
                    sync_folder(path.parent)
            except BaseException:
                self.close()
                raise

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one line.

        Raises:
            DataError: a value is not JSON, is not finite, or holds invalid Unicode; nothing is written.
            CheckpointError: the system refused to write; the file is cut back to the last whole line.
        """
        try:
            line = (json.dumps(dict(record), ensure_ascii=False, allow_nan=False) + "\n").encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise DataError(
                f"a record for {self.path} cannot be written: {error}. Allowed: text, finite numbers, true, false, "
                f"null, lists and objects of these; write null for a number that does not exist"
            ) from None
        with saving(self.path, len(line)):
            try:
                write_all(self._descriptor, line)
            except BaseException:
                with suppress(OSError):
                    os.ftruncate(self._descriptor, self.offset)
                raise
        self.offset += len(line)

    def sync(self) -> int:
        """Make the lines durable and return `.offset`.

        Raises:
            CheckpointError: the system refused.
        """
        with saving(self.path):
            os.fsync(self._descriptor)
        return self.offset

    def close(self) -> None:
        """Close the file. A second call does nothing."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            with saving(self.path):
                os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_records(path: Path, whole: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the records of a file.

    A last line without a newline is one that a crash cut, and is left out; in a `whole` file, which no run appends to,
    it is a line like the others.

    Raises:
        CheckpointError: the file cannot be read, or a line is not a JSON object; the message names the line.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise CheckpointError(f"the records {path} cannot be read: {error.strerror}; give the path of a run") from error
    with file:
        for number, line in enumerate(file, start=1):
            if whole or line.endswith(b"\n"):
                yield _parse(line, f"{path}, line {number}")


def requiring(
    records: Iterable[dict[str, Any]], path: Path, needs: Callable[[dict[str, Any]], Sequence[str]], first: int = 1
) -> Iterator[dict[str, Any]]:
    """The records of a file from its line `first` on, each of which has the names that it `needs`.

    Raises:
        CheckpointError: a name is missing; the message tells the line.
    """
    for number, record in enumerate(records, start=first):
        if absent := [name for name in needs(record) if name not in record]:
            raise CheckpointError(
                f"{path}, line {number}: this record has no '{absent[0]}'; restore the file, or delete this line and "
                "all after it"
            )
        yield record


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        CheckpointError: it cannot be read, or holds anything else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): restore the file, or give another folder") from None
    if not isinstance(found, dict):
        raise CheckpointError(
            f"{path} holds a JSON {type(found).__name__}, not an object: restore the file, or give another folder"
        )
    return found


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{where}: this line is not JSON ({error}); restore the file, or delete this line and all after it"
        ) from None
    if not isinstance(record, dict):
        raise CheckpointError(f"{where}: expected a JSON object, got {type(record).__name__}; delete this line")
    return record


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _end_of_lines(path: Path) -> int:
    """The number of bytes up to the last newline, which is included. The search starts at the end of the file."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
    return 0


def _checked_offset(path: Path, offset: int) -> int:
    size = path.stat().st_size
    if not 0 <= offset <= size:
        raise CheckpointError(
            f"{path} has {size} bytes, but the checkpoint expects at least {offset}: records are missing; "
            f"restore the file or resume from an older checkpoint"
        )
    with path.open("rb") as file:
        file.seek(max(0, offset - 1))
        if offset > 0 and file.read(1) != b"\n":
            raise CheckpointError(
                f"{path} has no line end at byte {offset}, where the checkpoint expects one: "
                f"the file belongs to another run or was changed; restore it"
            )
    return offset
