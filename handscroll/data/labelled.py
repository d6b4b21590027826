"""Labelled documents, whole and packed: the label is the target of a document's last token, and nothing else is one.

For encoders it is that of the first one (`AtFirst`), whose state their head reads.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from handscroll.base.errors import ConfigError, DataError, nearest
from handscroll.data.row import IGNORED, Piece, Row, join
from handscroll.data.sources import TokenSource
from handscroll.data.stream import State, Stream
from handscroll.text.readers import Document
from handscroll.text.tokenizer import Tokenizer


def read_labelled(path: str | Path, labels: Sequence[str]) -> tuple[list[Document], list[int]]:
    """The documents of a file and their labels' numbers: `.jsonl` with `text` and `label` in each line, `.tsv` with a
    label, a tab and the text (no header).

    Raises:
        DataError: a missing file, another suffix, or a line without text, or with a label that is not in `labels`.
    """
    path = Path(path)
    if path.suffix not in (".tsv", ".jsonl"):
        raise DataError(f"{path}: labelled text is a .tsv (label, tab, text) or a .jsonl (text, label)")
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    documents: list[Document] = []
    numbers: list[int] = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            label, text = _json(path, number, line) if path.suffix == ".jsonl" else _columns(path, number, line)
            if label not in labels:
                raise DataError(f"{path}:{number} has the label '{label}': {nearest(label, labels)}")
            documents.append(Document(text, f"{path}:{number}"))
            numbers.append(list(labels).index(label))
    return documents, numbers


def _columns(path: Path, number: int, line: str) -> tuple[str, str]:
    label, tab, text = line.rstrip("\r\n").partition("\t")
    if not tab or not text:
        raise DataError(f"{path}:{number} is no label, tab and text")
    return label, text


def _json(path: Path, number: int, line: str) -> tuple[str, str]:
    try:
        values = json.loads(line)
        return str(values["label"]), str(values["text"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}:{number} is no JSON object with text and label ({error})") from None


class Labelled(Stream[Row]):
    """Whole documents one behind the other in rows of `length`, shuffled anew by (seed, epoch), without end.

    A document that does not fit into what is left of a row begins the next one, and the rest is padding.
    """

    def __init__(self, source: TokenSource, labels: Sequence[int], length: int, seed: int):
        """
        Raises:
            ConfigError: a setting out of range. DataError: a document is longer than a row.
        """
        if length < 1 or seed < 0 or len(labels) != len(source):
            raise ConfigError(f"length {length}, seed {seed}, {len(labels)} labels for {len(source)} documents")
        long = np.flatnonzero(source.lengths > length)
        if len(long):
            raise DataError(
                f"{len(long)} documents are longer than a row of {length} tokens, first {source.names[int(long[0])]} "
                f"with {source.lengths[long[0]]}; nothing is cut off in silence: give longer rows or shorter texts"
            )
        self.source, self.labels, self.length, self.seed = source, np.asarray(labels), length, seed

    @classmethod
    def read(cls, path: str | Path, labels: Sequence[str], tokenizer: Tokenizer, length: int, seed: int) -> "Labelled":
        """Rows of a labelled file."""
        documents, numbers = read_labelled(path, labels)
        return cls(TokenSource.build(documents, tokenizer), numbers, length, seed)

    def identity(self) -> State:
        of = {"source": self.source.fingerprint, "labels": self.labels.tolist()}
        return {"stream": "labelled", "length": self.length, "seed": self.seed, **of}

    def row(self, documents: Sequence[int]) -> Row:
        """The row of some whole documents."""
        pieces = [Piece(document, 0, int(self.source.lengths[document])) for document in documents]
        row = join(pieces, [self.source[document] for document in documents], self.length, counted=0)
        row.targets[np.cumsum([piece.size for piece in pieces]) - 1] = self.labels[list(documents)]
        return row

    def _layout(self, epoch: int) -> Iterator[list[int]]:
        row: list[int] = []
        room = self.length
        for document in np.random.default_rng([self.seed, epoch]).permutation(len(self.source)).tolist():
            size = int(self.source.lengths[document])
            if size > room:
                yield row
                row, room = [], self.length
            row.append(document)
            room -= size
        yield row

    def _items(self, position: State | None) -> Iterator[tuple[Row, State]]:
        epoch, done = (position["epoch"], position["row"]) if position else (0, 0)
        while True:
            for number, documents in enumerate(self._layout(epoch)):
                if number >= done:
                    yield self.row(documents), {"epoch": epoch, "row": number + 1}
            epoch, done = epoch + 1, 0


class AtFirst(Stream[Row]):
    """The rows of `Labelled`, each label at its document's first token."""

    def __init__(self, rows: Stream[Row]):
        self.rows = rows

    def identity(self) -> State:
        return {"stream": "at first", "inner": self.rows.identity()}

    def _items(self, position: State | None) -> Iterator[tuple[Row, State]]:
        for row, state in self.rows.resume(position["inner"] if position else None):
            ends = np.flatnonzero(row.targets != IGNORED)
            starts = ends - (ends if row.positions is None else row.positions[ends])
            targets = np.full_like(row.targets, IGNORED)
            targets[starts] = row.targets[ends]
            yield replace(row, targets=targets), {"inner": state}
