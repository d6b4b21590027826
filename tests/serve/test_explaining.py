"""Why an answer was given, over the interface; and a reading that is stopped and goes on."""

import threading
from contextlib import contextmanager

import pytest

import handscroll
from handscroll.cache.reading.store import Store
from handscroll.explain.why import Explaining, explain
from handscroll.generate.ask import Question
from handscroll.serve.documents import readings
from tests.serve import material
from tests.serve.material import TEXT

BOOK = f"{TEXT}The word is walnut.\n{TEXT * 3}"


@pytest.fixture(scope="module")
def live(served_models, tmp_path_factory):
    with material.live(tmp_path_factory.mktemp("why"), {"tiny": served_models["tiny"]}, room=200) as made:
        yield made


def given(live, name: str = "book.txt", text: str = BOOK) -> str:
    return live.http.post("/v1/documents", files={"file": (name, text.encode())}).json()["id"]


def state(live, number: str) -> dict:
    return live.http.get(f"/v1/documents/{number}").json()["readings"]["tiny"]


def read(live) -> str:
    number = given(live)
    live.until(lambda: state(live, number)["state"] == "read")
    return number


def test_an_explanation_is_that_of_the_library(live, served_models, tmp_path):
    body = {"model": "tiny", "question": "What is the word?", "answer": "walnut tree", "tried": 3, "passage": 32}
    found = live.http.post(f"/v1/documents/{read(live)}/explain", json=body).json()
    lm, store = handscroll.load(served_models["tiny"]), Store(tmp_path)
    lm.read(BOOK, store, "book", room=200)
    how = Explaining(tried=3, passage=32)
    wanted = explain(lm, Question("book", "What is the word?"), store, "walnut tree", how).record()
    assert [one["text"] for one in found["marks"]] == [one["text"] for one in wanted["marks"]]
    for name in ("likelihood", "rests", "together"):
        assert found[name] == pytest.approx(wanted[name], abs=1e-3)
    for one, other in zip(found["marks"], wanted["marks"], strict=True):
        assert BOOK[one["start"] : one["end"]] == one["text"]
        assert one["attention"] == pytest.approx(other["attention"], abs=1e-4)
        assert one["effect"] == (other["effect"] and pytest.approx(other["effect"], abs=1e-3))


def test_what_is_read_and_explained_counts_for_the_quota(live, monkeypatch):
    used = []
    monkeypatch.setattr(live.serving.admission, "use", lambda owner, tokens: used.append(tokens))
    number = given(live, "counted.txt", "A beginning that is counted.\n" + BOOK)
    live.until(lambda: state(live, number)["state"] == "read")
    assert used == [state(live, number)["tokens"]]
    live.http.post(f"/v1/documents/{number}/read", json={"model": "tiny"})  # all of it is kept
    live.until(lambda: state(live, number)["state"] == "read")
    body = {"model": "tiny", "question": "What is the word?", "answer": "walnut", "tried": 1}
    found = live.http.post(f"/v1/documents/{number}/explain", json=body).json()
    assert used[1:] == [0, found["looked"]]


def test_earlier_turns_belong_to_an_explanation(live):
    number = read(live)
    body = {"model": "tiny", "question": "And again?", "answer": "walnut", "tried": 0}
    history = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A word."}]
    alone = live.http.post(f"/v1/documents/{number}/explain", json=body).json()
    later = live.http.post(f"/v1/documents/{number}/explain", json=body | {"history": history}).json()
    assert alone["read"] == later["read"] and alone["looked"] < later["looked"]
    assert alone["likelihood"] != later["likelihood"]


def test_what_cannot_be_explained_is_refused(live):
    number = read(live)
    body = {"model": "tiny", "question": "What?", "answer": "x"}
    wrong = {
        404: ("doc-" + "0" * 24, body),
        400: (number, body | {"answer": ""}),
    }
    for status, (which, given) in wrong.items():
        assert live.http.post(f"/v1/documents/{which}/explain", json=given).status_code == status
    long = live.http.post(f"/v1/documents/{number}/explain", json=body | {"answer": "x " * 4000})
    assert long.status_code == 400 and long.json()["error"]["code"] == "context_length_exceeded"


