"""Clients that go away while they wait, while their prompt is read and while the answer is written; and overload."""

import json
import random
import socket
import threading
import time

import pytest

from handscroll.generate.chooser import Chooser
from tests.serve import material
from tests.serve.material import TEXT, idle


@pytest.fixture(scope="module")
def server(served_models, tmp_path_factory):
    """A server of few places; blocks that are given up hold no numbers any more."""
    models = {"tiny": served_models["tiny"]}
    limits = {"waiting": 12, "each": 12}
    with material.live(tmp_path_factory.mktemp("gone"), models, limits=limits, most=4) as made:
        made.engine.pool._poison = True
        yield made


def sent(server, body) -> socket.socket:
    data = json.dumps({"model": "tiny"} | body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(data)}"
    one = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    one.sendall(head.encode() + b"\r\n\r\n" + data)
    return one


def gone(server) -> float:
    """Answers that nobody waited for."""
    text = server.serving.metrics.text().decode()
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith("handscroll_disconnects_total"))


@pytest.mark.promise("R24")
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("n", [1, 3])
def test_what_nobody_waits_for_is_free_within_a_second(server, stream, n):
    before = gone(server)
    dice = random.Random(n * 2 + stream)
    body = {"prompt": TEXT * 4, "max_tokens": 1500, "temperature": 1.0, "stream": stream, "n": n}
    for _ in range(12):
        one = sent(server, body)
        time.sleep(dice.random() * 0.08)  # in the queue, within the prompt, within the answer
        one.close()
    begun = time.monotonic()
    server.until(lambda: idle(server), 30)
    assert time.monotonic() - begun < 20 and gone(server) > before
    made = server.openai.completions.create(model="tiny", prompt=TEXT * 4, max_tokens=5, temperature=0)
    again = server.openai.completions.create(model="tiny", prompt=TEXT * 4, max_tokens=5, temperature=0)
    assert made.choices[0].text == again.choices[0].text


def test_an_answer_that_was_given_up_is_charged_what_was_read_of_its_prompt(server, monkeypatch):
    charged = []
    monkeypatch.setattr(server.serving.admission, "use", lambda owner, tokens: charged.append(tokens))
    prompt, gate = "a beginning of its own " + TEXT * 12, threading.Event()
    whole = server.openai.completions.create(model="tiny", prompt=prompt, max_tokens=3)
    assert charged == [whole.usage.prompt_tokens + whole.usage.completion_tokens]
    server.openai.completions.create(model="tiny", prompt=prompt, max_tokens=0, logprobs=1, extra_body={"echo": True})
    assert sum(charged[1:]) == whole.usage.prompt_tokens
    charged.clear()
    server.serving.worker.post(lambda: gate.wait(30))
    with sent(server, {"prompt": f"another {prompt}", "max_tokens": 3}):
        server.until(lambda: server.serving.admission.open == 1)
    server.until(lambda: server.serving.admission.open == 0)
    gate.set()
    server.until(lambda: idle(server))
    assert sum(charged) == 0
    real = server.engine._read_chunk

    def once(*given):
        real(*given)
        raise RuntimeError("no memory")

    monkeypatch.setattr(server.engine, "_read_chunk", once)
    made = server.http.post("/v1/completions", json={"model": "tiny", "prompt": f"a third {prompt}"})
    server.until(lambda: idle(server) and sum(charged) > 0)  # it is charged behind the answer
    assert made.status_code == 500 and sum(charged) <= 256 < whole.usage.prompt_tokens


def test_an_answer_that_is_given_up_within_a_step_is_charged_what_the_step_reads(server, monkeypatch):
    charged, begun, gate = [], threading.Event(), threading.Event()
    monkeypatch.setattr(server.serving.admission, "use", lambda owner, tokens: charged.append(tokens))
    real = server.engine._read_chunk

    def slow(*given):
        begun.set()
        gate.wait(30)
        return real(*given)

    monkeypatch.setattr(server.engine, "_read_chunk", slow)
    with sent(server, {"prompt": f"a beginning that is given up {TEXT * 12}", "max_tokens": 3}):
        server.until(begun.is_set)
    server.until(lambda: server.serving.admission.open == 0)
    gate.set()
    server.until(lambda: idle(server) and charged)
    assert 0 < sum(charged) <= 256


