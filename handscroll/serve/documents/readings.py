"""Documents are read one after the other on the thread that computes, kept as saved readings, and opened for questions.

What was read is kept as it grows; a server that is stopped goes on from there.
"""

import asyncio
import hashlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch

from handscroll.base.errors import CheckpointError, ConfigError, HandscrollError
from handscroll.cache.reading.reading import Document, Reading
from handscroll.cache.reading.store import Store
from handscroll.cache.table import DEFAULT, footprint
from handscroll.generate.ask import Opening, differing
from handscroll.generate.prepare import identity_of
from handscroll.generate.read import ToRead, read
from handscroll.serve.documents.eta import seconds_left
from handscroll.serve.documents.shelf import Entry, Shelf, absent
from handscroll.serve.errors import ApiError
from handscroll.serve.models import FAILURES, Served
from handscroll.serve.settings import ServeSettings
from handscroll.serve.worker import Worker

GOING = ("waiting", "reading")  # states of a reading that has not ended
CHUNK = 256  # tokens that are read before others may go on
OPENED = 32  # readings that are kept open; opening one checks the hashes of its files
_log = logging.getLogger("handscroll.serve")


class Stopped(Exception):
    """A document was deleted while it was read."""


@dataclass(eq=False)
class Progress:
    """A reading that waits or goes on. Its chunks are those of this run, after what was read before."""

    entry: Entry
    served: Served
    text: Opening
    begun: float = field(default_factory=time.monotonic)
    chunks: list[tuple[int, int, float]] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    halt: threading.Event = field(default_factory=threading.Event)  # what was read is kept
    future: "Future[Any] | None" = None

    @property
    def total(self) -> int:
        return len(self.text.ids)

    def cancel(self) -> bool:
        """Take it back; False if it has begun."""
        return self.future is not None and self.future.cancel()

    @property
    def done(self) -> int:
        return self.chunks[-1][1] if self.chunks else 0

    def failed(self, error: Exception) -> dict[str, Any]:
        """The state of a reading that came to nothing."""
        return {"state": "failed", "tokens": self.total, "error": _said(error)}

    def record(self, usual: float | None) -> dict[str, Any]:
        """How far it is; `usual` are the seconds of a token of this model."""
        left = seconds_left(self.chunks, self.total, usual)
        first, last, seconds = self.chunks[-1] if self.chunks else (0, 0, 0.0)
        return {
            "done": self.done,
            "total": self.total,
            "seconds_left": None if left is None else round(left, 1),
            "tokens_per_second": round((last - first) / seconds, 1) if seconds else None,
            "memory": {"planned": self._held(self.total), "used": self._held(self.done)},
        }

    def _held(self, tokens: int) -> int:
        """Bytes of the keys and values of so many tokens."""
        model = self.served.loaded.model
        return footprint(DEFAULT, model.config, model.cache_dtype.itemsize).held(tokens)


