"""The haystack: text to hide a needle in; the running Python's library unless the user gives files."""

from collections.abc import Sequence
from pathlib import Path

from handscroll.data.corpus import select
from handscroll.text.readers import read
from handscroll.text.tokenizer import Tokenizer

DEFAULT = ("turtle.py", "_pydecimal.py", "typing.py", "tarfile.py", "inspect.py")  # held out of the starter's training


def haystack(tokenizer: Tokenizer, files: Sequence[str | Path] | None, length: int, most: int = 1 << 20) -> list[int]:
    """Token ids of at least `length` tokens where the text has them, of at most `most` tokens."""
    paths = list(files) if files else select([f"{{stdlib}}/{name}" for name in DEFAULT])
    ids: list[int] = []
    for document in read(paths):
        ids += tokenizer.encode(document.text, special=False)
        if len(ids) > most:
            break
    return ids[:most]
