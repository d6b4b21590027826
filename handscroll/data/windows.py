"""Windows of long documents: in reading order, or from a different cyclic offset in every epoch."""

import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from handscroll.base.errors import ConfigError, DataError
from handscroll.data.row import Piece, Row, join
from handscroll.data.sources import TokenSource
from handscroll.data.stream import Numbered, State, Stream


class SlidingWindows(Numbered[Row]):
    """One pass over every document, from its first token on, in windows of `length` tokens that start `stride` apart.

    With `stride == length` (the default) every token is in exactly one window. With a smaller stride windows overlap,
    and targets in the overlap count more than once. The last window of a document may have fewer than `length` tokens.
    It is padded (`tails="pad"`) or left out (`tails="drop"`; `left_out` counts the tokens). Windows of one document
    follow each other, so a recurrent state can be carried on; a row with `start == 0` begins a document.
    """

    key = "row"

    def __init__(
        self, source: TokenSource, length: int, stride: int | None = None, tails: Literal["pad", "drop"] = "pad"
    ):
        """
        Raises:
            ConfigError: `length`, `stride` or `tails` is not allowed.
            DataError: no window is left (`tails="drop"`).
        """
        stride = length if stride is None else stride
        if length < 1 or not 1 <= stride <= length:
            raise ConfigError(
                f"length {length}, stride {stride}: need 1 <= stride <= length; a larger stride would skip tokens"
            )
        if tails not in ("pad", "drop"):
            raise ConfigError(f"tails = {tails!r}; allowed are 'pad' and 'drop'")
        self.source, self.length, self.stride, self.tails = source, length, stride, tails
        full = np.maximum(0, (source.lengths - length) // stride + 1)
        reached = np.where(full > 0, (full - 1) * stride + length, 0)
        left = source.lengths - reached
        self._windows = full if tails == "drop" else full + (left > 0)
        if tails == "drop":
            ends = int(left[full > 0].sum())
            self.left_out = (
                *source.shorter(length, f"a window of {length} tokens"),
                *source.cut(ends, "behind the last whole window of a document"),
            )
        self._firsts = np.concatenate([[0], np.cumsum(self._windows)])
        if not self._firsts[-1]:
            raise DataError(
                f"no document has {length} tokens (the longest has {source.lengths.max()}); "
                "give longer documents, a shorter length, or tails='pad'"
            )
        self.count = len(self)

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def identity(self) -> State:
        settings = {"length": self.length, "stride": self.stride, "tails": self.tails}
        return {"stream": "sliding windows", **settings, "source": self.source.fingerprint}

    def row(self, number: int) -> Row:
        """Window `number` in reading order."""
        document = int(np.searchsorted(self._firsts, number, side="right")) - 1
        start = int(number - self._firsts[document]) * self.stride
        size = min(self.length, int(self.source.lengths[document]) - start)
        return join([Piece(document, start, size)], [self.source[document]], self.length)


class CyclicWindows(Stream[Row]):
    """Documents as rings, cut into windows of `length` tokens from a different offset in every epoch.

    With a fixed offset a token would have the same place in its window in every epoch, and some tokens would never be
    seen with a long past. Here document d of N tokens is cut at `(first_d + epoch * step) mod N`. The step has no
    common divisor with N, so over N epochs every token takes every place of a window. The step is near 0.618 of
    `length`, so a few epochs already spread the places well. A document gives `ceil(N / length)` windows. The last
    window may repeat tokens, which do not count again. So every token is a target once per epoch, except the first one
    of the document.

    A window that passes the document's end continues at its beginning. With `seam="split"` this is a new segment. With
    `seam="join"` the ring is one text: every token is then seen with every amount of past, but the past of the
    beginning is the end. The end never predicts the beginning. A document shorter than `length` becomes one padded
    window (`short="pad"`), is left out (`"drop"`; `left_out` counts it) or raises an error (`"error"`).

    `(seed, epoch)` shuffles the windows; `order="reading"` keeps documents and windows in order. The stream is endless
    unless `epochs` is given.
    """

    def __init__(
        self,
        source: TokenSource,
        length: int,
        seed: int,
        epochs: int | None = None,
        short: Literal["pad", "drop", "error"] = "pad",
        seam: Literal["split", "join"] = "split",
        order: Literal["shuffled", "reading"] = "shuffled",
    ):  # the user chooses each of these seven settings, and they have no natural groups
        """
        Raises:
            ConfigError: a setting is out of range.
            DataError: a document is too short (`short="error"`), or no window is left (`short="drop"`).
        """
        _allowed("short", short, ("pad", "drop", "error"))
        _allowed("seam", seam, ("split", "join"))
        _allowed("order", order, ("shuffled", "reading"))
        if length < 1 or seed < 0 or (epochs is not None and epochs < 1):
            raise ConfigError(f"length {length}, seed {seed}, epochs {epochs}: need length and epochs >= 1, seed >= 0")
        self.source, self.length, self.seed, self.epochs = source, length, seed, epochs
        self.short, self.seam, self.order = short, seam, order
        too_short = source.lengths < length
        if short == "error" and too_short.any():
            first = int(np.flatnonzero(too_short)[0])
            raise DataError(
                f"{int(too_short.sum())} documents are shorter than {length} tokens; the first is "
                f"{source.names[first]} with {source.lengths[first]}. Join them, give a smaller length, or choose "
                "short='pad' or 'drop'"
            )
        windows = -(-source.lengths // length)
        self.left_out = source.shorter(length, f"a row of {length} tokens") if short == "drop" else ()
        self._firsts = np.concatenate([[0], np.cumsum(np.where(too_short, 0, windows) if short == "drop" else windows)])
        if not self._firsts[-1]:
            raise DataError(f"no document has {length} tokens; give longer documents, a shorter length, or short='pad'")

    def __len__(self) -> int:
        """Windows in one epoch."""
        return int(self._firsts[-1])

    def identity(self) -> State:
        settings = {name: getattr(self, name) for name in ("length", "seed", "epochs", "short", "seam", "order")}
        return {"stream": "cyclic windows", **settings, "source": self.source.fingerprint}

    def offset(self, document: int, epoch: int) -> int:
        """The token at which a document's ring is cut in an epoch."""
        size = int(self.source.lengths[document])
        if size < self.length:
            return 0
        first = int(np.random.default_rng([self.seed, document]).integers(size))
        return (first + epoch * _step(size, self.length)) % size

    def row(self, epoch: int, number: int) -> Row:
        """Window `number` of an epoch, counted in the order of the documents."""
        document = int(np.searchsorted(self._firsts, number, side="right")) - 1
        size, before = int(self.source.lengths[document]), int(number - self._firsts[document]) * self.length
        start = (self.offset(document, epoch) + before) % size
        here = min(self.length, size - start)
        pieces = [Piece(document, start, here)]
        if here < self.length <= size:
            pieces.append(Piece(document, 0, self.length - here))
        row = join(pieces, [self.source[document]] * len(pieces), self.length, counted=size - before)
        if self.seam == "join" and len(pieces) == 2:
            return Row(row.tokens, row.targets, document, start)
        return row

    def _items(self, position: State | None) -> Iterator[tuple[Row, State]]:
        epoch, done = (position["epoch"], position["row"]) if position else (0, 0)
        while self.epochs is None or epoch < self.epochs:
            order: Any = range(len(self))
            if self.order == "shuffled":
                order = np.random.default_rng([self.seed, epoch, len(self)]).permutation(len(self))
            for turn in range(done, len(self)):
                yield self.row(epoch, int(order[turn])), {"epoch": epoch, "row": turn + 1}
            epoch, done = epoch + 1, 0


def _step(size: int, length: int) -> int:
    """The positive number nearest to 0.618 * `length` that has no common divisor with `size`."""
    golden = round(0.6180339887498949 * length) or 1
    candidates = (golden + sign * away for away in range(golden + size + 1) for sign in (1, -1))
    return next(step for step in candidates if step > 0 and math.gcd(step, size) == 1)


def _allowed(name: str, value: str, values: tuple[str, ...]) -> None:
    if value not in values:
        raise ConfigError(f"{name} = {value!r}; allowed are {', '.join(values)}")
