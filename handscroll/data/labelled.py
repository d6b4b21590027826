"""Packed rows of whole, labelled documents. The label is the target of a document's last token, its only target.

For encoders the label is the target of the first token (`AtFirst`), because their head reads that token's state.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from handscroll.base.errors import ConfigError, DataError
from handscroll.data.row import IGNORED, Piece, Row, join
from handscroll.data.sources import TokenSource
from handscroll.data.stream import State, Stream
from handscroll.text.document import Document
from handscroll.text.files import ROWS, kind, lines
from handscroll.text.rows import TEXT_KEYS, label_of, rows, text_of
from handscroll.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Columns:
    """Where text and label stand in a line or row; `text` None is `text`, else `content`."""

    text: str | None = None
    label: str = "label"


def read_labelled(
    path: str | Path, labels: Sequence[str], columns: Columns | None = None
) -> tuple[list[Document], list[int]]:
    """The documents of a file, and the number of each one's label in `labels`.

    A `.jsonl` file has an object with `text` and `label` in each line, a `.csv` or `.parquet` table has such columns. A
    `.tsv` file has a label, a tab and the text in each line, and no header. Encodings and texts are judged as in
    `text/readers.py`.

    Raises:
        DataError: the file is missing or of another kind, a line has no text, or a label is not in `labels`.
    """
    path, columns = Path(path), columns or Columns()
    if kind(path) not in ROWS:
        raise DataError(
            f"{path}: labelled text must be a .tsv file (label, tab, text without a header), or a .jsonl, .csv or "
            ".parquet file (text, label)"
        )
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    documents: list[Document] = []
    numbers: list[int] = []
    for where, values in _tabbed(path) if kind(path) == ".tsv" else rows(path, _asked(columns), None):
        numbers.append(label_of(values, where, columns.label, labels))
        documents.append(Document(text_of(values, where, columns.text), where))
    return documents, numbers


def _asked(columns: Columns) -> list[str]:
    return [*(TEXT_KEYS if columns.text is None else (columns.text,)), columns.label]


def _tabbed(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    count = 0
    for number, line in lines(path, None):
        if not line.strip():
            continue
        label, tab, text = line.partition("\t")
        if not tab or not text:
            raise DataError(f"{path}:{number} is not a label, a tab and a text")
        count += 1
        yield f"{path}:{number}", {"text": text, "label": label}
    if not count:
        raise DataError(f"{path}: the file has no labelled lines; remove it or fill it")


class Labelled(Stream[Row]):
    """Endless rows of `length` tokens, packed with whole documents; (seed, epoch) decides their order.

    A document that does not fit into the rest of a row begins the next row, and the rest is padded.
    """

    def __init__(self, source: TokenSource, labels: Sequence[int], length: int, seed: int):
        """
        Raises:
            ConfigError: a setting is out of range.
            DataError: a document is longer than a row.
        """
        if length < 1 or seed < 0 or len(labels) != len(source):
            raise ConfigError(f"length {length}, seed {seed}, {len(labels)} labels for {len(source)} documents")
        long = np.flatnonzero(source.lengths > length)
        if len(long):
            raise DataError(
                f"{len(long)} documents are longer than a row of {length} tokens; the first is "
                f"{source.names[int(long[0])]} with {source.lengths[long[0]]}. Documents are not cut: give longer rows "
                "or shorter texts"
            )
        self.source, self.labels, self.length, self.seed = source, np.asarray(labels), length, seed

    @classmethod
    def read(
        cls,
        path: str | Path,
        labels: Sequence[str],
        tokenizer: Tokenizer,
        length: int,
        seed: int,
    ) -> "Labelled":
        """Rows of a labelled file."""
        documents, numbers = read_labelled(path, labels)
        return cls(TokenSource.build(documents, tokenizer), numbers, length, seed)

    def identity(self) -> State:
        of = {"source": self.source.fingerprint, "labels": self.labels.tolist()}
        return {"stream": "labelled", "length": self.length, "seed": self.seed, **of}

    def row(self, documents: Sequence[int]) -> Row:
        """The row that holds these documents."""
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
    """The rows of `Labelled`, with each label moved to its document's first token."""

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
