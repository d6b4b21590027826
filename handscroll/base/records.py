"""Records: one JSON object a line, appended; a crash loses at most the line being written.

Lines are deterministic: insertion order, Python's shortest exact floats, UTF-8, no NaN or infinity.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from handscroll.base.errors import CheckpointError, DataError
from handscroll.base.runs import saving, sync_folder, write_all


class RecordWriter:
    """Append records to a file; each line is handed to the system at once, so a killed process loses none.

    Without `offset` it goes on after the last finished line. With `offset` (what `.offset` was at a checkpoint) the
    file is cut back to that many bytes, so that a resumed run leaves the same bytes as an undisturbed one.
    `sync()` before the checkpoint that stores the offset: a power failure may otherwise take lines the checkpoint
    counts on.
    """

    def __init__(self, path: Path, offset: int | None = None) -> None:
        """Open or create the file.

        Raises:
            CheckpointError: it cannot be written, is shorter than `offset`, or `offset` is not the end of a line.
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
            DataError: a value is not JSON, not finite, or holds text that is not valid Unicode; nothing is written.
            CheckpointError: the system refused; the file is cut back to the last whole line.
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
        """Make the lines durable and return `.offset`. Raises CheckpointError if the system refuses."""
        with saving(self.path):
            os.fsync(self._descriptor)
        return self.offset

    def close(self) -> None:
        """Close the file; may be called twice."""
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


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a file; a last line without its newline (a crash) is left out.

    Raises:
        CheckpointError: the file cannot be read, or a finished line is not a JSON object; names the line.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise CheckpointError(f"records {path} cannot be read: {error.strerror}; give the path of a run") from error
    with file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n"):
                yield _parse(line, f"{path}, line {number}")


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: not JSON ({error}); restore the file or cut it before this line") from None
    if not isinstance(record, dict):
        raise CheckpointError(f"{where}: expected a JSON object, got {type(record).__name__}; cut this line out")
    return record


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _end_of_lines(path: Path) -> int:
    """The number of bytes up to and with the last newline, searched from the end."""
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
            f"{path} has {size} bytes, the checkpoint expects at least {offset}: records are missing; "
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
