"""Works in pieces that a client waits for: others go on between the pieces, and each that was read is charged."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from handscroll.serve.errors import ClientGoneError
from handscroll.serve.keys import Owner
from handscroll.serve.serving import Serving
from handscroll.serve.worker import Worker


class Pieces:
    """The tokens that a work has `read` so far, on the thread that computes."""

    def __init__(self, worker: Worker):
        self._worker, self._last = worker, time.monotonic()
        self.read = 0
        self.gone = threading.Event()  # nobody waits for it any more

    def begin(self) -> None:
        """The work has its turn."""
        self._last = time.monotonic()

    def took(self, tokens: int, breathes: bool = True) -> None:
        """Count a piece; if it `breathes`, answers go on for as long as it took.

        Raises:
            ClientGoneError: nobody waits for the rest.
        """
        self.read += tokens
        self._check()
        if breathes:
            self._worker.breathe(time.monotonic() - self._last)
            self._check()
        self._last = time.monotonic()

    def _check(self) -> None:
        if self.gone.is_set() or self._worker.stopping:
            raise ClientGoneError


@contextmanager
def charging(serving: Serving, owner: Owner) -> Iterator[Pieces]:
    """Charge an owner what is read within the block.

    If it is left by an error, since the client has gone or the work failed, the piece that still goes on counts too.
    """
    pieces = Pieces(serving.worker)

    def charge(_: object = None) -> None:
        if pieces.read:
            serving.admission.use(owner, pieces.read)

    try:
        yield pieces
    except BaseException:
        pieces.gone.set()
        asyncio.wrap_future(serving.worker.post(lambda: None)).add_done_callback(charge)
        raise
    charge()
