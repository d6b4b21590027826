"""Windows of real text for evaluation, chosen by a seed."""

import hashlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from handscroll.base.errors import ConfigError, DataError
from handscroll.text.files import Paths
from handscroll.text.readers import Document, Reader
from handscroll.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Sample:
    """The `ids` of one window, and its place: the document's name and the token offset in it."""

    ids: list[int]
    source: str
    offset: int


def windows(
    documents: Iterable[Document], tokenizer: Tokenizer, length: int, count: int | None = None, seed: int = 0
) -> list[Sample]:
    """Windows of exactly `length` tokens that do not overlap. Each begins as the tokenizer begins a text.

    Documents are cut from their start, and a rest shorter than `length` is not used. With `count`, the seed chooses
    that many windows; they stay in reading order.

    Raises:
        DataError: no document has `length` tokens; the message names the longest.
        ConfigError: fewer than one window, or windows of fewer than two tokens.
    """
    if length < 2 or (count is not None and count < 1):
        many = "all" if count is None else str(count)
        raise ConfigError(f"{many} windows of {length} tokens: give at least one window, of at least two tokens")
    frame = tokenizer.encode("") if tokenizer.bos is not None else []
    prefix = [tokenizer.bos] if tokenizer.bos is not None and tokenizer.bos in frame else []
    if not prefix and tokenizer.cls is not None and tokenizer.cls in tokenizer.frame()[0]:
        prefix = [tokenizer.cls]  # without [SEP] at the end, because the text goes on
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
            f"no document has {length} tokens; the longest is {name} with {longest + len(prefix)}. "
            "Give longer files or a smaller length"
        )
    if count is not None and count < len(found):
        chosen = random.Random(seed).sample(range(len(found)), count)
        found = [found[number] for number in sorted(chosen)]
    return found


def read_windows(
    paths: Paths,
    tokenizer: Tokenizer,
    length: int,
    count: int | None = None,
    seed: int = 0,
    reader: Reader | None = None,
) -> list[Sample]:
    """`windows` from the files, folders and globs in `paths`."""
    return windows((reader or Reader()).read(paths), tokenizer, length, count, seed)


def fingerprint(samples: Sequence[Sample]) -> str:
    """SHA-256 of the token ids of all samples. Equal fingerprints mean equal evaluation text."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(repr(sample.ids).encode())
    return digest.hexdigest()
