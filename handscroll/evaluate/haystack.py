"""The haystack: text to hide a needle in. The default is the running Python's standard library."""

from collections.abc import Sequence
from pathlib import Path

from handscroll.data.corpus import select
from handscroll.text.readers import Reader
from handscroll.text.tokenizer import Tokenizer

MOST = 1 << 20  # tokens of a text that are kept, if no length needs more
DEFAULT = ("turtle.py", "_pydecimal.py", "typing.py", "tarfile.py", "inspect.py")  # held out of the starter's training


def haystack(
    tokenizer: Tokenizer,
    files: Sequence[str | Path] | None,
    length: int,
    most: int = MOST,
    reader: Reader | None = None,
) -> list[int]:
    """Token ids of the files' text (default: the standard library), at most `largest(length, most)` of them.

    They may be fewer than `length` if the text is short; the caller checks that.
    """
    paths = list(files) if files else select([f"{{stdlib}}/{name}" for name in DEFAULT])
    most, ids = largest(length, most), list[int]()
    for document in (reader or Reader()).read(paths):
        ids += tokenizer.encode(document.text, special=False)
        if len(ids) > most:
            break
    return ids[:most]


def largest(length: int, most: int = MOST) -> int:
    """The most tokens of a haystack: `most`, or twice a length that needs more, so that pieces of it may differ."""
    return most if length <= most else 2 * length