class Readings:
    """What is read, was read, and waits to be read. `models` gives those that are served, by their names."""

    def __init__(
        self, shelf: Shelf, worker: Worker, settings: ServeSettings, models: Callable[[], Mapping[str, Served]]
    ):
        self._shelf, self._worker, self._settings, self._models = shelf, worker, settings, models
        self._resumed = set[str]()  # models whose unread documents were taken up again
        self._going: dict[tuple[Entry, str], Progress] = {}
        self._opened: OrderedDict[tuple[str, str], tuple[Reading, Document | None]] = OrderedDict()
        self._unfit: dict[tuple[Entry, str], str] = {}  # why a reading is of no use to the model as it is now
        self._usual: dict[str, float] = {}  # seconds of a token, by model
        self._lock = threading.RLock()

    @property
    def waiting(self) -> int:
        """Documents that are read or wait for it."""
        return len(self._going)

    def store(self, owner: str) -> Store:
        """The readings of an owner."""
        return Store(self._settings.store / "readings", owner, self._settings.readings)

    def resume(self, served: Served) -> None:
        """Read on what an earlier server left unread by this model, if it writes text."""
        try:
            for entry in self._shelf.all() if served.engine is not None else ():
                if entry.readings.get(served.name, {}).get("state") in GOING:
                    self._resume(entry, served)
        finally:
            self._resumed.add(served.name)

    def _resume(self, entry: Entry, served: Served) -> None:
        try:
            self.begin(entry, served, resumed=True)
        except FAILURES as error:
            self._set(entry, served, {"state": "failed", "error": _said(error)})
            self._note(entry)

    def begin(self, entry: Entry, served: Served, resumed: bool = False) -> int:
        """Let a model read a document; nothing happens if it does already. Returns how many tokens will be read.

        One that is `resumed` and was stopped meanwhile stays so.

        Raises:
            ApiError: the model is not ready or writes no text. CheckpointError: the text is missing, or the disk
                refused.
        """
        served.writing  # noqa: B018 - refuses others
        with self._lock:
            if (entry, served.name) in self._going:
                return 0
        text = self._shelf.text(entry)
        begun = self._begun(served, text.text)
        fits = served.loaded.context - served.kept_free(self._settings.room)
        total = len(begun.ids)
        if total > fits:
            self._mark(
                entry, served, {"state": "refused", "tokens": total, "error": too_long(served, text, begun, fits)}
            )
            return 0
        progress = Progress(entry, served, begun)
        with self._lock:
            if entry.gone or (entry, served.name) in self._going:
                return 0
            if resumed and entry.readings.get(served.name, {}).get("state") not in GOING:
                return 0
            self._going[entry, served.name] = progress
        try:
            self._mark(entry, served, {"state": "waiting", "tokens": total})
            left = total - self._kept(progress)
            progress.future = self._worker.begin(lambda: self._read(progress))
        except FAILURES as error:
            self._leave(progress, progress.failed(error))
            raise
        return left

    def stop(self, entry: Entry, name: str) -> None:
        """Stop reading a document by the model of that name; what was read is kept, and `begin` goes on from there.

        The model may be one that is not loaded yet, or is not served any more.
        """
        with self._lock:
            progress = self._going.get((entry, name))
            state = entry.readings.get(name, {})
            if progress is None and state.get("state") in GOING:
                entry.readings[name] = state | {"state": "stopped"}
        if progress is None:
            self._shelf.save(entry)
            return
        progress.halt.set()
        if progress.cancel():
            self._leave(progress, self._stopped(progress))

    def _leave(self, progress: Progress, state: dict[str, Any] | None = None) -> None:
        """Take a reading from those that go on, and say at once what became of it: whoever sees that may `begin`."""
        entry, name = progress.entry, progress.served.name
        with self._lock:
            if self._going.get((entry, name)) is not progress:
                return
            del self._going[entry, name]
            if state is not None:
                entry.readings[name] = state
        if state is not None:
            self._note(entry)

    def _stopped(self, progress: Progress) -> dict[str, Any]:
        return {"state": "stopped", "tokens": progress.total, "done": self._kept(progress)}

    def _kept(self, progress: Progress) -> int:
        """How many tokens of a document were read before and are kept."""
        entry, served, ids = progress.entry, progress.served, torch.tensor(progress.text.ids)
        of = identity_of(
            served.loaded.model, served.loaded.tokenizer, progress.total + served.kept_free(self._settings.room)
        )
        return self.store(entry.owner).kept(of, ids)

    def progress(self, entry: Entry) -> dict[str, Any]:
        """The readings of a document, by model, with how far those are that go on.

        What nobody reads and nobody will take up again, since its model is not served any more, is stopped.
        """
        with self._lock:
            told = {model: dict(one) for model, one in entry.readings.items()}
            going = {model: one for (which, model), one in self._going.items() if which is entry}
            unfit = {model: why for (which, model), why in self._unfit.items() if which is entry}
        for model, why in unfit.items():
            told[model] |= {"state": "failed", "error": why}
        for model, one in going.items():
            told.setdefault(model, {})["progress"] = one.record(self._usual.get(model))
        for model, state in told.items():
            if state.get("state") in GOING and model not in going and not self._comes(model):
                state["state"] = "stopped"
        return told

    def _comes(self, name: str) -> bool:
        """Whether the model of that name will still take up what an earlier server left, or the next server may."""
        served = self._models().get(name)
        return self._worker.stopping or (served is not None and served.state != "failed" and name not in self._resumed)

    def opened(self, entry: Entry, served: Served) -> tuple[Reading, Document | None]:
        """A saved reading for questions, and the document as the template holds it (None: plain text).

        Raises:
            ApiError: the document is not read by this model, not yet, or cannot be; or it or its reading is gone.
        """
        state = entry.readings.get(served.name, {})
        if state.get("state") != "read":
            raise unread(entry, served, self.progress(entry).get(served.name, {}))
        key = (entry.number, served.name)
        with self._lock:
            if key in self._opened:
                self._opened.move_to_end(key)
                return self._opened[key]
        store, name = self.store(entry.owner), name_of(entry, served)
        lm = served.loaded
        try:
            about, length = store.named(name)
            if wrong := differing(lm.model, lm.tokenizer, about, length):
                raise self._useless(entry, served, _read_with(wrong))
            found = store.open(about.number).part(length), store.document(name)
        except (CheckpointError, ConfigError) as error:  # evicted, damaged, or its name is gone
            _log.warning("a document has to be read again: %s", error)
            if lost := self._lost(entry, served, state):
                raise lost from None
            return self.opened(entry, served)
        with self._lock:
            if entry.gone:  # it was deleted meanwhile: its files must not stay open
                raise absent(entry.number)
            self._opened[key] = found
            while len(self._opened) > OPENED:
                self._opened.popitem(last=False)
        return found

    def _useless(self, entry: Entry, served: Served, why: str) -> ApiError:
        """What is said of a reading of other weights. Nothing of it is written: those weights may be served again."""
        with self._lock:
            if entry.gone:
                return absent(entry.number)
            if (entry, served.name) not in self._going:
                self._unfit[entry, served.name] = why
        return unread(entry, served, self.progress(entry)[served.name])

    def _lost(self, entry: Entry, served: Served, seen: dict[str, Any]) -> ApiError | None:
        """What is said of a reading that is gone; the document is marked, so that it is read again.

        None if it is no more as it was `seen`: somebody has begun to read it again, and nothing of that is changed.
        """
        why = "its reading was evicted to make room, or is damaged"
        with self._lock:
            if entry.gone:
                return absent(entry.number)
            if entry.readings.get(served.name) is not seen:
                return None
            failed = seen | {"state": "failed", "error": why}
            self._set(entry, served, failed)
        self._note(entry)
        return unread(entry, served, failed)

    async def delete(self, entry: Entry) -> None:
        """Remove a document with all its readings, from the disk too, after stopping whoever reads it."""
        self._shelf.hide(entry)
        with self._lock:
            going = [one for (which, _), one in self._going.items() if which is entry]
            for key in [key for key in self._opened if key[0] == entry.number]:
                del self._opened[key]
            for key in [key for key in self._unfit if key[0] is entry]:
                del self._unfit[key]
        for one in going:
            one.stop.set()
        for one in going:
            if one.cancel():
                self._leave(one)
            elif one.future is not None:
                await asyncio.wait([asyncio.wrap_future(one.future)])
        await self._worker.call(lambda: self._forget(entry.owner, entry.number))
        await asyncio.to_thread(self._shelf.remove, entry)

    def prune(self) -> None:
        """Remove what a server left that ended while it deleted a document."""
        for owner, number in self._shelf.half():
            try:
                self._forget(owner, number)
                self._shelf.sweep(owner, number)
            except (HandscrollError, OSError) as error:
                _log.warning("what is left of the deleted document %s cannot be removed: %s", number, error)

    def _forget(self, owner: str, number: str) -> None:
        store = self.store(owner)
        for name in [name for name in store.names() if name.startswith(f"{number}.")]:
            store.forget(name)
        store.prune()  # what a server left that was killed while it forgot

    def _begun(self, served: Served, text: str) -> Opening:
        """The tokens that are read: in a user's turn, if the model has a template."""
        lm = served.loaded
        return lm.opening(text) or Opening(lm.encode(text), Document("", 0.0))

    def _read(self, progress: Progress) -> None:
        """Runs on the thread that computes, as a long work."""
        entry, served, last = progress.entry, progress.served, time.monotonic()
        lm, begun = served.loaded, progress.text

        def on_read(done: int, total: int) -> None:
            nonlocal last
            now = time.monotonic()
            first = progress.chunks[-1][1] if progress.chunks else max(0, done - CHUNK)
            progress.chunks.append((first, done, now - last))
            self._check(progress)
            self._worker.breathe(now - last)
            self._check(progress)  # whoever stops it need not wait for the long work of another
            self._worker.give_way()
            self._check(progress)
            last = time.monotonic()

        document = begun.document if begun.document.text else None
        adapters = tuple(str(one.resolved()) for one in lm.adapters)
        text = ToRead(
            torch.tensor(begun.ids),
            str(served.source.source),
            name_of(entry, served),
            served.kept_free(self._settings.room),
            on_read=on_read,
            adapters=adapters,
            document=document,
            chunk=CHUNK,
            unfinished=f"{name_of(entry, served)}.kept",
        )
        try:
            self._mark(entry, served, {"state": "reading", "tokens": progress.total})
            if progress.stop.is_set():
                raise Stopped
            read(lm.model, lm.tokenizer, self.store(entry.owner), text)
            seconds = time.monotonic() - progress.begun
            known = {"tokens": progress.total, "seconds": round(seconds, 1), "read_at": int(time.time())}
            self._leave(progress, {"state": "read", **known})
            spent, count = sum(one[2] for one in progress.chunks), sum(b - a for a, b, _ in progress.chunks)
            if count:
                self._usual[served.name] = spent / count
        except KeyboardInterrupt:
            if progress.halt.is_set():
                self._leave(progress, self._stopped(progress))
                return
            _log.info("a document is read on at the next start, from token %s", f"{progress.done:,}")
        except Stopped:
            pass
        except FAILURES as error:
            _log.error("a document could not be read: %s", _said(error))
            self._leave(progress, progress.failed(error))
        finally:
            self._leave(progress)

    def _check(self, progress: Progress) -> None:
        """End a reading that was stopped.

        Raises:
            Stopped: its document is deleted. KeyboardInterrupt: what was read so far is kept.
        """
        if progress.stop.is_set():
            raise Stopped
        if self._worker.stopping or progress.halt.is_set():
            raise KeyboardInterrupt

    def _mark(self, entry: Entry, served: Served, state: dict[str, Any]) -> None:
        """Say what became of a reading, here and on the disk.

        Raises:
            CheckpointError: the disk refused.
        """
        self._set(entry, served, state)
        self._shelf.save(entry)

    def _set(self, entry: Entry, served: Served, state: dict[str, Any]) -> None:
        with self._lock:
            self._unfit.pop((entry, served.name), None)
            entry.readings[served.name] = state

    def _note(self, entry: Entry) -> None:
        """Write what is known of a document; a disk that refuses it is only told to the log: this server knows it."""
        try:
            self._shelf.save(entry)
        except CheckpointError as error:
            _log.error("what became of a document could not be written: %s", error)


