"""Reads a text into the store, after the beginning that the store already holds."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from handscroll.base.errors import CapacityError, ConfigError, DataError, nearest
from handscroll.cache.buffered import Buffered
from handscroll.cache.reading.identity import Identity
from handscroll.cache.reading.names import Origin, check_name
from handscroll.cache.reading.reading import Document, Reading
from handscroll.cache.reading.store import Store
from handscroll.cache.table import DEFAULT, POLICIES, cache_of, footprint, kind_of
from handscroll.generate.budget import Demand
from handscroll.generate.prefill import CHUNK, hidden_chunks, prefill_chunk
from handscroll.generate.prepare import afford_demand, identity_of
from handscroll.models.model import Model
from handscroll.nn.finite import finite
from handscroll.nn.marks import Marks
from handscroll.text.tokenizer import Tokenizer

# For a model with windows the reading is saved in parts of so many times its largest window. A text that shares only
# the beginning of a reading continues from the end of such a part; each part costs a window of keys in the windowed
# layers.
STRETCH = 32
# What was read is saved as it grows, so that a text goes on where it stopped: every so many seconds, at most this share
# of the time spent writing, and a part holds at least this share of the text before it. So a reading of hours has some
# hundred parts, and what a kill costs is at most a fiftieth of it.
EVERY, WRITING, LEAST = 15.0, 0.05, 0.02
ROOM = 1024  # tokens kept free for question and answer when a text is read


@dataclass(frozen=True, eq=False)
class ToRead:
    """A text (ids) to read and keep.

    `source` is the place of the model. Questions find the reading by `name`. `room` is the number of tokens declared
    for question and answer; it fixes a length-dependent scaling. `on_read(done, all)` is called after every chunk.
    `adapters` are those of the model; `chunk` tokens are read at a time.
    `document` is the text in the ids, if they are a chat template around it.
    What is unfinished is found as `unfinished`, and its next part as `unfinished`.next before it is written: so whoever
    forgets both leaves nothing of it, even after a kill. Without it nothing but the text leads to what was read so far.
    """

    ids: Int[Tensor, "T"]
    source: str
    name: str = ""
    room: int = ROOM
    beyond: bool = False
    policy: str = DEFAULT
    on_read: Callable[[int, int], None] | None = None
    adapters: tuple[str, ...] = ()
    document: Document | None = None
    chunk: int = CHUNK
    unfinished: str = ""


def read(model: Model, tokenizer: Tokenizer, store: Store, text: ToRead) -> Reading:
    """Read a text once and save the reading. A beginning that the store already holds is not read again.

    What was read is saved as it grows. If the process is interrupted or killed, the same call goes on from there.

    Raises:
        CapacityError: text and room exceed the context (unless `beyond`), the memory, or the limit of the store.
        ConfigError: caches of this policy cannot be saved. DataError: the text is empty.
        CheckpointError: writing failed, or a saved beginning is damaged.
    """
    model.spec.require("a saved reading", one_text=True, forward=True, keys=True)
    if not kind_of(text.policy).saved:
        saved = [name for name, kind in POLICIES.items() if kind.saved]
        raise ConfigError(f"a reading cannot be kept in '{text.policy}': {nearest(text.policy, saved)}")
    if not len(text.ids):
        raise DataError("there is nothing to read: the text is empty")
    total = len(text.ids) + text.room
    if total > model.config.context and not text.beyond:
        raise CapacityError(
            f"the text has {len(text.ids)} tokens and {text.room} are kept free for question and answer: "
            f"{total} in all, but the model's context is {model.config.context}; read less, or lengthen the "
            f"model first (handscroll extend ... --to {total})"
        )
    for name in (text.name, text.unfinished and f"{text.unfinished}.next"):
        if name:
            check_name(name)
    number = _read_into(store, model, identity_of(model, tokenizer, total, text.policy), text)
    if text.name:
        store.name(text.name, number, len(text.ids), text.document, Origin(text.source, text.adapters))
    return store.open(number).part(len(text.ids))


@dataclass(eq=False)
class Growing:
    """Saves what a cache has read of a text while it grows, in parts that follow each other."""

    store: Store
    about: Identity
    cache: Buffered
    before: Reading | None
    text: ToRead
    part: str = ""
    saved: int = 0
    cost: float = 0.0
    last: float = field(default_factory=time.monotonic)

    def keep(self, done: int) -> None:
        """Save the first `done` tokens if that is due."""
        now = time.monotonic()
        if now - self.last >= max(EVERY, self.cost / WRITING) and done - self.saved >= LEAST * done:
            self.save(done)

    def save(self, done: int) -> str:
        """Save the first `done` tokens; returns the number of their part."""
        begun = time.monotonic()
        text = self.text
        own = (text.source, self.part, text.adapters)
        if text.unfinished:
            self.store.name(f"{text.unfinished}.next", self.store.number(self.about, text.ids[:done]), done)
        self.part = self.store.save(self.about, text.ids[:done], self.cache, self.before, *own)
        if text.unfinished:
            self.store.name(text.unfinished, self.part, done)
        self.saved, self.last = done, time.monotonic()
        self.cost = self.last - begun
        return self.part

    def stop(self) -> None:
        """Save what the cache holds when a person interrupts it.

        Not of windowed layers, whose tokens may be on the move; what they had saved before is kept.
        """
        done = self.cache.length
        if not any(self.cache.windows) and done > max(self.saved, self.cache.before):
            self.save(done)


@torch.no_grad()
def _read_into(store: Store, model: Model, about: Identity, text: ToRead) -> str:
    """Read and save the part of a text that the store lacks; returns the number of the reading that holds all."""
    ids, before = text.ids, store.find(about, text.ids)
    first = 0 if before is None else before.length
    if before is not None and first >= len(ids):
        return before.number
    store.afford(footprint(text.policy, model.config, model.cache_dtype.itemsize).held(len(ids) - first))
    length, most = model.spec.declared(len(ids) + text.room), STRETCH * max(window or 0 for window in model.windows)
    begin = max(first, len(ids) - most) if most else first  # of models with windows only a stretch is in memory
    demand = Demand(ids.tolist(), 0, past=begin, saved=True, filed=True)
    afford_demand(model, demand, text.policy, text.chunk, demand.others(text.policy))
    number = ""
    for begin in range(first, len(ids), most or len(ids)):
        end = min(begin + most, len(ids)) if most else len(ids)
        past = {} if before is None else before.past(model.device)
        cache = model.new_cache(end - begin, cache_of(text.policy), **past)
        assert isinstance(cache, Buffered), "saved policies keep their tensors in buffers"
        marks, tokens = Marks.run(begin, end - begin), ids[None, begin:end].to(model.device)
        grown = Growing(store, about, cache, before, text)
        try:
            for _, last, hidden in hidden_chunks(model, tokens, marks, cache, length, text.chunk):
                finite(hidden)  # before anything of it is kept
                if text.on_read is not None:
                    text.on_read(begin + last, len(ids))
                if begin + last < end:
                    grown.keep(begin + last)
        except KeyboardInterrupt:
            grown.stop()
            raise
        number = grown.save(end)
        before = store.open(number) if end < len(ids) else None
    return number


@torch.no_grad()
def held(
    model: Model,
    tokenizer: Tokenizer,
    ids: Sequence[int] | np.ndarray,
    total: int,
    on_read: Callable[[int], None] = lambda done: None,
) -> Reading:
    """A beginning that requests of up to `total` tokens share, read once and held in memory.

    It is what a saved reading is to `Request(reading=...)`, for as long as the process runs.
    """
    model.spec.require("a reading", one_text=True, forward=True, keys=True)
    tokens = torch.as_tensor(np.asarray(ids, dtype=np.int64))
    cache, marks, device = model.new_cache(len(tokens)), Marks.run(0, len(tokens)), model.device
    length = model.spec.declared(total)
    for _, last, hidden in hidden_chunks(model, tokens[None].to(device), marks, cache, length, prefill_chunk(device)):
        finite(hidden)
        on_read(last)
    return Reading("", identity_of(model, tokenizer, total), tokens, cache.branch().past, model.windows)
