"""Span corruption (Raffel et al. 2020, arXiv:1910.10683, section 3.1.4): write the spans that were cut out of a text.

In the source one sentinel replaces each span. The target lists every sentinel, followed by its span. The loss is that
of `Causal` on the target, with the source as the encoder's input.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from handscroll.base.errors import ConfigError
from handscroll.data.row import IGNORED, Row
from handscroll.data.stream import State, Stream
from handscroll.models.model import Model
from handscroll.objectives.causal import Causal
from handscroll.objectives.settings import ObjectiveSettings
from handscroll.text.tokenizer import Tokenizer

SENTINEL = "<extra_id_{}>"  # the name of the sentinel of span 0, 1, ... of a text, in every T5 tokenizer


class SpanCorruption(ObjectiveSettings):
    """Cut out a share `density` of a text's tokens, in spans of `mean_span` tokens on average, and predict them."""

    name: ClassVar[str] = "span-corruption"
    quarters: ClassVar[bool] = True
    density: float = Field(default=0.15, gt=0, lt=1)
    mean_span: float = Field(default=3.0, ge=1, allow_inf_nan=False)

    def counts(self, length: int) -> tuple[int, int]:
        """(tokens, spans) to cut out of `length` tokens (2 or more): at least one is cut, and at least one is left."""
        cut = min(max(round(length * self.density), 1), length - 1)
        return cut, min(max(round(cut / self.mean_span), 1), cut, length - cut)

    def fits(self, model: Model) -> bool:
        return model.spec.reads == "source"

    def build(self, model: Model, data: Mapping[str, Any], smoothing: float, by_position: bool) -> Causal:
        return Causal(smoothing, by_position=by_position)

    def rows(self, rows: Stream[Row], length: int, seed: int, model: Model, tokenizer: Tokenizer) -> "Corrupted":
        words = {word: number for number, word in enumerate(tokenizer.words) if word is not None}
        end = model.config.eos[0] if model.config.eos else tokenizer.eos
        return Corrupted(rows, length, self, Frame.of(words, model.config.start, end), seed)


@dataclass(frozen=True)
class Frame:
    """The special tokens that corruption adds to a text.

    `sentinels` stand for the spans, in order. `start` begins the decoder's input. `end` ends source and target.
    """

    sentinels: tuple[int, ...]
    start: int
    end: int

    @classmethod
    def of(cls, words: Mapping[str, int], start: int, end: int | None) -> "Frame":
        """Find the sentinels `<extra_id_0>`, `<extra_id_1>`, ... among a tokenizer's tokens.

        Raises:
            ConfigError: the tokenizer has no sentinels, or no end token.
        """
        found: list[int] = []
        while (name := SENTINEL.format(len(found))) in words:
            found.append(words[name])
        if not found or end is None:
            lacks = "an end token" if found else f"{SENTINEL.format(0)} and the sentinels after it"
            raise ConfigError(
                f"span corruption: the tokenizer lacks {lacks}; use the tokenizer of a T5, or train one with "
                "tokenizer.train.sentinels and an end token among its special tokens"
            )
        return cls(tuple(found), start, end)


