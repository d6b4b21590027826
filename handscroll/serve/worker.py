"""The thread that computes: one for all models, so that they do not fight for the processors.

Between two steps of the engines it runs what it was called for: requests to submit or to cancel, vectors of a few
texts. A long work, such as reading a document, runs in pieces, and lets the others go on between them (`breathe`). One
that may take hours lets long works that a request waits for have their turns, too (`give_way`).
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

from handscroll.base.errors import HandscrollError
from handscroll.generate.chooser import Scored
from handscroll.generate.engine.engine import Answered, Engine
from handscroll.generate.engine.job import Job
from handscroll.generate.request import Request
from handscroll.generate.stream import Decodes
from handscroll.serve.errors import ApiError

T = TypeVar("T")
_log = logging.getLogger("handscroll.serve")


class Token(NamedTuple):
    """One new token of an answer: what it adds to the text, its log-probabilities, and why the answer ends with it."""

    number: int
    text: str
    scored: Scored
    finish: str | None


Item = tuple[int, Token] | Exception


class Wanted(NamedTuple):
    """A request of an owner, and what decodes its answer instead of the tokenizer."""

    request: Request
    owner: str
    shown: Decodes | None = None


class Stream:
    """The tokens of some answers on their way from the computing thread to the event loop: iterate over it once.

    Items are the number of the answer and its next token; what goes wrong with one of them ends all.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, engine: Engine, count: int):
        self.loop, self.engine = loop, engine
        self.jobs: list[Job] = []
        self._left = count
        self._queue: asyncio.Queue[Item] = asyncio.Queue()

    @property
    def ended(self) -> bool:
        """Whether all answers have come to their ends."""
        return not self._left

    def put(self, item: Item) -> None:
        self._queue.put_nowait(item)

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> tuple[int, Token]:
        if not self._left:
            raise StopAsyncIteration
        item = await self._queue.get()
        if isinstance(item, Exception):
            raise item
        self._left -= item[1].finish is not None
        return item


class Worker:
    """The thread. `start` and `stop` it; everything else may be called from the event loop."""

    def __init__(self) -> None:
        self._calls: deque[Callable[[], None]] = deque()
        self._long: deque[Callable[[], None]] = deque()
        self._awaited: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._engines: list[Engine] = []
        self._streams: dict[Job, tuple[Stream, int]] = {}
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="handscroll-compute", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, wait: float = 30.0) -> None:
        """End the thread after the piece of work that it is at; what waits is given up."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(wait)

    @property
    def stopping(self) -> bool:
        return self._ended

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def post(self, work: Callable[[], object]) -> "Future[Any]":
        """Run `work` on the thread, between two steps."""
        return self._add(self._calls, work)

    async def call(self, work: Callable[[], T]) -> T:
        """Run `work` on the thread and give what it returns or raises."""
        return await asyncio.wrap_future(self._add(self._calls, work))

    def begin(self, work: Callable[[], object]) -> "Future[Any]":
        """Run a long `work`, one at a time; it calls `breathe` between its pieces."""
        return self._add(self._long, work)

    async def long(self, work: Callable[[], T]) -> T:
        """`begin`, and wait for what it gives; it has its turn before those works that nobody waits for are done."""
        return await asyncio.wrap_future(self._add(self._awaited, work))

    def add(self, engine: Engine) -> None:
        """Step this engine from now on."""
        self.post(lambda: self._engines.append(engine))

    def submit(self, engine: Engine, wanted: Sequence[Wanted]) -> Stream:
        """Queue requests; what is wrong with one arrives in the stream."""
        stream = Stream(asyncio.get_running_loop(), engine, len(wanted))

        def work() -> None:
            try:
                for number, one in enumerate(wanted):
                    job = engine.submit(one.request, owner=one.owner, shown=one.shown)
                    stream.jobs.append(job)
                    self._streams[job] = (stream, number)
            except HandscrollError as error:
                stream.loop.call_soon_threadsafe(stream.put, error)

        self.post(work)
        return stream

    def close(self, stream: Stream) -> "Future[Any]":
        """End the answers of a stream that go on; their blocks are free before the next step.

        What it returns is done once nothing more is read or written for them.
        """

        def work() -> None:
            for job in stream.jobs:
                job.cancel()
                self._streams.pop(job, None)

        return self.post(work)

    def breathe(self, seconds: float) -> None:
        """From within a long work: let answers go on for at most `seconds`."""
        end = time.monotonic() + seconds
        self._run_calls()
        while not self._ended and time.monotonic() < end and self._step():
            self._run_calls()

    def give_way(self) -> None:
        """From within a long work that nobody waits for: run one that somebody waits for, if there is any."""
        if self._awaited and not self._ended:
            self._awaited.popleft()()

    def _add(self, queue: deque[Callable[[], None]], work: Callable[[], object]) -> "Future[Any]":
        future: Future[Any] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001 - the code is the caller's, who gets the error
                future.set_exception(error)

        with self._changed:
            queue.append(run)
            self._changed.notify()
        return future

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._ended or self._calls or self._awaited or self._long or self._busy()):
                    self._changed.wait()
            if self._ended:
                return
            self._run_calls()
            self._step()
            for queue in (self._awaited, self._long):
                if queue and not self._ended:
                    queue.popleft()()

    def _run_calls(self) -> None:
        while self._calls:
            self._calls.popleft()()

    def _busy(self) -> bool:
        return any(not engine.idle for engine in self._engines)

    def _step(self) -> bool:
        """One step of every engine that has something to do; whether there was one."""
        busy = [engine for engine in self._engines if not engine.idle]
        for engine in busy:
            try:
                self._deliver(engine.step())
            except Exception:  # noqa: BLE001 - what torch raises ends these answers; the code is the caller's
                _log.exception("a step failed, and the answers of its model end")
                self._fail(engine)
        return bool(busy)

    def _deliver(self, answered: list[Answered]) -> None:
        """Hand the tokens of a step to their streams, with one call of each event loop."""
        items: list[tuple[Stream, Item]] = []
        for one in answered:
            known = self._streams.get(one.job)
            if one.job.finish is not None:
                self._streams.pop(one.job, None)
            if known is None:
                continue
            stream, number = known
            if one.token is None:
                items.append((stream, _reason(one.job)))
            else:
                items.append((stream, (number, Token(one.token, one.text, one.job.scored[-1], one.finish))))
        _put(items)

    def _fail(self, engine: Engine) -> None:
        error = _failed()
        items: list[tuple[Stream, Item]] = []
        for job, (stream, _) in list(self._streams.items()):
            if stream.engine is engine:
                engine.cancel(job)
                self._streams.pop(job)
                items.append((stream, error))
        _put(items)


def _reason(job: Job) -> Exception:
    """Why an answer could not go on, as it is told; what is no mistake of who asked is for the log."""
    if isinstance(job.error, HandscrollError):
        return job.error
    _log.error("an answer failed, and the others go on", exc_info=job.error)
    return _failed()


def _failed() -> ApiError:
    return ApiError(500, "the model failed at this answer; the log of the server says why", "model_failed")


def _put(items: list[tuple[Stream, Item]]) -> None:
    for loop in {stream.loop for stream, _ in items}:
        own = [(stream, item) for stream, item in items if stream.loop is loop]
        if not loop.is_closed():
            loop.call_soon_threadsafe(_put_all, own)


def _put_all(items: list[tuple[Stream, Item]]) -> None:
    for stream, item in items:
        stream.put(item)
