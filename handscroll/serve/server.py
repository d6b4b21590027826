"""Runs a server until it is told to stop."""

import logging
import os
import secrets
from collections.abc import Callable

import uvicorn

from handscroll.base.errors import ConfigError
from handscroll.serve.app import application
from handscroll.serve.gate import is_loopback
from handscroll.serve.keys import VARIABLE, Keys, salt_in
from handscroll.serve.receiving import deadlines
from handscroll.serve.serving import Serving
from handscroll.serve.settings import ServeSettings

BACKLOG = 512  # connections that wait to be taken


class Server(uvicorn.Server):
    """The web server; `on_start(url)` is called when it listens."""

    def __init__(self, config: uvicorn.Config, on_start: Callable[[str], None]):
        super().__init__(config)
        self._on_start = on_start

    async def startup(self, sockets=None) -> None:
        await super().startup(sockets)
        if self.started:
            bound = self.servers[0].sockets[0].getsockname()
            host = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
            self._on_start(f"http://{host}:{bound[1]}")


def make(settings: ServeSettings, on_start: Callable[[str], None] = lambda url: None) -> tuple[Server, Serving]:
    """A server that has not started, and its state.

    Raises:
        ConfigError: it would be reached from other machines and has no key, or a key is wrong.
    """
    key = os.environ.get(VARIABLE)
    keys = Keys.load(settings.keys, salt_in(settings.store), key)
    if not is_loopback(settings.host) and not keys.required:
        raise ConfigError(
            f"--host {settings.host} lets other machines in, and there is no key: make one (handscroll serve --keys "
            f"keys.toml --make-key NAME) and give --keys keys.toml, or set {VARIABLE}={secrets.token_urlsafe(24)}"
        )
    serving = Serving(settings, keys)
    _, gate = application(serving)
    limits = settings.limits
    config = uvicorn.Config(
        gate,
        host=settings.host,
        port=settings.port,
        http=deadlines(limits.head_seconds, limits.stalled_seconds),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(limits.grace_seconds) or 1,
    )
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    return Server(config, on_start), serving


def serve(settings: ServeSettings, on_start: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C; open answers have `grace_seconds` to end. The errors are those of `make`."""
    server, _ = make(settings, on_start)
    server.run()
