"""Texts that a model made from others, kept in the folder of a run, so that a run that was stopped makes none twice."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from handscroll.base.records import RecordWriter, read_records, requiring
from handscroll.base.runs import saving
from handscroll.data.table.augment import NoText

GROUP = 8  # texts that are made before they are written
NAMES = ("text", "made", "why")  # of a record; `made` is null where nothing came of a text, and `why` says the reason
OnDone = Callable[[int, int], None]  # how many texts there are, and how many are done


@dataclass(frozen=True)
class Made:
    """The folder where made texts are kept, if any; with `fresh` false what is there is read, and nothing written.

    `tell` receives how many of them an earlier start has made.
    """

    folder: Path | None = None
    fresh: bool = True
    tell: Callable[[str], None] = lambda text: None

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
            CheckpointError: the file of what was made before is damaged, or cannot be written.
        """
        path = self.path(name, about)
        known = _read(path) if path is not None and path.exists() else {}
        missing = [text for text in dict.fromkeys(texts) if text not in known]
        there = len(texts) - len(missing)
        if known:
            self.tell(f"{name}: {sum(text in known for text in texts):,} of {len(texts):,} texts are in {path} already")
            on_done(len(texts), there)
        with _writer(path) if path is not None and self.fresh and missing else nullcontext() as writer:
            for first in range(0, len(missing), GROUP):
                group = missing[first : first + GROUP]
                new = dict(zip(group, make(group), strict=True))
                if writer is not None:
                    _write(writer, new)
                known |= new
                on_done(len(texts), there + first + len(group))
        return [known[text] for text in texts]


NOWHERE = Made()


def _read(path: Path) -> dict[str, str | NoText]:
    records = requiring(read_records(path), path, lambda record: NAMES)
    rows = ([record[name] for name in NAMES] for record in records)
    return {text: NoText(why) if made is None else made for text, made, why in rows}


def _write(writer: RecordWriter, new: Mapping[str, str | NoText]) -> None:
    for text, made in new.items():
        told = (text, None, made.why) if isinstance(made, NoText) else (text, made, None)
        writer.append(dict(zip(NAMES, told, strict=True)))
    writer.sync()


def _writer(path: Path) -> RecordWriter:
    with saving(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    return RecordWriter(path)
