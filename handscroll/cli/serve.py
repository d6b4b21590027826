"""`handscroll serve`: models and documents behind OpenAI's interface."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from handscroll.base.errors import ConfigError
from handscroll.cli.options import Device, Dtype, Weights, say_weights
from handscroll.cli.screen import error_screen, screen

LIBRARIES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")


def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(help="Models: folders, GGUF files or hub ids, or NAME=PATH; decoders and encoders."),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="Adapter NAME=FOLDER (BASE:NAME=FOLDER), asked for as model BASE:NAME; repeatable."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; others than this machine's need a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8000,
    memory: Annotated[
        float | None, typer.Option(help="GB of keys and values of each decoder. [two whole contexts, if free]")
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="Folder of what is kept. [~/.local/share/handscroll/serve]")
    ] = None,
    keys: Annotated[Path | None, typer.Option(help="File of keys (TOML, hashes only).")] = None,
    make_key: Annotated[str, typer.Option(help="Add a key for this owner to --keys, show it once, and end.")] = "",
    allow_host: Annotated[list[str] | None, typer.Option(help="Accept this host name too; repeatable.")] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="Accept requests of pages of this origin too; repeatable.")
    ] = None,
    waiting: Annotated[int, typer.Option(help="Answers that may be open at once; more are told to wait.")] = 64,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    weights: Weights = "",
) -> None:
    """Serve MODELS with OpenAI's interface, and documents that are read once and asked as often as you like."""
    check_installed()
    if make_key:
        _make_key(keys, make_key)
        return
    if not models:
        raise ConfigError("no model is named: handscroll serve MODEL [MODEL ...]")
    from handscroll.cache.reading.store import default_root
    from handscroll.serve.models import sources
    from handscroll.serve.server import serve as run
    from handscroll.serve.settings import ServeSettings

    if memory is not None and not 0 < memory < float("inf"):
        raise ConfigError(f"--memory {memory} GB holds nothing; give more than 0")
    settings = ServeSettings.parse(
        {
            "models": [one.model_dump() for one in sources(models, adapter or ())],
            "store": store or default_root().parent / "serve",
            "host": host,
            "port": port,
            "memory": None if memory is None else int(memory * 1e9),
            "keys": keys,
            "hosts": allow_host or (),
            "origins": allow_origin or (),
            "limits": {"waiting": waiting},
            "dtype": dtype,
            "device": device,
            "weights": weights,
        },
        "serve",
    )
    say_weights(weights)
    with _speaking():
        run(settings, _told)


def check_installed() -> None:
    """Refuse to start without the libraries of the server.

    Raises:
        ConfigError: one is missing.
    """
    from importlib.util import find_spec

    if missing := [name for name in LIBRARIES if find_spec(name) is None]:
        raise ConfigError(f"serve needs {', '.join(missing)}: pip install 'handscroll[serve]'")


def _make_key(file: Path | None, name: str) -> None:
    from handscroll.serve.keys import make_key

    if file is None:
        raise ConfigError("--make-key needs --keys FILE, to which the hash of the key is added")
    key = make_key(file, name)
    error_screen().print(f"the key of '{name}', shown this once ({file} keeps its hash):")
    screen().print(key)


def _told(url: str) -> None:
    error_screen().print(f"listening at {url}; open it in a browser, or ask {url}/v1. Ctrl-C stops.")


@contextmanager
def _speaking() -> Iterator[None]:
    """What the server says goes to standard error, one line each: who, what, how it ended, never what was said."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log = logging.getLogger("handscroll.serve")
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def register(app: typer.Typer) -> None:
    app.command()(serve)
