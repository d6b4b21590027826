"""Windows of real text for evaluation: which tokens of which document, fixed by a seed."""

import hashlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from handscroll.base.errors import DataError
from handscroll.text.readers import Document, read
from handscroll.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Sample:
    """`ids` of one window, and where it was cut: document name and token offset in it."""

    ids: list[int]
    source: str
    offset: int


def windows(
    documents: Iterable[Document], tokenizer: Tokenizer, length: int, count: int | None = None, seed: int = 0
) -> list[Sample]:
    """Windows of exactly `length` tokens that do not overlap, each beginning as the tokenizer begins a text.

    Documents are cut from their start; a rest shorter than `length` is not used, and if nothing is long enough
    the longest document is named. With `count`, a seeded choice of that many, in reading order.

    Raises:
        DataError: no document has `length` tokens.
    """
    frame = tokenizer.encode("") if tokenizer.bos is not None else []
    prefix = [tokenizer.bos] if tokenizer.bos is not None and tokenizer.bos in frame else []
    if not prefix and tokenizer.cls is not None and tokenizer.cls in tokenizer.frame()[0]:
        prefix = [tokenizer.cls]  # and no [SEP] at the end: the text goes on
    body = length - len(prefix)
    found: list[Sample] = []
    longest, name = 0, "none"
    for document in documents:
        ids = tokenizer.encode(document.text, special=False)
        if len(ids) > longest:
            longest, name = len(ids), document.source
        for first in range(0, len(ids) - body + 1, body):
            found.append(Sample([*prefix, *ids[first : first + body]], document.source, first))
    if not found:
        raise DataError(
            f"no document has {length} tokens; the longest, {name}, has {longest + len(prefix)}. "
            "Give longer files or a smaller length"
        )
    if count is not None and count < len(found):
        chosen = random.Random(seed).sample(range(len(found)), count)
        found = [found[number] for number in sorted(chosen)]
    return found


def read_windows(
    paths: Sequence[str | Path], tokenizer: Tokenizer, length: int, count: int | None = None, seed: int = 0
) -> list[Sample]:
    """`windows` of the files, folders and globs in `paths`."""
    return windows(read(paths), tokenizer, length, count, seed)


def fingerprint(samples: Sequence[Sample]) -> str:
    """SHA-256 of the token ids of all samples: equal fingerprints, equal evaluation text."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(repr(sample.ids).encode())
    return digest.hexdigest()