def name_of(entry: Entry, served: Served) -> str:
    """The name of a reading in the store: the document and the model."""
    return f"{entry.number}.{hashlib.sha256(served.name.encode()).hexdigest()[:12]}"


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


def _read_with(wrong: Sequence[str]) -> str:
    """Why a reading cannot be used by the model that bears the name of its reader."""
    what = "other weights" if "model" in wrong else f"another {', '.join(wrong)}"
    return f"it was read with {what} than this model has now, and has to be read again"


def too_long(served: Served, text: Any, begun: Opening, fits: int) -> str:
    """What is said of a document that the context does not hold, with what would fit."""
    kept = len(served.loaded.decode(begun.ids[: max(0, fits)]))
    place = text.place(min(kept, len(text.text) - 1)) if text.text else ""
    until = f", up to {place}" if place else ""
    return (
        f"the document has {len(begun.ids):,} tokens, but '{served.name}' holds {served.loaded.context:,} with "
        f"{served.loaded.context - fits:,} kept free for question and answer: {fits:,} would fit (about {kept:,} of "
        f"{len(text.text):,} characters{until}). Let it be read by passages that a search finds "
        '("reading": "auto"; the answer says how much that was), give a part of it or a model with a longer context, '
        "or lengthen this one (handscroll extend)"
    )


def unread(entry: Entry, served: Served, state: dict[str, Any]) -> ApiError:
    """Why a document cannot be asked about."""
    word = state.get("state")
    if word == "refused":
        return ApiError(400, state["error"], "context_length_exceeded", "document")
    if word == "failed":
        message = f"'{entry.name}' is not read: {state['error']}; POST /v1/documents/{entry.number}/read begins again"
        return ApiError(409, message, "not_read", "document")
    if word == "stopped":
        message = f"the reading of '{entry.name}' was stopped: POST /v1/documents/{entry.number}/read goes on with it"
        return ApiError(409, message, "not_read", "document")
    if word is None:
        message = f"'{served.name}' has not read '{entry.name}': POST /v1/documents/{entry.number}/read with this model"
        return ApiError(409, message, "not_read", "document")
    progress = state.get("progress", {})
    done, total = progress.get("done", 0), progress.get("total", 0)
    left = progress.get("seconds_left") or 5
    message = f"'{entry.name}' is being read: {done:,} of {total:,} tokens, about {left:,.0f} s left"
    return ApiError(409, message, "being_read", "document", headers={"Retry-After": str(max(1, round(left)))})
