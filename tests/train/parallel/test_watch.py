"""Ranks that watch each other, by a clock of the test: who is named and killed, and who is not."""

import json
import socket

import pytest

from handscroll.train import loop as loop_module
from handscroll.train.parallel import watch
from handscroll.train.parallel.world import World
from handscroll.train.start import run_recipe

RUN = 17


class Ended(Exception):
    """In place of the end of the process."""


class Clock:
    """The clock and the event of a watcher: each wait takes its time at once, and `then` happens after it."""

    def __init__(self, seconds, then):
        self.now, self.seconds, self.then = 0.0, seconds, then

    def wait(self, seconds):
        self.now += seconds
        self.then(self.now)
        return self.now > self.seconds

    def monotonic(self):
        return self.now


@pytest.fixture
def watching(tmp_path, monkeypatch):
    """Watch rank 1 from rank 0 for some seconds; gives the processes that were killed, and whether the run ended."""
    killed = []

    def end(status):
        raise Ended

    def look(seconds, then=lambda now: None):
        clock = Clock(seconds, then)
        monkeypatch.setattr(watch, "time", clock)
        try:
            watch._watch(tmp_path, 0, 2, RUN, clock)
        except Ended:
            return killed, True
        return killed, False

    monkeypatch.setattr(watch.os, "_exit", end)
    monkeypatch.setattr(watch.os, "kill", lambda process, how: killed.append(process))
    return look


def beat(folder, run, count, process=4711):
    text = json.dumps({"beat": count, "run": run, "process": process, "host": socket.gethostname()})
    (folder / "rank-1.json").write_text(text + "\n", encoding="utf-8")


def test_a_beat_of_an_earlier_run_is_nobodys_silence(watching, tmp_path):
    """The rank makes its first beat later; the process of the old beat may by now be anybody's."""
    beat(tmp_path, RUN - 1, 5)
    assert watching(60) == ([], False)


def test_a_rank_that_falls_silent_is_killed_and_ends_the_run(watching, tmp_path, capsys):
    beat(tmp_path, RUN, 5)
    assert watching(60) == ([4711], True)
    assert f"rank 1 (process 4711 on {socket.gethostname()}) has given no sign of life" in capsys.readouterr().err


def test_a_rank_that_beats_or_has_left_is_let_alone(watching, tmp_path):
    assert watching(60, lambda now: beat(tmp_path, RUN, now)) == ([], False)
    beat(tmp_path, RUN, "left")
    assert watching(60) == ([], False)


def test_ranks_begin_to_watch_together(recipe, tmp_path, monkeypatch):
    """The first rank may have made a certificate, which takes longer than a rank may be silent."""
    order = []
    real = loop_module.watched
    monkeypatch.setattr(World, "sum", lambda world, values: order.append("together") or values)
    monkeypatch.setattr(loop_module, "watched", lambda *given: order.append(("watched", *given)) or real(*given))
    run_recipe(recipe("stages.0.steps=1", "stages.1.steps=1"), tmp_path / "run")
    first = next(number for number, one in enumerate(order) if one != "together")
    _, folder, rank, size, run = order[first]
    assert first > 0 and order[first - 1] == "together"
    assert (folder, rank, size) == (tmp_path / "run", 0, 1) and run > 0
