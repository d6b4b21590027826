"""The kinds of rows that a recipe can name under `data`. Each kind is a class here and a member of `RowData`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from handscroll.base.config import Config
from handscroll.data.blanks import Blanks, largest_piece, longest_span
from handscroll.data.corpus import select
from handscroll.data.labelled import Columns, Labelled, read_labelled
from handscroll.data.lanes import Lanes
from handscroll.data.pack import Packed
from handscroll.data.pairs import Pairs
from handscroll.data.recall import Copies, Facts
from handscroll.data.row import Row
from handscroll.data.sources import TokenSource, end_token
from handscroll.data.stream import Repeat, Stream
from handscroll.data.windows import CyclicWindows, SlidingWindows
from handscroll.text.blanks import BlankTokens
from handscroll.text.readers import Document, Reader
from handscroll.text.tokenizer import Tokenizer


class Files(Config):
    """Text files; `{stdlib}` stands for the running Python's standard library."""

    files: tuple[str, ...] = Field(min_length=1)
    exclude: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    key: str | None = Field(default=None, description="key or column that holds the text; text, else content")
    encoding: str | None = Field(default=None, description="encoding, where it is not recognised")
    skip_pictures: bool = Field(default=False, description="leave out pages of PDF files that are only pictures")
    end: bool | None = Field(
        default=None,
        description="whether each document ends with the end token, so that the model learns to stop; unless given, "
        "it does where there is such a token and the model reads forward",
    )

    def paths(self) -> list[Path]:
        return select(self.files, self.exclude, self.include)

    def source(self, tokenizer: Tokenizer, ends: tuple[int, ...] = (), forward: bool = True) -> TokenSource:
        """The files as tokens, for a model that ends its texts with `ends` and reads them `forward` or not."""
        usual = forward and end_token(tokenizer, ends) is not None
        return TokenSource.build(self.documents(), tokenizer, end=usual if self.end is None else self.end, ends=ends)

    def documents(self) -> Iterator[Document]:
        return Reader(self.key, self.encoding, self.skip_pictures).read(self.paths())


class TextData(Config):
    """Rows of real text. cyclic: shuffled rings; sliding: reading order, once; packed: several documents a row.

    `order = "reading"` (cyclic, sliding) makes contiguous rows, which the recurrent strategy needs. An update has as
    many lanes as rows. Each lane reads its own documents one after the other, so that every update continues the one
    before it.
    """

    kind: Literal["text"]
    sampling: Literal["cyclic", "sliding", "packed"] = "packed"
    order: Literal["shuffled", "reading"] = "shuffled"

    @model_validator(mode="after")
    def _possible(self):
        if self.order == "reading" and self.sampling == "packed":
            raise ValueError(
                "packed rows hold several documents and do not continue each other; use sampling sliding or cyclic"
            )
        return self

    def lanes(self, text: TokenSource, length: int, seed: int, rows: int) -> Stream[Row]:
        """The rows of `order = "reading"`."""

        def read(part: TokenSource) -> Stream[Row]:
            if self.sampling == "cyclic":
                return CyclicWindows(part, length, seed, short="pad", seam="split", order="reading")
            return Repeat(SlidingWindows(part, length))

        return Lanes(text, rows, read)

    def stream(self, text: TokenSource, tokenizer: Tokenizer, length: int, seed: int) -> Stream[Row]:
        if self.sampling == "cyclic":
            return CyclicWindows(text, length, seed, short="drop", seam="join")
        if self.sampling == "sliding":
            return SlidingWindows(text, length)
        return Packed(text, length, seed=seed, epochs=None)


class CopiesData(Config):
    """Repeated segments (`data/recall.py: Copies`)."""

    kind: Literal["copies"]
    segment: tuple[int, int] = (4, 16)
    symbols: int | None = None
    gap: int = 4
    several: int = 1
    real: float = 0.0

    def stream(self, text: TokenSource, tokenizer: Tokenizer, length: int, seed: int) -> Stream[Row]:
        settings = self.model_dump(exclude={"kind"})
        return Copies(text, tokenizer.vocab_size, length, seed, **settings)


class FactsData(Config):
    """Facts and questions in real text (`data/recall.py: Facts`)."""

    kind: Literal["facts"]
    facts: tuple[int, int] = (1, 4)
    questions: tuple[int, int] = (2, 6)
    digits: int = 5
    plain: float = 0.5
    edges: float = 0.0
    text: bool = True

    def stream(self, text: TokenSource, tokenizer: Tokenizer, length: int, seed: int) -> Stream[Row]:
        return Facts(text, tokenizer, length, seed, **self.model_dump(exclude={"kind"}))


class LabelledData(Config):
    """Whole documents with labels, from a `.tsv`, `.jsonl`, `.csv` or `.parquet` file (`data/labelled.py`)."""

    kind: Literal["labelled"]
    file: str
    labels: tuple[str, ...] = Field(min_length=2)
    key: str | None = Field(default=None, description="key or column that holds the text; text, else content")
    label: str = Field(default="label", description="key or column that holds the label")

    def stream(self, text: TokenSource, tokenizer: Tokenizer, length: int, seed: int) -> Stream[Row]:
        documents, numbers = read_labelled(self.file, self.labels, Columns(self.key, self.label))
        return Labelled(TokenSource.build(documents, tokenizer), numbers, length, seed)


class BlanksData(Config):
    """Pieces of the text with spans blanked (`data/blanks.py`)."""

    kind: Literal["blanks"]
    share: float = Field(default=0.15, gt=0, le=0.5, description="share of the tokens that are blanked")
    mean: float = Field(default=3.0, gt=0, description="mean number of tokens in a span")
    document: float = Field(default=0.0, ge=0, le=1, description="share of pieces whose whole rest is blanked")
    longest: int = Field(default=0, ge=0, description="tokens of a piece; 0: as many as fit")

    def stream(self, text: TokenSource, tokenizer: Tokenizer, length: int, seed: int) -> Stream[Row]:
        return Blanks(text, BlankTokens.of(tokenizer), length, seed, **self.model_dump(exclude={"kind"}))

    def places(self, length: int, document: int) -> tuple[int, int]:
        """How many entries of the two position tables rows of `length` tokens may use.

        `document`: tokens of the longest document.
        """
        piece = min(largest_piece(length, self.share), document)
        piece = min(piece, self.longest or piece)
        blanked = piece if self.document else min(longest_span(self.mean), max(1, round(self.share * piece)))
        return piece, blanked + 2  # places in a blank count from 1, and the first one is its start token


class PairsData(Config):
    """Pairs of texts, with a label that says whether the second follows the first (`data/pairs.py`)."""

    kind: Literal["pairs"]
    pairs: int = Field(default=1, ge=1, description="pairs packed into a row")

    def stream(self, text: TokenSource, tokenizer: Tokenizer, length: int, seed: int) -> Stream[Row]:
        return Pairs(text, tokenizer, length, self.pairs, seed)


RowData = Annotated[
    TextData | CopiesData | FactsData | PairsData | BlanksData | LabelledData, Field(discriminator="kind")
]
