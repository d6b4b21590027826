"""Masked rows (Devlin et al. 2019, section 3.1): some tokens are hidden, and the model predicts them.

The choice depends only on the seed and the number of the row in its stream. So every memory strategy and every rank
sees the same masks, a resumed run gets the masks of an uninterrupted one, and a repeated text is masked differently.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from handscroll.base.errors import ConfigError
from handscroll.data.row import IGNORED, Row
from handscroll.data.stream import State, Stream
from handscroll.text.tokenizer import Tokenizer
from handscroll.text.words import Words


@dataclass(frozen=True)
class Masking:
    """Chooses the tokens to predict, and what replaces them.

    A share `rate` of the text tokens is chosen, at least one in each row. A share `masked` of the chosen tokens becomes
    `mask`, a share `random` becomes a random one of `ordinary` (ids that stand for text), and the rest stays unchanged
    (80, 10 and 10 % in the paper). With `words` whole words are chosen, as many as fit into the rate.
    """

    mask: int
    ordinary: np.ndarray
    rate: float = 0.15
    masked: float = 0.8
    random: float = 0.1
    words: Words | None = None

    def __post_init__(self):
        if not 0 < self.rate < 1 or min(self.masked, self.random) < 0 or self.masked + self.random > 1:
            raise ConfigError(
                f"masking: rate {self.rate}, masked {self.masked}, random {self.random}: the rate must lie between 0 "
                "and 1; the other two are shares of the chosen tokens, and their sum must be at most 1"
            )

    @classmethod
    def of(cls, tokenizer: Tokenizer, words: Words | None = None, **shares: float) -> "Masking":
        """The masking for rows of this tokenizer's tokens.

        Raises:
            ConfigError: the tokenizer has no mask token, or a share is out of range.
        """
        if tokenizer.mask is None:
            raise ConfigError(
                "this tokenizer has no mask token ([MASK], <mask>): name it in tokenizer_config.json as mask_token, or "
                'train one with special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]'
            )
        special = tokenizer.special
        ordinary = [n for n, word in enumerate(tokenizer.words) if word is not None and n not in special]
        return cls(tokenizer.mask, np.array(ordinary, dtype=np.int64), words=words, **shares)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that the masks depend on, for a stream's identity."""
        shares = {name: getattr(self, name) for name in ("mask", "rate", "masked", "random")}
        return shares | {"ordinary": len(self.ordinary), "words": None if self.words is None else self.words.name}

    def apply(self, row: Row, draw: np.random.Generator) -> Row:
        """The row with tokens hidden; its targets are the hidden tokens, and -100 elsewhere."""
        text = np.isin(row.tokens, self.ordinary)
        if row.segment is not None:
            text &= row.segment >= 0
        places = np.flatnonzero(text)
        chosen = self._chosen(row, places, draw)
        tokens, targets = row.tokens.copy(), np.full(len(row.tokens), IGNORED, dtype=np.int64)
        targets[chosen] = row.tokens[chosen]
        chance, other = draw.random(len(chosen)), draw.integers(0, len(self.ordinary), len(chosen))
        hidden, swapped = chance < self.masked, chance >= 1 - self.random
        tokens[chosen[hidden]] = self.mask
        tokens[chosen[swapped]] = self.ordinary[other[swapped]]
        return replace(row, tokens=tokens, targets=targets)

    def _chosen(self, row: Row, places: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        if not len(places):
            return places
        wanted = max(1, round(self.rate * len(places)))
        if self.words is None:
            return np.sort(draw.permutation(places)[:wanted])
        groups = self.words.groups(row.tokens)
        if row.segment is not None:  # a word ends with its document
            groups = np.unique(np.stack([groups, row.segment]), axis=1, return_inverse=True)[1].reshape(-1)
        numbers, sizes = np.unique(groups[places], return_counts=True)
        taken, left = [], wanted
        for at in draw.permutation(len(numbers)):
            if sizes[at] <= left:
                taken.append(numbers[at])
                left -= sizes[at]
            if not left:
                break
        if not taken:  # every word is longer than the rate allows: take the shortest one
            taken = [numbers[np.argmin(sizes)]]
        return places[np.isin(groups[places], taken)]


class MaskedRows(Stream[Row]):
    """The rows of another stream, masked."""

    def __init__(self, rows: Stream[Row], masking: Masking, seed: int):
        self.rows, self.masking, self.seed = rows, masking, seed

    def identity(self) -> State:
        return {"stream": "masked", "seed": self.seed, **self.masking.settings, "inner": self.rows.identity()}

    def _items(self, position: State | None) -> Iterator[tuple[Row, State]]:
        number, inner = (position["row"], position["inner"]) if position else (0, None)
        for row, state in self.rows.resume(inner):
            draw = np.random.default_rng([self.seed, number])
            number += 1
            yield self.masking.apply(row, draw), {"row": number, "inner": state}
