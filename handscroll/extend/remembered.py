"""What a lengthening has measured so far, in a file: an interrupted one goes on where it stopped."""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from handscroll.base.errors import CheckpointError
from handscroll.base.records import RecordWriter, read_records
from handscroll.lm import LM

Values = dict[str, Any]


class Remembered:
    """Values by what they were measured on: the model, its text and a name. Without a folder nothing is remembered."""

    def __init__(self, folder: Path | None, lm: LM):
        self.path = None if folder is None else folder / "measured.jsonl"
        self.used = 0  # values that an earlier run had measured
        self._model = "" if folder is None else lm.identity(1).digest()
        self._known: dict[str, Values] = {}
        if self.path is not None and self.path.exists():
            with suppress(CheckpointError):  # damaged: what is missing is measured again
                for record in read_records(self.path):
                    self._known[str(record.get("of"))] = record

    def value(self, of: Any, measure: Callable[[], Values]) -> Values:
        """What `measure` gives, from the file if it was measured before; `of` says on what (JSON)."""
        if self.path is None:
            return measure()
        key = hashlib.sha256(json.dumps([self._model, of], sort_keys=True, default=str).encode()).hexdigest()[:32]
        if key in self._known:
            self.used += 1
            return self._known[key]
        found = measure()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with RecordWriter(self.path) as writer:
            writer.append({"of": key, **found})
            writer.sync()
        return found

    def forget(self) -> None:
        """Remove the file, when the result of the measurements is saved."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
            with suppress(OSError):  # it holds files of others
                self.path.parent.rmdir()