@pytest.mark.promise("R28")
def test_more_than_there_are_places_for_are_told_to_wait_and_it_recovers(server):
    statuses = []

    def ask():
        body = {"model": "tiny", "prompt": TEXT, "max_tokens": 150}
        made = server.http.post("/v1/completions", json=body, timeout=300)  # of a machine that has other things to do
        statuses.append((made.status_code, made.headers.get("retry-after")))

    threads = [threading.Thread(target=ask) for _ in range(40)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(300)
    good = sum(status == 200 for status, _ in statuses)
    assert {status for status, _ in statuses} == {200, 429} and good >= 12, statuses
    assert all(wait is not None for status, wait in statuses if status == 429)
    server.until(lambda: idle(server), 5)
    assert (
        server.http.post("/v1/completions", json={"model": "tiny", "prompt": "a", "max_tokens": 1}).status_code == 200
    )


@pytest.mark.promise("R28")
def test_a_large_prompt_does_not_hold_up_the_others(server):
    worst = 0.0
    done = threading.Event()

    def large():
        server.http.post("/v1/completions", json={"model": "tiny", "prompt": "walk " * 2_000_000, "max_tokens": 1})
        done.set()

    thread = threading.Thread(target=large)
    thread.start()
    while not done.is_set():
        begun = time.monotonic()
        assert server.http.get("/health").status_code == 200
        worst = max(worst, time.monotonic() - begun)
    thread.join()
    assert worst < 5.0  # a bound for slow machines, no measurement


@pytest.mark.promise("R28")
def test_a_model_that_fails_ends_its_answers_and_not_the_server(server, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no memory")

    monkeypatch.setattr(server.engine, "_read_chunk", fail)
    made = server.http.post("/v1/completions", json={"model": "tiny", "prompt": TEXT[5:], "max_tokens": 4})
    assert made.status_code == 500 and made.json()["error"]["code"] == "model_failed"
    monkeypatch.undo()
    server.until(lambda: idle(server), 5)
    made = server.http.post("/v1/completions", json={"model": "tiny", "prompt": TEXT[5:], "max_tokens": 4})
    assert made.status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_fails_ends_alone(server, monkeypatch, stream):
    """Who asked is told the same, whole or in a stream, and nobody else."""
    real = Chooser.take

    def take(chooser, token, logits):
        if chooser.request.sampling.max_tokens == 5:
            raise IndexError("no such token")
        return real(chooser, token, logits)

    monkeypatch.setattr(Chooser, "take", take)
    other = {"model": "tiny", "prompt": TEXT, "max_tokens": 60, "temperature": 1.0, "stream": True, "seed": 1}
    pieces = server.openai.completions.create(**other)
    said = [next(pieces).choices[0]]
    body = {"model": "tiny", "prompt": TEXT[5:], "max_tokens": 5, "stream": stream}
    made = server.http.post("/v1/completions", json=body)
    assert made.status_code == (200 if stream else 500) and '"model_failed"' in made.text
    said += [piece.choices[0] for piece in pieces]
    assert said[-1].finish_reason == "length"
    server.until(lambda: idle(server), 5)


def test_answers_may_end_when_the_server_is_told_to_stop(served_models, tmp_path):
    said = []
    with material.live(tmp_path, {"tiny": served_models["tiny"]}) as server:
        asked = {"model": "tiny", "prompt": TEXT, "max_tokens": 100, "temperature": 1.0, "stream": True}
        stream = server.openai.completions.create(**asked)
        said.append(next(stream).choices[0].text)
        server.server.should_exit = True
        said += [chunk.choices[0].text for chunk in stream]
    assert len(said) > 1
