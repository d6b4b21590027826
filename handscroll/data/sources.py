"""Documents as token arrays, with their boundaries and names. They are encoded once, and may be memory-mapped."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from typing import Self

import numpy as np

from handscroll.base.errors import CheckpointError, ConfigError, DataError
from handscroll.base.runs import make_folder, saving, write_chunks, write_file
from handscroll.data.stream import LeftOut
from handscroll.text.readers import Document, read
from handscroll.text.tokenizer import Tokenizer

_TOKENS = "tokens.npy"
_INDEX = "index.json"


class TokenSource:
    """Token arrays of documents, in order.

    `unknown[i]` counts the unknown tokens of document i, which stand for text that the tokenizer cannot encode. Look at
    this number before you trust a loss. `tokenizer` is the tokenizer's fingerprint.
    """

    def __init__(
        self,
        tokens: Sequence[np.ndarray],
        names: Sequence[str] | None = None,
        unknown: Sequence[int] | None = None,
        tokenizer: str | None = None,
    ):
        """
        Raises:
            DataError: there are no documents, one is empty, or an array is not one-dimensional and integer.
        """
        self.tokens = [np.asarray(document) for document in tokens]
        self.names = list(names) if names is not None else [f"document {i}" for i in range(len(self.tokens))]
        self.unknown = list(unknown) if unknown is not None else [0] * len(self.tokens)
        self.tokenizer = tokenizer
        if not self.tokens or not len(self.tokens) == len(self.names) == len(self.unknown):
            raise DataError(
                f"{len(self.tokens)} token arrays with {len(self.names)} names: give at least one array, and one name "
                "for each"
            )
        for name, document in zip(self.names, self.tokens, strict=True):
            if document.ndim != 1 or document.dtype.kind not in "iu" or not len(document):
                raise DataError(
                    f"{name}: the tokens have shape {document.shape} and type {document.dtype}; each document must be "
                    "a one-dimensional integer array that is not empty"
                )
        self.lengths = np.array([len(document) for document in self.tokens], dtype=np.int64)
        self._fingerprint: str | None = None

    @classmethod
    def build(
        cls,
        documents: Iterable[Document],
        tokenizer: Tokenizer,
        special: bool = True,
        end: bool = False,
        ends: Sequence[int] = (),
    ) -> Self:
        """Encode documents, as uint16 if the vocabulary fits into it, else as int32.

        `special` adds the tokenizer's own special tokens (such as BOS). `end` adds the end token after each document
        (`end_token`); `ends` are those of the model.

        Raises:
            ConfigError: `end` is set, but there is no end token.
            DataError: there are no documents, or one has no tokens.
        """
        last = end_token(tokenizer, ends) if end else None
        if end and last is None:
            raise ConfigError(
                "end = true, but this tokenizer has no eos token: leave `end` out, or name an eos token in the "
                "tokenizer's settings"
            )
        kind = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.int32
        tokens, names, unknown = [], [], []
        for document in documents:
            ids = np.array(tokenizer.encode(document.text, special=special), dtype=kind)
            if last is not None and (not len(ids) or ids[-1] != last):
                ids = np.append(ids, np.array([last], dtype=kind))
            tokens.append(ids)
            names.append(document.source)
            unknown.append(tokenizer.unknown(ids))
        return cls(tokens, names, unknown, tokenizer.fingerprint)

    @classmethod
    def from_paths(cls, paths: Sequence[str | Path], tokenizer: Tokenizer, end: bool = False) -> Self:
        """Read files, folders and globs (`handscroll.text.readers.read`) and encode them."""
        return cls.build(read(paths), tokenizer, end=end)

    @property
    def total(self) -> int:
        """Number of tokens."""
        return int(self.lengths.sum())

    @property
    def fingerprint(self) -> str:
        """First 16 hex digits of a SHA-256 over tokens and boundaries; computed once."""
        if self._fingerprint is None:
            digest = hashlib.sha256(self.lengths.tobytes())
            for document in self.tokens:
                digest.update(np.ascontiguousarray(document, dtype=np.int32).tobytes())
            self._fingerprint = digest.hexdigest()[:16]
        return self._fingerprint

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, number: int) -> np.ndarray:
        return self.tokens[number]

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.tokens)

    def shorter(self, least: int, what: str) -> tuple[LeftOut, ...]:
        """The documents of fewer than `least` tokens, as left out because they are shorter than `what`."""
        short = self.lengths < least
        if not short.any():
            return ()
        tokens = int(self.lengths[short].sum())
        return (LeftOut(int(short.sum()), tokens, len(self), self.total, f"shorter than {what}"),)

    def cut(self, tokens: int, why: str) -> tuple[LeftOut, ...]:
        """Tokens at the ends of documents, as left out."""
        return (LeftOut(0, tokens, len(self), self.total, why),) if tokens else ()

    def every(self, first: int, step: int) -> "TokenSource":
        """A source of documents first, first + step, ..., with its own fingerprint; the tokens are not copied."""
        taken = slice(first, None, step)
        return TokenSource(self.tokens[taken], self.names[taken], self.unknown[taken], self.tokenizer)

    def save(self, folder: str | Path) -> None:
        """Write `tokens.npy` and `index.json` into a folder; `load` maps them into memory.

        Raises:
            CheckpointError: the system refused to write.
        """
        folder = Path(folder)
        with saving(folder):
            make_folder(folder)
        index = {
            "fingerprint": self.fingerprint,
            "tokenizer": self.tokenizer,
            "documents": [
                {"name": name, "tokens": int(length), "unknown": int(unknown)}
                for name, length, unknown in zip(self.names, self.lengths, self.unknown, strict=True)
            ],
        }
        write_file(folder / _TOKENS, lambda path: write_chunks(path, self._npy()))
        write_file(folder / _INDEX, json.dumps(index, ensure_ascii=False, indent=1).encode())

    def _npy(self) -> Iterator[bytes]:
        kind = np.result_type(*(document.dtype for document in self.tokens))
        header = BytesIO()
        about = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": (self.total,)}
        np.lib.format.write_array_header_1_0(header, about)
        yield header.getvalue()
        for document in self.tokens:
            yield document.astype(kind, copy=False).tobytes()

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Map a saved source into memory. One pass over the content checks it against the stored fingerprint.

        Raises:
            CheckpointError: a file is missing or damaged, or the files do not belong together.
        """
        folder = Path(folder)
        try:
            index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
            flat = np.lib.format.open_memmap(folder / _TOKENS, mode="r")
            documents = index["documents"]
            ends = list(accumulate(document["tokens"] for document in documents))
            tokens = [flat[end - document["tokens"] : end] for end, document in zip(ends, documents, strict=True)]
            names, unknown = [d["name"] for d in documents], [d["unknown"] for d in documents]
            source = cls(tokens, names, unknown, index["tokenizer"])
            intact = len(flat) == ends[-1] and source.fingerprint == index["fingerprint"]
        except FileNotFoundError as error:
            raise CheckpointError(f"{folder} is not a saved token source ({error.filename} is missing)") from None
        except (ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError) as error:
            raise CheckpointError(f"{folder} is a damaged token source ({error}); build it again") from None
        if not intact:
            raise CheckpointError(f"{folder}: {_TOKENS} and {_INDEX} do not belong together; build the source again")
        return source


def end_token(tokenizer: Tokenizer, ends: Sequence[int] = ()) -> int | None:
    """The token that ends a document: the tokenizer's, unless the model ends its texts with others (`ends`)."""
    return ends[0] if ends and tokenizer.eos not in ends else tokenizer.eos