def test_a_reading_that_waits_is_stopped_and_goes_on(live):
    gate = threading.Event()
    live.serving.worker.begin(gate.wait)
    try:
        number = given(live)
        assert (
            live.http.post(f"/v1/documents/{number}/stop", json={"model": "tiny"}).json()["readings"]["tiny"]["state"]
            == "stopped"
        )
        asked = live.http.post(f"/v1/documents/{number}/ask", json={"question": "What?"})
        assert asked.status_code == 409 and "stopped" in asked.json()["error"]["message"]
    finally:
        gate.set()
    live.http.post(f"/v1/documents/{number}/read", json={"model": "tiny"})
    live.until(lambda: state(live, number)["state"] == "read")


@contextmanager
def occupied(live):
    """A long work, between whose pieces others go on."""
    end = threading.Event()

    def work():
        while not end.wait(0.01):
            live.serving.worker.breathe(0.01)

    live.serving.worker.begin(work)
    try:
        yield
    finally:
        end.set()


def test_a_document_that_waits_is_deleted_at_once(live):
    with occupied(live):
        number = given(live, "waiting.txt")
        assert live.http.delete(f"/v1/documents/{number}", timeout=5).json()["deleted"] is True
        assert live.serving.readings.waiting == 0


def test_what_somebody_waits_for_does_not_wait_for_a_document(live, monkeypatch):
    """While a document is read: an explanation, and a long prompt that is scored."""
    gate, worker, turns = threading.Event(), live.serving.worker, []
    usual, known = worker.give_way, read(live)

    def give_way():
        turns.append(len(turns))
        if len(turns) <= 2:
            live.until(lambda: worker._awaited)
        else:
            gate.wait(30)
        usual()

    monkeypatch.setattr(worker, "give_way", give_way)
    monkeypatch.setattr(readings, "CHUNK", 64)
    number = given(live, "hours.txt", "A beginning that takes hours.\n" + TEXT * 12)
    try:
        body = {"model": "tiny", "question": "What is the word?", "answer": "walnut", "tried": 1}
        assert live.http.post(f"/v1/documents/{known}/explain", json=body, timeout=20).status_code == 200
        body = {"model": "tiny", "prompt": TEXT * 15, "echo": True, "logprobs": 1, "max_tokens": 0}
        assert live.http.post("/v1/completions", json=body, timeout=20).status_code == 200
        assert state(live, number)["state"] == "reading"
    finally:
        gate.set()
    live.until(lambda: state(live, number)["state"] == "read")


def test_a_stopped_reading_outlives_another_document_and_not_its_own(live, monkeypatch):
    gate, store = threading.Event(), live.serving.readings.store(live.serving.keys.local.number)
    other, before = read(live), {about.number for about in store.parts()}
    with monkeypatch.context() as patched:
        patched.setattr(live.serving.worker, "breathe", lambda seconds: gate.wait(10))
        number = given(live, "stopped.txt", "A beginning of its own.\n" + TEXT * 12)
        live.until(lambda: state(live, number).get("progress", {}).get("done", 0) > 0)
        live.http.post(f"/v1/documents/{number}/stop", json={"model": "tiny"})
        gate.set()
        live.until(lambda: state(live, number)["state"] == "stopped")
    done, kept = state(live, number)["done"], {about.number for about in store.parts()} - before
    assert done > 0 and kept
    live.http.delete(f"/v1/documents/{other}")
    assert {about.number for about in store.parts()} >= kept
    with occupied(live):
        live.http.post(f"/v1/documents/{number}/read", json={"model": "tiny"})
        live.http.post(f"/v1/documents/{number}/stop", json={"model": "tiny"})
        assert state(live, number) == {"state": "stopped", "tokens": state(live, number)["tokens"], "done": done}
    live.http.delete(f"/v1/documents/{number}")
    assert not {about.number for about in store.parts()} & kept
    assert not [name for name in store.names() if name.startswith(number)]


def test_a_reading_that_goes_on_is_stopped_and_keeps_what_was_read(live, monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr(live.serving.worker, "breathe", lambda seconds: gate.wait(10))
    number = given(live, "long.txt", "Another beginning.\n" + TEXT * 12)
    live.until(lambda: state(live, number).get("progress", {}).get("done", 0) > 0)
    now = state(live, number)["progress"]
    assert 0 < now["memory"]["used"] < now["memory"]["planned"] and now["tokens_per_second"] > 0
    assert live.http.post(f"/v1/documents/{number}/stop", json={"model": "tiny"}).status_code == 200
    gate.set()
    live.until(lambda: state(live, number)["state"] == "stopped")
    stopped = state(live, number)
    assert 0 < stopped["done"] < stopped["tokens"]
    live.http.post(f"/v1/documents/{number}/read", json={"model": "tiny"})
    live.until(lambda: state(live, number)["state"] == "read")