def corrupt(
    tokens: np.ndarray, settings: SpanCorruption, frame: Frame, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Source and target (int64, each with its end token) of a text of at least 2 tokens.

    At least one kept token separates two spans. All such placements with the same total of cut tokens are equally
    likely. The released code always keeps the beginning and cuts the end, so a short text with one span would lose its
    end every time; here a span may lie anywhere. Figure 2 of the paper shows a last sentinel without a span; like the
    released code, this function leaves it out.

    >>> frame = Frame(sentinels=(99, 98), start=0, end=1)
    >>> source, target = corrupt(np.arange(10, 20), SpanCorruption(density=0.3), frame, np.random.default_rng(0))
    >>> source.tolist(), target.tolist()
    ([10, 11, 12, 13, 14, 15, 99, 19, 1], [99, 16, 17, 18, 1])
    """
    cut, spans = settings.counts(len(tokens))
    assert spans <= len(frame.sentinels), (spans, len(frame.sentinels))
    kept, gone = _divided(len(tokens) - cut + 2, spans + 1, random), _divided(cut, spans, random)
    kept[[0, -1]] -= 1  # a span may stand at the very beginning or end of the text
    ends = np.cumsum(kept[:-1]) + np.cumsum(gone)
    source: list[np.ndarray] = []
    target: list[np.ndarray] = []
    begin = 0
    for number, (end, size) in enumerate(zip(ends.tolist(), gone.tolist(), strict=True)):
        sentinel = np.array([frame.sentinels[number]])
        source += [tokens[begin : end - size], sentinel]
        target += [sentinel, tokens[end - size : end]]
        begin = end
    source.append(tokens[begin:])
    last = np.array([frame.end])
    return tuple(np.concatenate([*parts, last]).astype(np.int64) for parts in (source, target))  # type: ignore[return-value]


def _divided(count: int, parts: int, random: np.random.Generator) -> np.ndarray:
    """Random positive numbers, `parts` of them, whose sum is `count`."""
    cuts = np.sort(random.choice(count - 1, parts - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [count]]))


class Corrupted(Stream[Row]):
    """Turns rows of text into rows with a source. Each document of a row is corrupted by itself, from sentinel 0 on.

    The cut depends only on the seed, the number of the row in the stream and the number of the document in the row.
    Each document is a segment with positions from 0, in the source and in the target, so packed documents do not see
    each other. An end token at the end of a document is not cut out. Documents with fewer than two tokens are left
    out, and so are rows that hold only such documents.
    """

    def __init__(self, rows: Stream[Row], length: int, settings: SpanCorruption, frame: Frame, seed: int):
        """
        Raises:
            ConfigError: a document of `length` tokens (a full row) would need more sentinels than the tokenizer has.
        """
        spans, there = settings.counts(max(2, length))[1], len(frame.sentinels)
        if spans > there:
            raise ConfigError(
                f"rows of {length} tokens need {spans} sentinels, but the tokenizer has {there}: raise "
                f"objective.mean_span to {settings.mean_span * spans / there:.2f} or more, or shorten the rows"
            )
        self.rows, self.settings, self.frame, self.seed = rows, settings, frame, seed

    def identity(self) -> State:
        frame = [*self.frame.sentinels, self.frame.start, self.frame.end]
        how = {"settings": self.settings.model_dump(), "frame": frame, "seed": self.seed}
        return {"stream": "span corruption", **how, "inner": self.rows.identity()}

    def row(self, row: Row, number: int) -> Row | None:
        """`row` corrupted, as number `number` of the stream; None if no document has two tokens."""
        segment = np.zeros(len(row.tokens), dtype=np.int64) if row.segment is None else row.segment
        sources: list[np.ndarray] = []
        targets: list[np.ndarray] = []
        for document in range(int(segment.max()) + 1):
            tokens = row.tokens[segment == document]
            tokens = tokens[:-1] if len(tokens) and tokens[-1] == self.frame.end else tokens
            if len(tokens) < 2:
                continue
            random = np.random.default_rng([self.seed, number, document])
            source, target = corrupt(tokens, self.settings, self.frame, random)
            sources.append(source)
            targets.append(target)
        if not sources:
            return None
        shifted = [np.concatenate([[self.frame.start], target[:-1]]) for target in targets]
        unread = [np.full(len(source), IGNORED, dtype=np.int64) for source in sources]
        return _joined(row, shifted, targets, _joined(row, sources, unread))

    def _items(self, position: State | None) -> Iterator[tuple[Row, State]]:
        number = position["row"] if position else 0
        for row, state in self.rows.resume(position["inner"] if position else None):
            made = self.row(row, number)
            number += 1
            if made is not None:
                yield made, {"row": number, "inner": state}


def _joined(row: Row, tokens: list[np.ndarray], targets: list[np.ndarray], source: Row | None = None) -> Row:
    """One row of several texts, one segment for each text; its place in the data is that of `row`."""
    plain = len(tokens) == 1
    segment = None if plain else np.concatenate([np.full(len(part), n) for n, part in enumerate(tokens)])
    positions = None if plain else np.concatenate([np.arange(len(part)) for part in tokens])
    joined = np.concatenate(tokens), np.concatenate(targets)
    return Row(*joined, row.document, row.start, segment, positions, source=source)
