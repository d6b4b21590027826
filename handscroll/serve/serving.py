"""What the endpoints share: the models, the thread that computes, places and quotas, documents, metrics."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from time import monotonic
from typing import TypeVar
from weakref import WeakValueDictionary

from starlette.requests import Request

from handscroll.serve.admission import Admission
from handscroll.serve.bodies import Bodies
from handscroll.serve.documents.library import Library
from handscroll.serve.documents.readings import Readings
from handscroll.serve.documents.shelf import Entry, Shelf
from handscroll.serve.documents.vectors import Vectors
from handscroll.serve.keys import Keys, Owner
from handscroll.serve.metrics import Metrics
from handscroll.serve.models import Models, Served
from handscroll.serve.settings import ServeSettings
from handscroll.serve.worker import Worker

T = TypeVar("T")
FILES = 2  # uploaded files that are opened at once
TICK = 0.25  # seconds between two looks at the delay of the event loop
_log = logging.getLogger("handscroll.serve")


@dataclass(eq=False)
class Serving:
    """The state of one server; `open` and `close` it on the event loop."""

    settings: ServeSettings
    keys: Keys
    worker: Worker = field(init=False)
    models: Models = field(init=False)
    shelf: Shelf = field(init=False)
    readings: Readings = field(init=False)
    library: Library = field(init=False)
    admission: Admission = field(init=False)
    bodies: Bodies = field(init=False)
    uploads: Bodies = field(init=False)
    metrics: Metrics = field(init=False)

    def __post_init__(self):
        self.worker = Worker()
        self.admission = Admission(self.settings.limits)
        keys = 2 if self.keys.several else 1  # where nobody else has a key, there is nobody to leave room for
        self.bodies, self.uploads = (
            Bodies(most, most // keys) for most in (self.settings.limits.bodies, self.settings.limits.uploads)
        )
        self.shelf = Shelf(self.settings.store, self.settings.limits.documents)
        self.readings = Readings(self.shelf, self.worker, self.settings, lambda: self.models.all)
        self.readings.prune()
        self.models = Models(self.settings, self.worker, self._ready)
        self._vectors = Vectors(self.shelf, self.worker, self.models.encoder)
        self.library = Library(self.shelf, self._vectors)
        self.metrics = Metrics(self._live)
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="handscroll-prepare")
        self._counting = ThreadPoolExecutor(2, thread_name_prefix="handscroll-count")
        self._files = ThreadPoolExecutor(FILES, thread_name_prefix="handscroll-files")
        self._turns = WeakValueDictionary[str, asyncio.Semaphore]()  # each lives for as long as a request holds it
        self._beat: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Start the threads and load the models."""
        self.worker.start()
        self.models.start()
        self._beat = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """End what is open. Documents that are being read go on at the next start."""
        self.admission.closing = True
        if self._beat is not None:
            self._beat.cancel()
        await asyncio.to_thread(self.worker.stop)
        for pool in (self._pool, self._counting, self._files):
            pool.shutdown(wait=False, cancel_futures=True)

    async def prepare(self, work: Callable[[], T]) -> T:
        """Run what takes longer than the event loop may wait: templates, tokens of long texts, grammars."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    async def count(self, work: Callable[[], T]) -> T:
        """The same for counts of tokens, whose long texts keep no answer waiting."""
        return await asyncio.get_running_loop().run_in_executor(self._counting, work)

    def open_file(self, work: Callable[[], T]) -> "Future[T]":
        """The same for uploaded files, which may take minutes and keep no question waiting."""
        return self._files.submit(work)

    def turn(self, owner: Owner) -> asyncio.Semaphore:
        """What lets one file of an owner at a time be opened, so that the files of others need not wait for all his.

        Where nobody else has a key, there is nobody who would wait.
        """
        return self._turns.setdefault(owner.number, asyncio.Semaphore(1 if self.keys.several else FILES))

    def begin(self, entry: Entry, served: Served) -> int:
        """Let a model read a document that has just arrived, and an encoder its passages, if one is served.

        Returns how many tokens the model will read; the errors are those of `Readings.begin`.
        """
        tokens = self.readings.begin(entry, served)
        self._vectors.begin(entry, self.library.passages)
        return tokens

    async def delete(self, entry: Entry) -> None:
        """Remove a document, and whatever was made of it, from memory and disk."""
        self.shelf.hide(entry)
        for one in self._vectors.forget(entry):
            await asyncio.wait([asyncio.wrap_future(one)])
        await self.readings.delete(entry)
        self.library.forget(entry)

    def _ready(self, served: Served) -> None:
        self.readings.resume(served)
        if served is self.models.encoder():
            for entry in self.shelf.all():
                self._vectors.begin(entry, self.library.passages)

    async def _watch(self) -> None:
        """Measure how late the event loop is."""
        while True:
            begun = monotonic()
            await asyncio.sleep(TICK)
            self.metrics.lag.set(max(0.0, monotonic() - begun - TICK))

    def _live(self) -> Iterator[tuple[str, str, dict[str, str], float]]:
        yield "handscroll_open_answers", "Answers that are open", {}, self.admission.open
        yield "handscroll_documents_waiting", "Documents that are read or wait for it", {}, self.readings.waiting
        for served in self.models.all.values():
            yield "handscroll_model_ready", "1 once it is loaded", {"model": served.name}, float(served.lm is not None)
            if served.engine is not None:
                blocks = served.engine.blocks
                for state, count in (
                    ("used", blocks.count - blocks.available),
                    ("kept", blocks.kept),
                    ("free", blocks.available - blocks.kept),
                ):
                    yield "handscroll_blocks", "Blocks of the pool", {"model": served.name, "state": state}, count


def of(request: Request) -> tuple[Serving, Owner]:
    """The server that a request came to, and who asks."""
    return request.app.state.serving, request.scope["handscroll.owner"]
