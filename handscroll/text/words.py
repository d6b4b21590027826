"""Which tokens make a word together: for whole-word masking.

A word is a run of letters and digits; a Chinese character is one by itself, or part of a word that jieba finds. A token
that holds the end of one word and the beginning of another counts to both, which joins them.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from handscroll.base.caches import private_folder
from handscroll.base.errors import ConfigError
from handscroll.text.spelling import spelling
from handscroll.text.tokenizer import Tokenizer

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_RUNS = re.compile(rf"(?P<han>[{HAN}]+)|[^\W{HAN}]+|[^\w\s]")
_ALL_HAN = re.compile(rf"[{HAN}]+")


class Words:
    """Groups the tokens of one tokenizer by words; `chinese` asks jieba (an optional package) for Chinese ones."""

    def __init__(self, tokenizer: Tokenizer, chinese: bool = False):
        """
        Raises:
            ConfigError: jieba is not installed, or the tokens have no text of their own.
        """
        spec = json.loads(tokenizer.source)
        self._marked = spec["model"].get("type") == "WordPiece" and spec["model"]["continuing_subword_prefix"] == "##"
        self._pieces: list[bytes | None]
        if self._marked:
            names = enumerate(tokenizer.words)
            self._pieces = [
                None if name is None or number in tokenizer.special else name.encode() for number, name in names
            ]
        else:
            self._pieces = spelling(tokenizer)
        instead = "or mask whole words without it (each Chinese character is then a word)"
        self._jieba = segmenter("whole Chinese words need", instead) if chinese else None

    @property
    def name(self) -> str:
        """What finds the words, with its version: what the grouping depends on besides the tokenizer."""
        return "runs" if self._jieba is None else f"jieba {self._jieba[0]}"

    def groups(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """For each token the number of its word (T,) int64, counted up from 0 along the row.

        >>> Words(bert).groups(bert.encode("cats sit", special=False))  # cat ##s sit
        array([0, 0, 1])
        """
        pieces = [self._pieces[int(number)] for number in ids]
        spans, text = self._laid_out(pieces)
        word = self._word_of_each_byte(text)
        group = np.zeros(len(pieces), dtype=np.int64)
        number, before = -1, -1  # `before`: the word that the last token ended in
        for place, (start, end) in enumerate(spans):
            inside = word[start:end]
            first = int(inside[0]) if len(inside) else -1
            if first < 0 or first != before:
                number += 1
            group[place] = number
            before = int(inside[-1]) if len(inside) else -1
        return group

    def _laid_out(self, pieces: Sequence[bytes | None]) -> tuple[list[tuple[int, int]], bytes]:
        """Where each piece lies in the text that they make together, and the text."""
        spans: list[tuple[int, int]] = []
        text = bytearray()
        before: bytes | None = None
        for piece in pieces:
            goes_on = self._marked and piece is not None and piece.startswith(b"##") and len(piece) > 2
            if piece is None or (self._marked and not goes_on and not (_han(piece) and _han(before))):
                text += b" "
            added = b"" if piece is None else piece[2:] if goes_on else piece
            spans.append((len(text), len(text) + len(added)))
            text += added
            before = piece
        return spans, bytes(text)

    def _word_of_each_byte(self, text: bytes) -> np.ndarray:
        """Number of the word that a byte belongs to, -1 for none."""
        # Bytes that are no character (a token may end inside one) become one odd character each.
        decoded = text.decode("utf-8", errors="surrogateescape")
        sizes = [len(letter.encode("utf-8", errors="surrogateescape")) for letter in decoded]
        ends = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        word = np.full(len(text), -1, dtype=np.int64)
        for number, (first, last) in enumerate(self._spans(decoded)):
            word[ends[first] : ends[last]] = number
        return word

    def _spans(self, text: str):
        for run in _RUNS.finditer(text):
            first, last = run.span()
            han = run["han"]
            if han is None:
                yield first, last
                continue
            for part in han if self._jieba is None else self._jieba[1].cut(han):
                yield first, first + len(part)
                first += len(part)


def _han(piece: bytes | None) -> bool:
    return piece is not None and _ALL_HAN.fullmatch(piece.decode("utf-8", errors="replace")) is not None


def segmenter(what: str, instead: str) -> tuple[str, Any]:
    """(version, segmenter) of jieba, with its dictionary's cache where only this user can write.

    Raises:
        ConfigError: jieba is not installed; the message says `what` needs it and what to do `instead`.
    """
    try:
        import jieba  # pyright: ignore[reportMissingImports] - optional
    except ModuleNotFoundError:
        raise ConfigError(
            f"{what} the package jieba, which is not installed: pip install 'handscroll[chinese]', {instead}"
        ) from None
    jieba.setLogLevel("WARNING")
    found = jieba.Tokenizer()
    # By default the cache, which is unmarshalled, would lie in the common folder for temporary files.
    found.tmp_dir = str(Path(private_folder("jieba")))  # pyright: ignore[reportAttributeAccessIssue]
    return jieba.__version__, found
