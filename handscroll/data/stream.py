"""Streams: iterators that yield `(item, state)`, so that a run resumes on the exact next item.

A stream is a description; iteration never changes it. `state` is a small dict that JSON can store. It marks the place
just after its item: `stream.resume(state)` continues with the next item. Streams never use the global random state.
"""

import bisect
import itertools
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from handscroll.base.errors import CheckpointError, ConfigError, DataError

T = TypeVar("T")
State = dict[str, Any]


@dataclass(frozen=True)
class LeftOut:
    """What of a text is in no item of a stream: whole documents, and their tokens or those at the ends of others."""

    documents: int
    tokens: int
    of_documents: int
    of_tokens: int
    why: str

    def __str__(self) -> str:
        part = f"{self.tokens:,} of {self.of_tokens:,} tokens"
        whole = f"{self.documents:,} of {self.of_documents:,} documents ({part})" if self.documents else part
        return f"{whole} are in no row: {self.why}"


class Stream(ABC, Generic[T]):
    """Base class of every source of training items. Subclasses implement `identity` and `_items`."""

    left_out: tuple[LeftOut, ...] = ()

    @property
    def dropped(self) -> int:
        """Tokens that are in no item."""
        return sum(one.tokens for one in self.left_out)

    def at_most(self, wanted: int) -> int:
        """How many of the first `wanted` items there can be, as far as that is known before they are made."""
        return wanted

    @abstractmethod
    def identity(self) -> State:
        """The kind of stream, its settings and its data's fingerprint; a state fits only an equal identity."""

    @abstractmethod
    def _items(self, position: State | None) -> Iterator[tuple[T, State]]:
        """Items after `position` (None: from the first), each with the position after it."""

    def __iter__(self) -> Iterator[tuple[T, State]]:
        return self._stated(None)

    def resume(self, state: State | None) -> Iterator[tuple[T, State]]:
        """Continue after the item that came with `state`; None begins at the first item.

        Raises:
            CheckpointError: the state belongs to other data or other settings.
        """
        if state is None:
            return self._stated(None)
        mine = self.identity()
        stored = state.get("of")
        if stored != mine or "at" not in state:
            theirs = stored if isinstance(stored, dict) else {}
            wrong = [key for key in {**theirs, **mine} if theirs.get(key) != mine.get(key)]
            what = "; ".join(f"{key}: stored {theirs.get(key)!r}, here {mine.get(key)!r}" for key in wrong)
            raise CheckpointError(
                f"the saved position does not belong to this data stream ({what or 'no position in it'}); "
                "resume with the settings and files of that run, or start a new one"
            )
        return self._stated(state["at"])

    def _stated(self, position: State | None) -> Iterator[tuple[T, State]]:
        mine = self.identity()
        for item, behind in self._items(position):
            yield item, {"of": mine, "at": behind}


class Numbered(Stream[T]):
    """Items that each depend on their number alone: a state is the number of the next one, under the name `key`."""

    key: ClassVar[str] = "next"
    count: int | None = None  # how many there are; None: they never end

    @abstractmethod
    def row(self, number: int) -> T:
        """Item `number`."""

    def at_most(self, wanted: int) -> int:
        return wanted if self.count is None else min(wanted, self.count)

    def _items(self, position: State | None) -> Iterator[tuple[T, State]]:
        first = position[self.key] if position else 0
        for number in itertools.count(first) if self.count is None else range(first, self.count):
            yield self.row(number), {self.key: number + 1}


class Listed(Stream[T]):
    """Items of a list, in order. Only their number is checked on resuming, so do not resume in another process."""

    def __init__(self, items: Sequence[T]):
        self.items = items

    def identity(self) -> State:
        return {"stream": "listed", "count": len(self.items)}

    def _items(self, position: State | None) -> Iterator[tuple[T, State]]:
        done = position["done"] if position else 0
        for number, item in enumerate(self.items[done:], start=done + 1):
            yield item, {"done": number}


class Take(Stream[T]):
    """The first `count` items of a stream. If it has fewer, iteration raises a `DataError` after the last one."""

    def __init__(self, stream: Stream[T], count: int):
        if count < 1:
            raise ConfigError(f"count is {count} items to take, but at least 1 is needed")
        self.stream, self.count = stream, count

    def identity(self) -> State:
        return {"stream": "take", "count": self.count, "inner": self.stream.identity()}

    def _items(self, position: State | None) -> Iterator[tuple[T, State]]:
        taken, inner = (position["taken"], position["inner"]) if position else (0, None)
        items = itertools.islice(self.stream.resume(inner), self.count - taken)
        for item, state in items:
            taken += 1
            yield item, {"taken": taken, "inner": state}
        if taken < self.count:
            raise DataError(
                f"the data ended after {taken:,} of {self.count:,} items; add text, repeat it or lower their number "
                "(steps)"
            )


