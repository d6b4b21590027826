"""Parts of a measurement, written to a file as they are made: a measurement that was stopped goes on and repeats none.

The file has one JSON object a line (`base/records.py`). The first says what was measured (model, text, settings), and
each other line is a part with its key.
"""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from handscroll.base.errors import CheckpointError
from handscroll.base.records import RecordWriter, read_records, requiring


class Kept:
    """Parts by their keys. Without a path they are kept in memory only.

    `about` identifies the measurement; values must survive JSON unchanged.
    """

    def __init__(self, path: Path | None, about: Mapping[str, Any]) -> None:
        """Open the file, or begin one.

        Raises:
            CheckpointError: the file holds another measurement, is damaged or cannot be written.
        """
        self._parts: dict[str, Any] = {}
        self._writer: RecordWriter | None = None
        self.found = 0  # parts that an earlier run made
        if path is None:
            return
        if path.exists():
            self._take(path, dict(about))
        self._writer = RecordWriter(path)
        if not self._writer.offset:
            self._writer.append(about)

    def _take(self, path: Path, about: dict[str, Any]) -> None:
        lines = read_records(path)
        first = next(lines, about)
        if first != about:
            other = sorted(name for name in {*first, *about} if first.get(name) != about.get(name))
            raise CheckpointError(
                f"{path} holds parts of another measurement (it differs in {', '.join(other)}): name another file, or "
                "remove this one"
            )
        parts = requiring(lines, path, lambda line: ("part", "value"), first=2)
        self._parts = {line["part"]: line["value"] for line in parts}
        self.found = len(self._parts)

    def __contains__(self, key: str) -> bool:
        return key in self._parts

    def __getitem__(self, key: str) -> Any:
        return self._parts[key]

    def __setitem__(self, key: str, value: Any) -> None:
        """Keep a part; it is on its way to the disk when this returns.

        Raises:
            CheckpointError: the system refused to write.
        """
        if self._writer is not None:
            self._writer.append({"part": key, "value": value})
        self._parts[key] = value

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.sync()
            self._writer.close()
