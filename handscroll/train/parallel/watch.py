"""Ranks watch each other: one that is dead or stopped ends the run, by name, instead of leaving it waiting.

Each rank rewrites a beat in `run/ranks/` every two seconds; a rank whose beat has not changed for `SILENCE` is named,
killed if it is on this machine (a stopped process does not answer a polite signal), and this process ends with status
70, so that torchrun ends the rest. Ages are measured by the reader's own clock. Imports no torch.
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
SILENCE = 15.0  # seconds without a new beat until a rank counts as gone
EXIT = 70


@contextlib.contextmanager
def watched(folder: Path, rank: int, size: int) -> Iterator[None]:
    """Beat and watch for as long as the block runs; does nothing for a single rank."""
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
    # Whole lines in one write to a file of one line; a torn one is read as "no news".
    with contextlib.suppress(OSError):
        (place / f"rank-{rank}.json").write_text(text + "\n", encoding="utf-8")


def _beat(place: Path, rank: int, done: threading.Event) -> None:
    count = time.time_ns()  # never what an earlier run left in the file
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
