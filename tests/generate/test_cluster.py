"""`handscroll batch --ray`: the answers of a plain run, in order, from two workers, also when one of them dies."""

import json
import os
from functools import partial
from pathlib import Path

import pytest

from handscroll.base.errors import CapacityError, ConfigError, HandscrollError
from handscroll.extend.story import STARTER
from handscroll.generate.engine import cluster as module
from handscroll.generate.engine.batch import Asked, Named, answer, identity, read_requests
from handscroll.generate.engine.cluster import Cluster
from handscroll.lm import load
from tests.generate.batches import run, write

LINES = [{"prompt": f"def f{number}(", "max_tokens": 6 + number % 5} for number in range(14)]
LINES[5] |= {"temperature": 0.9, "seed": 4}
LINES[9] |= {"regex": "[0-9]{3}"}


def engine_of(memory=20_000_000):
    lm = load(STARTER, dtype="float32")
    return lm.engine(memory, deterministic=True), lm.tokenizer


def dying(folder: Path, lives: int):
    """An engine whose process ends at its third step, in the first `lives` processes."""
    engine, tokenizer = engine_of()
    if len(list(folder.iterdir())) < lives:
        (folder / str(os.getpid())).touch()
        steps, step = iter(range(3)), engine.step
        engine.step = lambda: step() if next(steps, None) is not None else os._exit(1)  # type: ignore[method-assign]
    return engine, tokenizer


class Ended(Exception):
    """What Ray raises when the process of a worker is gone."""


class Failed(Exception):
    """What Ray raises for an error of the worker's own code."""

    def __init__(self, cause):
        self.cause = cause


class Handle:
    """A method or a class as Ray's handles are called."""

    def __init__(self, call):
        self.call = call

    def options(self, **_):
        return self

    def remote(self, *given):
        return self.call(*given)


class Actor:
    def __init__(self, kind, *given):
        self.made = kind(*given)
        self.identity, self.answer = Handle(self.made.identity), Handle(lambda lines: Stream(self.made.answer(lines)))


class Stream:
    """The results of a worker; each is computed when it is asked for."""

    def __init__(self, found):
        self.found = found

    def __next__(self):
        try:
            record = next(self.found)
        except (Ended, HandscrollError) as error:
            return error if isinstance(error, Ended) else Failed(error)
        return record


class Here:
    """As much of Ray as the cluster calls, in this process: the streams in turn, the last one first."""

    class exceptions:
        RayActorError, RayTaskError, GetTimeoutError = Ended, Failed, TimeoutError

    ended = 0

    def init(self, **settings):
        if settings["address"] != "local":
            raise ConnectionError("nobody answers")

    def shutdown(self):
        self.ended += 1

    def nodes(self):
        return [{"Alive": True, "Resources": {"CPU": 2.0}}, {"Alive": False, "Resources": {}}]

    def remote(self, kind):
        return Handle(partial(Actor, kind))

    def wait(self, streams, num_returns):
        return [streams[-1]], streams[:-1]

    def get(self, found, timeout=None):
        if isinstance(found, Exception):
            raise found
        return found


@pytest.fixture
def here(monkeypatch):
    made = Here()
    monkeypatch.setattr(module, "_ray", lambda: made)
    monkeypatch.setattr(module, "GROUP", 4)
    return made


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    engine, tokenizer = engine_of()
    asked = read_requests(write(folder / "requests.jsonl", LINES), engine, tokenizer)
    answer(asked, engine, tokenizer, folder / "answers.jsonl")
    return asked, engine, tokenizer, (folder / "answers.jsonl").read_bytes()


class Broken:
    """An engine that ends its process at its second step, as many times as `lives` says."""

    lives = 0

    @classmethod
    def start(cls):
        engine, tokenizer = engine_of()
        if cls.lives:
            cls.lives -= 1
            steps, step = iter(range(2)), engine.step

            def stepping():
                if next(steps, None) is None:
                    raise Ended("the worker died")
                return step()

            engine.step = stepping  # type: ignore[method-assign]
        return engine, tokenizer


@pytest.mark.parametrize("lives", [0, 2])
def test_answers_come_in_order_and_a_worker_that_dies_loses_nothing(here, plain, tmp_path, monkeypatch, lives):
    asked, engine, tokenizer, want = plain
    monkeypatch.setattr(Broken, "lives", lives)
    cluster = Cluster("local", Broken.start, identity(engine), workers=2)
    assert answer(asked, engine, tokenizer, tmp_path / "a", answers=cluster) == 0
    assert (tmp_path / "a").read_bytes() == want and len(cluster.died) == lives and here.ended == 1
    (tmp_path / "a").write_bytes(b"".join(want.splitlines(keepends=True)[:5]))  # as if it had been killed
    assert answer(asked, engine, tokenizer, tmp_path / "a", answers=cluster) == 5
    assert (tmp_path / "a").read_bytes() == want


def test_a_line_that_kills_every_worker_is_named(here, plain, tmp_path, monkeypatch):
    asked, engine, tokenizer, _ = plain
    monkeypatch.setattr(Broken, "lives", 99)
    with pytest.raises(CapacityError, match=r"line 1.*3 workers died"):
        answer(asked, engine, tokenizer, tmp_path / "a", answers=Cluster("local", Broken.start, identity(engine), 1))
    assert here.ended == 1


def test_errors_of_a_worker_are_those_of_the_package(here, plain):
    asked, engine, _, _ = plain
    with pytest.raises(ConfigError, match="another model"):
        list(Cluster("local", engine_of, "somebody else's", 2)([Named(asked[0], "x")]))
    with pytest.raises(ConfigError, match="no Ray cluster at far:6379"):
        list(Cluster("far:6379", engine_of, identity(engine))([Named(asked[0], "x")]))
    broken = Asked(1, asked[0].line.model_copy(update={"regex": "("}), asked[0].request)
    with pytest.raises(ConfigError):
        list(Cluster("local", engine_of, identity(engine))([Named(broken, "x")]))


def test_workers_need_a_cluster(tmp_path):
    requests = write(tmp_path / "r.jsonl", LINES[:1])
    run("batch", STARTER, requests, "--out", tmp_path / "a", "--workers", 2, fails="--ray")


@pytest.mark.long  # starting a cluster takes half a minute
def test_a_cluster_of_two_real_workers(plain, tmp_path):
    pytest.importorskip("ray")
    asked, engine, tokenizer, want = plain
    (tmp_path / "lives").mkdir()
    cluster = Cluster("local", partial(dying, tmp_path / "lives", 1), identity(engine), workers=2)
    answer(asked, engine, tokenizer, tmp_path / "a", answers=cluster)
    assert (tmp_path / "a").read_bytes() == want and len(cluster.died) == 1
    requests = write(tmp_path / "r.jsonl", LINES)
    said = run(
        *("batch", STARTER, requests, "--out", tmp_path / "b"), *("--ray", "local", "--workers", 2, "--deterministic")
    )
    assert "14 answers" in said
    assert [json.loads(line)["line"] for line in (tmp_path / "b").read_text().splitlines()] == list(range(1, 15))
