"""Runs a server until it is told to stop."""

import errno
import logging
import os
import secrets
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from handscroll.base.errors import CheckpointError, ConfigError
from handscroll.models.locate import here
from handscroll.serve.app import application
from handscroll.serve.gate import is_loopback
from handscroll.serve.keys import VARIABLE, Keys, salt_in
from handscroll.serve.receiving import deadlines
from handscroll.serve.serving import Serving
from handscroll.serve.settings import ServeSettings

BACKLOG = 512  # connections that wait to be taken
_log = logging.getLogger("handscroll.serve")


class Server(uvicorn.Server):
    """The web server; `on_start(url)` is called when it listens."""

    def __init__(self, config: uvicorn.Config, on_start: Callable[[str], None]):
        super().__init__(config)
        self._on_start, self._grace = on_start, config.timeout_graceful_shutdown

    async def startup(self, sockets=None) -> None:
        await super().startup(sockets)
        if self.started:
            bound = self.servers[0].sockets[0].getsockname()
            host = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
            self._on_start(f"http://{host}:{bound[1]}")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:
            _log.info("stopping: open answers have %d s to end; Ctrl-C once more stops at once", self._grace)
        super().handle_exit(sig, frame)

    def stop(self) -> None:
        """Stop soon; safe to call from any thread."""
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        _log.info("stopped; documents and readings are kept")


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
    """Serve until SIGTERM or Ctrl-C; open answers have `grace_seconds` to end.

    Raises:
        ConfigError: as `make`, or the port is taken. CheckpointError: no model could be loaded.
    """
    for source in settings.models:
        here(source.source)
    with _bound(settings.host, settings.port) as listening:
        server, serving = make(settings, on_start)
        serving.models.on_failed = server.stop
        server.run(sockets=[listening])
    if serving.models.state == "failed":
        causes = "; ".join(f"{one.name}: {one.error}" for one in serving.models.all.values())
        raise CheckpointError(f"no model could be loaded: {causes}")


def _bound(host: str, port: int) -> socket.socket:
    """A socket at an address and port, before a model is loaded for nothing."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(address)
        except OSError:
            listening.close()
            raise
        return listening
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {port} of {host} is in use: stop what uses it, or give another, such as --port {port + 1} "
                "(--port 0 takes a free one)"
            ) from None
        raise ConfigError(f"cannot listen at {host}, port {port}: {error.strerror or error}") from None