class Repeat(Stream[T]):
    """A finite stream repeated `times` times (None: endlessly)."""

    def __init__(self, stream: Stream[T], times: int | None = None):
        if times is not None and times < 1:
            raise ConfigError(f"times is {times} repeats, but at least 1 is needed")
        self.stream, self.times = stream, times

    def identity(self) -> State:
        return {"stream": "repeat", "times": self.times, "inner": self.stream.identity()}

    def _items(self, position: State | None) -> Iterator[tuple[T, State]]:
        turn, inner = (position["turn"], position["inner"]) if position else (0, None)
        while self.times is None or turn < self.times:
            empty = inner is None
            for item, state in self.stream.resume(inner):
                empty = False
                yield item, {"turn": turn, "inner": state}
            if empty:
                return
            turn, inner = turn + 1, None


class Chain(Stream[T]):
    """Streams one after the other, as stages: for example short windows first and long windows later."""

    def __init__(self, streams: Sequence[Stream[T]]):
        if not streams:
            raise ConfigError("a chain needs at least one stream")
        self.streams = tuple(streams)

    def identity(self) -> State:
        return {"stream": "chain", "inner": [stream.identity() for stream in self.streams]}

    def beginning(self, stage: int) -> State:
        """A state from which `resume` continues at the beginning of a stage."""
        return {"of": self.identity(), "at": {"stage": stage, "inner": None}}

    def _items(self, position: State | None) -> Iterator[tuple[T, State]]:
        first, inner = (position["stage"], position["inner"]) if position else (0, None)
        for stage in range(first, len(self.streams)):
            for item, state in self.streams[stage].resume(inner):
                yield item, {"stage": stage, "inner": state}
            inner = None


class Mixture(Stream[T]):
    """Items drawn from several streams with fixed probabilities. It ends when the drawn stream has no more items.

    Draw `n` depends only on `(seed, n)`, so the random state is just the number of draws. The weights count items, not
    tokens. Put a finite stream into `Repeat` if it should not end the mixture.
    """

    def __init__(self, streams: Sequence[Stream[T]], weights: Sequence[float], seed: int):
        """
        Raises:
            ConfigError: there are no streams, their number differs from that of the weights, or a weight is not a
                positive number.
        """
        if not streams or len(streams) != len(weights):
            raise ConfigError(
                f"a mixture of {len(streams)} streams has {len(weights)} weights: give at least one stream, and one "
                "weight for each"
            )
        if not all(math.isfinite(weight) and weight > 0 for weight in weights):
            raise ConfigError(
                f"mixture weights {list(weights)}: each must be a positive number; to skip a stream, leave it out"
            )
        self.streams, self.weights, self.seed = tuple(streams), tuple(float(weight) for weight in weights), seed
        self._edges = list(itertools.accumulate(self.weights))

    def identity(self) -> State:
        inner = [stream.identity() for stream in self.streams]
        return {"stream": "mixture", "weights": list(self.weights), "seed": self.seed, "inner": inner}

    def at_most(self, wanted: int) -> int:
        left = [stream.at_most(wanted) for stream in self.streams]
        if min(left) == wanted:
            return wanted
        for draw in range(wanted):
            which = self._choice(draw)
            if not left[which]:
                return draw
            left[which] -= 1
        return wanted

    def _choice(self, draw: int) -> int:
        # Python hashes a text seed with SHA-512, so neighbouring draws are unrelated. A draw takes 10 microseconds.
        chance = random.Random(f"mixture {self.seed} {draw}").random()
        return bisect.bisect_right(self._edges, chance * self._edges[-1], hi=len(self._edges) - 1)

    def _items(self, position: State | None) -> Iterator[tuple[T, State]]:
        drawn = position["drawn"] if position else 0
        states: list[State | None] = list(position["inner"]) if position else [None] * len(self.streams)
        open_streams = [stream.resume(state) for stream, state in zip(self.streams, states, strict=True)]
        while True:
            which = self._choice(drawn)
            following = next(open_streams[which], None)
            if following is None:
                return
            item, states[which] = following
            drawn += 1
            yield item, {"drawn": drawn, "inner": list(states)}
