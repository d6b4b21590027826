"""Real server processes for the benches: ours and that of llama-cpp-python, and what a client sees of them.

Not a benchmark itself: `bench.serve_speed` and `bench.serve_load` use it.
"""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psutil

PATIENCE = 3600.0  # seconds for one answer: reading a book on a small machine takes long


@dataclass
class Process:
    """A server that answers at `url`; `log` is what it says."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path
    ready: float  # seconds from the start of the process until it answers
    http: httpx2.Client = field(init=False)

    def __post_init__(self):
        self.http = httpx2.Client(base_url=self.url, timeout=PATIENCE)

    @property
    def about(self) -> psutil.Process:
        return psutil.Process(self.process.pid)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


@contextmanager
def running(command: list[str], log: Path, url: str = "", path: str = "/health", threads: int = 2) -> Iterator[Process]:
    """A process until the block ends. Without `url` it says itself where it listens ("listening at URL;")."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
    begun = time.monotonic()
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment)
    try:
        while not _answers(url, path):
            if process.poll() is not None or time.monotonic() > begun + 300:
                raise SystemExit(f"the server did not start:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.05)
            found = re.search(r"listening at ([^;\s]+)", log.read_text(errors="replace"))
            url = url or (found[1] if found else "")
        made = Process(url, process, log, time.monotonic() - begun)
        yield made
        made.http.close()
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(url: str, path: str) -> bool:
    if not url:
        return False
    try:
        return httpx2.get(url + path, timeout=5).status_code == 200
    except httpx2.TransportError:
        return False


def ours(model: str, store: Path, log: Path, *options: str, threads: int = 2):
    """`handscroll serve` of a model under the name "model"."""
    command = [sys.executable, "-m", "handscroll", "serve", f"model={model}", "--port", "0", "--store", str(store)]
    return running([*command, *options], log, threads=threads)


def theirs(python: str, model: str, log: Path, context: int, threads: int):
    """llama-cpp-python's server with its prompt cache on; requests wait for each other instead of breaking off."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = {"model": model, "model_alias": "model", "host": "127.0.0.1", "port": port, "n_ctx": context}
    options |= {"n_threads": threads, "n_threads_batch": threads, "verbose": False, "interrupt_requests": False}
    options |= {"cache": True, "cache_type": "ram", "cache_size": 4 << 30}
    command = [python, "-m", "llama_cpp.server"]
    command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return running(command, log, f"http://127.0.0.1:{port}", "/v1/models", threads)


def streamed(server: Process, path: str, body: Mapping[str, Any]) -> tuple[float, float, str]:
    """Ask for a stream: seconds until the first text, seconds in all, and the text."""
    begun, first, said = time.monotonic(), 0.0, ""
    with server.http.stream("POST", path, json={**body, "stream": True}) as answer:
        if answer.status_code != 200:
            raise SystemExit(f"{path}: {answer.status_code} {answer.read()[:500]!r}")
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            for choice in json.loads(line.removeprefix("data: ")).get("choices", ()):
                text = choice.get("text") or choice.get("delta", {}).get("content") or ""
                first = first or (time.monotonic() - begun if text else 0.0)
                said += text
    return first, time.monotonic() - begun, said


def uploaded(server: Process, name: str, text: str) -> tuple[str, float]:
    """Upload a document and wait until it is read: its id, and the seconds of both."""
    begun = time.monotonic()
    made = server.http.post("/v1/documents", files={"file": (name, text.encode())})
    number = made.raise_for_status().json()["id"]
    while True:
        reading = server.http.get(f"/v1/documents/{number}").json()["readings"]["model"]
        if reading["state"] not in ("waiting", "reading"):
            break
        time.sleep(0.05)
    if reading["state"] != "read":
        raise SystemExit(f"the document was not read: {reading}")
    return number, time.monotonic() - begun
