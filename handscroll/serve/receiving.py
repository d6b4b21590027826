"""What arrives and what is sent, within limits: sizes and deadlines, for which the web server has none of its own.

The head of a request and the reading of what was sent are watched where the connection is (`Deadlines`), the body where
it is read (`Received`).
"""

import asyncio
import time
from typing import Any

import h11
from starlette.types import Message, Receive
from uvicorn.protocols.http.h11_impl import H11Protocol

from handscroll.serve.bodies import Room
from handscroll.serve.errors import ApiError

SLOWEST = 50_000  # bytes a second that a body may take, on top of its deadline


class Received:
    """The body of one request: at most `most` bytes, after at most `seconds` and what its bytes take at `SLOWEST`.

    JSON has at most `values` commas, unless that is None: a list of millions of token ids would hold the event loop for
    as long as it takes to parse, and no context holds them. `room` is told the bytes so far, and may refuse them; it is
    released once a file has arrived, and once JSON was parsed.
    """

    def __init__(self, receive: Receive, most: int, seconds: float, values: int | None, room: Room):
        self._receive, self._most, self._seconds, self._values, self._room = receive, most, seconds, values, room
        self._begun, self._size, self._commas, self._whole = time.monotonic(), 0, 0, False

    async def __call__(self) -> Message:
        """
        Raises:
            ApiError: 413 if the body is too large or has too many values, 408 if it is too slow, 429 if others have
                send so much that it does not fit.
        """
        if self._whole:
            self._room.release()  # whoever asks for more has parsed the body, and waits for the client to go away
            return await self._receive()
        left = self._begun + self._seconds + self._size / SLOWEST - time.monotonic()
        try:
            async with asyncio.timeout(max(0.0, left)):  # in 3.11 `wait_for` may swallow a cancellation
                message = await self._receive()
        except TimeoutError:
            why = f"the body did not arrive within {self._seconds:g} s ({self._size:,} bytes did)"
            raise ApiError(408, why, "timeout", headers={"Connection": "close"}) from None
        self._size += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        if self._size > self._most:
            raise too_large(self._size, self._most)
        self._room.came(self._size)
        if self._values is not None:
            self._commas += message.get("body", b"").count(b",")
            if self._whole and self._commas > self._values:  # not sooner: who still sends might not see the refusal
                raise _too_many(self._commas, self._values)
        elif self._whole:
            self._room.release()
        return message


def too_large(size: int, most: int) -> ApiError:
    """The refusal of a body."""
    message = f"the body has {size:,} bytes or more, and at most {most:,} are taken"
    return ApiError(413, message, "too_large", headers={"Connection": "close"})


def _too_many(commas: int, most: int) -> ApiError:
    why = f"the body has {commas:,} commas, and at most {most:,} are taken: send fewer token ids, or text"
    return ApiError(413, why, "too_large", headers={"Connection": "close"})


class Deadlines(H11Protocol):
    """A connection that is given up if the head of a request, or the reading of what was sent, takes too long."""

    head_seconds, stalled_seconds = 10.0, 30.0

    _head: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.access_log = False  # it would hold the query; the gate has a log of its own
        self._head = self.loop.call_later(self.head_seconds, self._give_up)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._head = _cancelled(self._head)
        elif self._head is None:
            self._head = self.loop.call_later(self.head_seconds, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        self._head, self._stalled = _cancelled(self._head), _cancelled(self._stalled)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stalled is None:
            self._stalled = self.loop.call_later(self.stalled_seconds, self._give_up)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stalled = _cancelled(self._stalled)

    def _give_up(self) -> None:
        if self.transport is not None:
            self.transport.abort()


def _cancelled(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def deadlines(head_seconds: float, stalled_seconds: float) -> type[Deadlines]:
    """The class of connections with these deadlines, as the web server takes it."""
    return type("Deadlines", (Deadlines,), {"head_seconds": head_seconds, "stalled_seconds": stalled_seconds})
