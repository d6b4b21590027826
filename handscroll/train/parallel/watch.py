"""Ranks watch each other: if one is dead or stopped, the others name it and end the run instead of waiting for it.

Each rank writes a new beat to its file in `run/ranks/` every two seconds. A rank whose beat has not changed for
`SILENCE` is named. If it is on this machine, it is killed with SIGKILL, since a stopped process does not react to
SIGTERM. This process then ends with status 70, so that torchrun ends the rest. Beats carry a number that all ranks of
a run share, so a file that an earlier run left says nothing. Ages are measured by the reader's own clock. This module
does not import torch.
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
from typing import Any

from handscroll.base.runs import write_file

BEAT = 2.0  # seconds between beats
SILENCE = 15.0  # seconds without a new beat after which a rank counts as dead
EXIT = 70


@contextlib.contextmanager
def watched(folder: Path, rank: int, size: int, run: int) -> Iterator[None]:
    """Write beats and watch the other ranks while the block runs. It does nothing for a single rank.

    `run` is a number that the ranks agreed on, and that no earlier run in this folder had.
    """
    if size == 1:
        yield
        return
    place = folder / "ranks"
    place.mkdir(parents=True, exist_ok=True)
    done = threading.Event()
    threads = [
        threading.Thread(target=_beat, args=(place, rank, run, done), daemon=True),
        threading.Thread(target=_watch, args=(place, rank, size, run, done), daemon=True),
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        _write(place, rank, run, "left")


def _write(place: Path, rank: int, run: int, beat: int | str) -> None:
    text = json.dumps({"beat": beat, "run": run, "process": os.getpid(), "host": socket.gethostname()})
    # The file has one line, which is written at once. A reader passes over a partial line.
    with contextlib.suppress(OSError):
        (place / f"rank-{rank}.json").write_text(text + "\n", encoding="utf-8")


def _beat(place: Path, rank: int, run: int, done: threading.Event) -> None:
    count = 0
    while not done.is_set():
        count += 1
        _write(place, rank, run, count)
        done.wait(BEAT)


def _watch(place: Path, rank: int, size: int, run: int, done: threading.Event) -> None:
    news: dict[int, tuple[dict[str, Any], float]] = {}  # the last beat of each rank that was heard, and when it came
    while not done.wait(BEAT):
        for other in range(size):
            if other == rank:
                continue
            last, since = news.get(other, ({}, 0.0))
            beat = _read(place, other)
            if beat.get("run") == run and beat != last:
                news[other] = (beat, time.monotonic())
            elif last and time.monotonic() - since > SILENCE and last["beat"] != "left":
                _end(place, rank, other, last)


def _read(place: Path, rank: int) -> dict[str, Any]:
    """The beat in a rank's file; empty if there is none, or none that is whole."""
    try:
        beat = json.loads((place / f"rank-{rank}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return beat if isinstance(beat, dict) else {}


def _end(place: Path, rank: int, other: int, last: dict[str, Any]) -> None:
    message = (
        f"rank {other} (process {last['process']} on {last['host']}) has given no sign of life for {SILENCE:.0f} s; "
        f"rank {rank} ends the run. Start it again with --resume {place.parent}"
    )
    sys.stderr.write(f"error: {message}\n")
    sys.stderr.flush()
    with contextlib.suppress(OSError, ValueError):
        write_file(place / f"ended-by-{rank}.txt", (message + "\n").encode())
    if last["host"] == socket.gethostname():
        with contextlib.suppress(OSError):
            os.kill(int(last["process"]), signal.SIGKILL)
    os._exit(EXIT)
