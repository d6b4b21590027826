"""What a client is charged for works that are done in pieces, also where it leaves before their end."""

import json
import threading
from contextlib import contextmanager

import pytest

from handscroll.serve import scoring
from handscroll.serve.routes import embeddings, explaining
from tests.serve import material
from tests.serve.material import TEXT, connected, read

WORDS = " ".join(f"w{n}" for n in range(5))


@pytest.fixture(scope="module")
def live(served_models, tmp_path_factory):
    models = {name: served_models[name] for name in ("tiny", "vectors")}
    with material.live(tmp_path_factory.mktemp("charged"), models, room=200) as made:
        yield made


@pytest.fixture
def charged(live, monkeypatch):
    found = list[int]()
    monkeypatch.setattr(live.serving.admission, "use", lambda owner, tokens: found.append(tokens))
    return found


class Held:
    """Holds the thread that computes at the call of that number."""

    def __init__(self, at: int):
        self.at, self.calls, self.held, self.gate = at, 0, threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.calls += 1
        if self.calls == self.at:
            self.held.set()
            self.gate.wait(60)


@contextmanager
def left(live, path: str, body: dict, hold: Held):
    """A request whose client leaves when the thread is held, and for which no more is done after the block."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
    try:
        with connected(live) as one:
            one.sendall(head.encode() + b"\r\n\r\n" + data)
            live.until(hold.held.is_set, 60)
        live.until(lambda: live.serving.admission.open == 0, 60)
        yield
    finally:
        hold.gate.set()


def test_an_explanation_is_charged_look_by_look(live, charged, monkeypatch):
    number = live.http.post("/v1/documents", files={"file": ("a.txt", (TEXT * 3).encode())}).json()["id"]
    read(live, number)
    charged.clear()
    hold, usual = Held(0), explaining.explained

    def explained(lm, asked, text, answer, how, on_look):
        return usual(lm, asked, text, answer, how, lambda done, total: (hold(), on_look(done, total)))

    monkeypatch.setattr(explaining, "explained", explained)
    path = f"/v1/documents/{number}/explain"
    body = {"model": "tiny", "question": "What is the word?", "answer": "walnut", "tried": 2}
    looked = live.http.post(path, json=body).json()["looked"]
    assert charged == [looked] and hold.calls > 2
    each, hold = looked // hold.calls, Held(2)
    charged.clear()
    with left(live, path, body, hold):
        pass
    live.until(lambda: charged)
    assert charged == [2 * each]


def test_an_echo_is_charged_prompt_by_prompt_and_beside_the_answer(live, charged, monkeypatch):
    prompts = [f"{n} {TEXT}" for n in range(4)]
    body = {"model": "tiny", "prompt": prompts[0], "max_tokens": 2, "echo": True, "logprobs": 1}
    usage = live.http.post("/v1/completions", json=body).json()["usage"]
    live.until(lambda: sum(charged) >= 2 * usage["prompt_tokens"])  # it was scored, and then read for the answer
    assert sum(charged) == usage["prompt_tokens"] + usage["total_tokens"]
    charged.clear()
    hold, usual = Held(3), scoring.scored

    def scored(*given):
        hold()
        return usual(*given)

    monkeypatch.setattr(scoring, "scored", scored)
    with left(live, "/v1/completions", body | {"prompt": prompts, "max_tokens": 0}, hold):
        pass
    live.until(lambda: charged)
    assert sum(charged) == 3 * usage["prompt_tokens"]


def test_vectors_are_charged_a_few_texts_at_a_time(live, charged, monkeypatch):
    body = {"model": "vectors", "input": [WORDS] * 3 * embeddings.TOGETHER}
    tokens = live.http.post("/v1/embeddings", json=body).json()["usage"]["prompt_tokens"]
    assert charged == [tokens]
    charged.clear()
    hold, usual = Held(2), embeddings._some

    def some(*given):
        hold()
        return usual(*given)

    monkeypatch.setattr(embeddings, "_some", some)
    with left(live, "/v1/embeddings", body, hold):
        pass
    live.until(lambda: charged)
    assert charged == [tokens * 2 // 3]


def test_vectors_of_windows_are_charged_piece_by_piece(live, charged, monkeypatch):
    body = {"model": "vectors", "input": [" ".join([WORDS] * 60)], "windows": True}
    tokens = live.http.post("/v1/embeddings", json=body).json()["usage"]["prompt_tokens"]
    assert charged == [tokens]
    charged.clear()
    hold, usual = Held(2), embeddings.windowed
    monkeypatch.setattr("handscroll.models.sentences.SHORT", 64)
    monkeypatch.setattr(embeddings, "SHORT", 64)

    def windowed(*given):
        *given, between = given
        return usual(*given, lambda: (hold(), between()))

    monkeypatch.setattr(embeddings, "windowed", windowed)
    with left(live, "/v1/embeddings", body, hold):
        pass
    live.until(lambda: charged)
    assert charged == [128]
