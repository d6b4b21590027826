"""Ranks watch each other: if one is dead or stopped, the others name it and end the run instead of waiting for it.

Each rank writes a new beat to its file in `run/ranks/` every two seconds. A rank whose beat has not changed for
`SILENCE` is named. If it is on this machine, it is killed with SIGKILL, since a stopped process does not react to
SIGTERM. This process then ends with status 70, so that torchrun ends the rest. Ages are measured by the reader's own
clock. This module does not import torch.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from handscroll.base.runs import write_file

BEAT = 2.0  # seconds between beats
SILENCE = 15.0  # seconds without a new beat after which a rank counts as dead
EXIT = 70


@contextlib.contextmanager
def watched(folder: Path, rank: int, size: int) -> Iterator[None]:
    """Write beats and watch the other ranks while the block runs. It does nothing for a single rank."""
    if size == 1:
        yield
        return
    place = folder / "ranks"
    place.mkdir(parents=True, exist_ok=True)
    done = threading.Event()
    threads = [
        threading.Thread(target=_beat, args=(place, rank, done), daemon=True),
        threading.Thread(target=_watch, args=(place, rank, size, done), daemon=True),
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        _write(place, rank, "left")


def _write(place: Path, rank: int, beat: int | str) -> None:
    text = json.dumps({"beat": beat, "process": os.getpid(), "host": socket.gethostname()})
    # The file has one line, which is written at once. A reader takes a partial line as a new beat.
    with contextlib.suppress(OSError):
        (place / f"rank-{rank}.json").write_text(text + "\n", encoding="utf-8")


def _beat(place: Path, rank: int, done: threading.Event) -> None:
    count = time.time_ns()  # never equal to the count that an earlier run left in the file
    while not done.is_set():
        count += 1
        _write(place, rank, count)
        done.wait(BEAT)


def _watch(place: Path, rank: int, size: int, done: threading.Event) -> None:
    news: dict[int, tuple[str, float]] = {other: ("", time.monotonic()) for other in range(size) if other != rank}
    while not done.wait(BEAT):
        for other, (before, since) in news.items():
            try:
                text = (place / f"rank-{other}.json").read_text(encoding="utf-8")
            except OSError:
                text = before
            if text != before:
                news[other] = (text, time.monotonic())
            elif time.monotonic() - since > SILENCE and '"left"' not in text:
                _end(place, rank, other, text)


def _end(place: Path, rank: int, other: int, text: str) -> None:
    try:
        last = json.loads(text)
    except ValueError:
        last = {}
    where = f" (process {last.get('process')} on {last.get('host')})" if last else ""
    message = (
        f"rank {other}{where} has given no sign of life for {SILENCE:.0f} s; rank {rank} ends the run. "
        f"Start it again with --resume {place.parent}"
    )
    sys.stderr.write(f"error: {message}\n")
    sys.stderr.flush()
    with contextlib.suppress(OSError, ValueError):
        write_file(place / f"ended-by-{rank}.txt", (message + "\n").encode())
    if last.get("host") == socket.gethostname():
        with contextlib.suppress(OSError):
            os.kill(int(last["process"]), signal.SIGKILL)
    os._exit(EXIT)
