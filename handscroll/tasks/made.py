"""Texts that a model made from others, kept in the folder of a run, so that a run that was stopped makes none twice."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from handscroll.base.errors import DataError
from handscroll.base.runs import saving, write_all
from handscroll.data.table.augment import NoText

GROUP = 8  # texts that are made before they are written
OnDone = Callable[[int, int], None]  # how many texts there are, and how many are done


@dataclass(frozen=True)
class Made:
    """The folder where made texts are kept, if any; with `fresh` false what is there is read, and nothing written."""

    folder: Path | None = None
    fresh: bool = True

    def path(self, name: str, about: Mapping[str, Any]) -> Path | None:
        """The file of texts that were made by all that `about` says."""
        told = sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        return self.folder and self.folder / f"{name}-{told[:12]}.jsonl"

    def each(
        self,
        name: str,
        about: Mapping[str, Any],
        texts: Sequence[str],
        make: Callable[[Sequence[str]], Sequence[str | NoText]],
        on_done: OnDone,
    ) -> list[str | NoText]:
        """What `make` makes of each text, or made of it before.

        Raises:
            DataError: the file of what was made before is damaged.
        """
        path = self.path(name, about)
        known = _read(path) if path is not None and path.exists() else {}
        missing = [text for text in dict.fromkeys(texts) if text not in known]
        done = len(texts) - len(missing)
        for first in range(0, len(missing), GROUP):
            group = missing[first : first + GROUP]
            new = dict(zip(group, make(group), strict=True))
            if path is not None and self.fresh:
                _append(path, new)
            known |= new
            on_done(len(texts), done + first + len(group))
        return [known[text] for text in texts]


NOWHERE = Made()


def _read(path: Path) -> dict[str, str | NoText]:
    """The texts of a file; a last line without its end was cut by a kill and does not count."""
    found: dict[str, str | NoText] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            text, made, why = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number} is damaged ({error}): remove the file, or the line") from None
        found[text] = NoText(why) if made is None else made
    return found


def _append(path: Path, made: Mapping[str, str | NoText]) -> None:
    """Write texts behind the whole lines of a file."""
    rows = [(text, None, one.why) if isinstance(one, NoText) else (text, one, None) for text, one in made.items()]
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "surrogatepass")
    with saving(path, len(content)):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            file.seek(0)
            before = file.read()
            file.truncate(before.rfind(b"\n") + 1)
            write_all(file.fileno(), content)
            os.fsync(file.fileno())
