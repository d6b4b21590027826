"""Measures how well a tokenizer fits a text, part by part."""

import numpy as np

from handscroll.base.errors import ConfigError
from handscroll.data.survey import letters
from handscroll.report.corpus import SHOWN, Coverage
from handscroll.text.spelling import spelling
from handscroll.text.tokenizer import Tokenizer


class TokenCounts:
    """Counts how often each token occurs.

    Parts of a document are encoded separately. This is exact for byte-level tokenizers; for others the error is at most
    one token per part.
    """

    def __init__(self, tokenizer: Tokenizer, name: str):
        self.tokenizer, self.name = tokenizer, name
        self.counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
        self.broken = _broken(tokenizer)

    def add(self, text: str) -> int:
        """Count the tokens of a text; returns their number."""
        ids = np.array(self.tokenizer.encode(text, special=False), dtype=np.int64)
        self.counts += np.bincount(ids, minlength=len(self.counts))
        return len(ids)

    def record(self, characters: np.ndarray) -> Coverage:
        """The coverage for the report; `characters` (0x110000,) counts the text's code points."""
        ordered = np.sort(self.counts)[::-1]
        reached = np.cumsum(ordered)
        total = int(reached[-1])
        half, nearly = (int(np.searchsorted(reached, share * total)) + 1 for share in (0.5, 0.95))
        spelled = self._spelled(characters)
        shown = sorted(spelled.items(), key=lambda one: (-one[1], one[0]))[:SHOWN]
        unknown = self.tokenizer.unk
        return Coverage(
            name=self.name,
            vocab=self.tokenizer.vocab_size,
            used=int(np.count_nonzero(self.counts)),
            half=half if total else 0,
            nearly_all=nearly if total else 0,
            tokens=total,
            unknown=0 if unknown is None else int(self.counts[unknown]),
            broken=None if self.broken is None else int(self.counts[self.broken].sum()),
            spelled=sum(spelled.values()) / max(1, int(characters.sum())),
            rare=tuple(shown),
        )

    def _spelled(self, characters: np.ndarray) -> dict[str, int]:
        """The characters that have no token of their own, and how often they occur.

        Encoded alone such a character is unknown, or becomes several tokens of bytes.
        """
        found = {}
        spaces = letters.SCRIPTS.index("spaces")
        for code in np.flatnonzero(characters).tolist():
            if letters.table()[code] == spaces or 0xD800 <= code < 0xE000:
                continue
            ids = self.tokenizer.encode(chr(code), special=False)
            unknown = self.tokenizer.unk is not None and self.tokenizer.unk in ids
            if unknown or (self.broken is not None and bool(self.broken[ids].any())):
                found[chr(code)] = int(characters[code])
        return found


def _broken(tokenizer: Tokenizer) -> np.ndarray | None:
    """The mask (V,) of tokens that hold a part of a character; None if tokens have no text of their own."""
    try:
        pieces = spelling(tokenizer)
    except ConfigError:
        return None
    found = np.zeros(tokenizer.vocab_size, dtype=bool)
    for number, piece in enumerate(pieces):
        if piece is not None:
            try:
                piece.decode()
            except UnicodeDecodeError:
                found[number] = True
    return found
