"""Answers that are sent while they are made, and answers whose client may go away before."""

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine
from contextlib import ExitStack, aclosing
from typing import Any, TypeVar

from fastapi import Response
from starlette.types import Receive, Scope, Send

from handscroll.base.errors import HandscrollError
from handscroll.serve.errors import ApiError, ClientGoneError, of_ours

T = TypeVar("T")
BEAT = 15.0  # seconds after which a silent stream says that it lives
DONE = "[DONE]"


async def until_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives, unless the client goes away first: then it is cancelled.

    Raises:
        ClientGoneError: it went away.
    """
    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        for one in (task, watch):
            one.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Events(Response):
    """Server-sent events: each item of `events` is sent as JSON, and the word [DONE] at the end.

    An error in the middle is sent as the last item. `held` is closed at the end, whatever happened. While nothing is
    said, a comment is sent now and then, so that nothing between server and client gives up.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[dict[str, Any]], held: ExitStack | None = None, done: str = DONE):
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._held, self._done = events, held or ExitStack(), done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            beat = asyncio.ensure_future(_beating(send))
            try:
                await until_gone(receive, self._pump(send))
            except ClientGoneError:
                scope["app"].state.serving.metrics.gone()
                return
            finally:
                beat.cancel()
                await asyncio.gather(beat, return_exceptions=True)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _pump(self, send: Send) -> None:
        last = self._done
        async with aclosing(self._events) as events:
            try:
                async for event in events:
                    await _tell(send, json.dumps(event, ensure_ascii=False))
            except ApiError as error:
                last = json.dumps(error.body, ensure_ascii=False)
            except HandscrollError as error:
                last = json.dumps(of_ours(error).body, ensure_ascii=False)
        if last:
            await _tell(send, last)


async def _tell(send: Send, data: str) -> None:
    await send({"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": True})


async def _beating(send: Send) -> None:
    while True:
        await asyncio.sleep(BEAT)
        await send({"type": "http.response.body", "body": b": still at work\n\n", "more_body": True})
