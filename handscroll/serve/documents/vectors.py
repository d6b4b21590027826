"""Vectors of the passages of documents, by an encoder that is served: made once, kept beside the text.

documents/<owner>/<id>/vectors-<weights of the encoder>.npy   float32 (passages, width), each of length 1
"""

import io
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np

from handscroll.base.errors import CheckpointError, HandscrollError
from handscroll.serve.documents.shelf import Entry, Shelf
from handscroll.serve.models import Served
from handscroll.serve.worker import Worker

TOGETHER = 8  # passages between which answers may go on
PAUSE = 0.02  # seconds between two looks at whether they are cut
LONGEST = 2000  # characters of a query that gets a vector; making one holds up all answers
PATIENCE = 30.0  # seconds that a search waits for the vector of its query
_log = logging.getLogger("handscroll.serve")


class Vectors:
    """The vectors of all documents by one encoder, the first that is served (`encoder` gives it, or None)."""

    def __init__(self, shelf: Shelf, worker: Worker, encoder: Callable[[], Served | None]):
        self._shelf, self._worker, self._encoder = shelf, worker, encoder
        self._going: dict[Entry, Future[Any]] = {}

    def begin(self, entry: Entry, texts: Callable[[Entry], list[str]]) -> None:
        """Make the vectors of a document after what waits already; nothing happens without an encoder, or if it has
        them.
        """
        encoder = self._encoder()
        if encoder is None or entry in self._going or self._shelf.has(entry, _file(encoder)):
            return
        self._going[entry] = self._worker.begin(lambda: self._make(entry, encoder, texts))

    def cosines(
        self, entries: Sequence[Entry], counts: Sequence[int], query: str
    ) -> tuple[np.ndarray | None, tuple[str, ...]]:
        """The cosine of a query and each passage of the documents, which have so many; None without an encoder, or
        while one of them still has no vectors, or for a very long query, and a note that says so.
        """
        encoder = self._encoder()
        if encoder is None:
            return None, ()
        if len(query) > LONGEST:
            count = f"{len(query):,} characters"
            why = f"searched by words alone: the question has {count}, and vectors are made of up to {LONGEST:,}"
            return None, (why,)
        kept = [self._kept(entry, count, encoder) for entry, count in zip(entries, counts, strict=True)]
        if missing := sum(one is None for one in kept):
            why = f"searched by words alone: '{encoder.name}' has not read the passages of {missing} of {len(kept)} yet"
            return None, (why,)
        lm = encoder.loaded
        future = self._worker.post(lambda: lm.embed([query], normalise=True, windows=True))
        try:
            asked = future.result(PATIENCE)
        except TimeoutError:
            future.cancel()
            return None, (f"searched by words alone: '{encoder.name}' did not answer within {PATIENCE:g} s",)
        return np.concatenate([one for one in kept if one is not None]) @ asked[0].numpy(), ()

    def forget(self, entry: Entry) -> list["Future[Any]"]:
        """Make no vectors of a document that is deleted; returns the work that has not ended yet."""
        future = self._going.pop(entry, None)
        return [] if future is None or future.cancel() else [future]

    def _kept(self, entry: Entry, count: int, encoder: Served) -> np.ndarray | None:
        try:
            found = np.load(io.BytesIO(self._shelf.kept(entry, _file(encoder))), allow_pickle=False)
        except (CheckpointError, ValueError):
            return None
        return found if found.shape == (count, encoder.loaded.model.config.width) else None

    def _make(self, entry: Entry, encoder: Served, texts: Callable[[Entry], list[str]]) -> None:
        """Runs on the thread that computes, as a long work."""
        found: list[np.ndarray] = []
        try:
            wanted = self._texts(entry, texts)
            for first in range(0, len(wanted), TOGETHER):
                begun = time.monotonic()
                part = wanted[first : first + TOGETHER]
                found.append(encoder.loaded.embed(part, normalise=True, windows=True).numpy())
                self._worker.breathe(time.monotonic() - begun)
                if not entry.gone:
                    self._worker.give_way()
                if entry.gone or self._worker.stopping:
                    return
            out = io.BytesIO()
            empty = np.zeros((0, encoder.loaded.model.config.width), np.float32)
            np.save(out, np.concatenate([empty, *found]), allow_pickle=False)
            self._shelf.keep(entry, _file(encoder), out.getvalue())
        except (HandscrollError, RuntimeError, OSError) as error:
            _log.error("no vectors of a document could be made: %s", error)
        finally:
            self._going.pop(entry, None)

    def _texts(self, entry: Entry, texts: Callable[[Entry], list[str]]) -> list[str]:
        """The passages, cut in a thread of their own while answers go on."""
        with ThreadPoolExecutor(1) as cutting:
            cut = cutting.submit(texts, entry)
            while not cut.done():
                self._worker.breathe(PAUSE)
                wait([cut], PAUSE)
            return cut.result()


def _file(encoder: Served) -> str:
    return f"vectors-{encoder.fingerprint}.npy"
