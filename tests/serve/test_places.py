"""Bodies that are held at once, and the places of counts, of followed readings and of files: none takes the others'."""

import json
import socket
import threading
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from handscroll.base.errors import DataError
from handscroll.search.passages import passages
from handscroll.serve.admission import Admission
from handscroll.serve.bodies import FREE, Bodies
from handscroll.serve.documents import arriving, library
from handscroll.serve.documents.library import Library
from handscroll.serve.documents.shelf import Shelf
from handscroll.serve.documents.stopping import Stop
from handscroll.serve.documents.vectors import Vectors
from handscroll.serve.errors import ApiError, ClientGoneError
from handscroll.serve.keys import Keys, Owner, make_key
from handscroll.serve.prompts import Prompt
from handscroll.serve.routes import documents, tokens
from handscroll.serve.serving import Serving
from handscroll.serve.settings import Limits, ServeSettings
from handscroll.serve.worker import Worker
from handscroll.text.document import Document
from tests.naming import naming
from tests.serve import material
from tests.serve.material import TEXT, connected

ANN, BOB, EVE = (Owner(name, name, None) for name in "abe")
LARGE = FREE + 60_000
ABOUT = {"bytes": 1, "sha256": "", "text_sha256": "", "notes": []}


@pytest.fixture(scope="module")
def small(served_models, tmp_path_factory):
    """A server that holds little."""
    limits = {"bodies": 100_000, "uploads": 100_000, "counting": 2, "watching": 2, "each": 4, "waiting": 4}
    with material.live(tmp_path_factory.mktemp("places"), {"tiny": served_models["tiny"]}, limits=limits) as made:
        yield made


def posted(path: str, body: bytes, size: int = 0) -> bytes:
    """A request whose body has `size` bytes, as far as it is sent."""
    lines = f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json"
    return "\r\n".join((*lines, f"Content-Length: {size or len(body)}", "", "")).encode() + body


def shelf(live) -> list[str]:
    """The numbers of the documents; what is said of one that is read changes."""
    return [one["id"] for one in live.http.get("/v1/documents").json()["data"]]


def test_bodies_are_counted_until_they_have_arrived():
    bodies = Bodies(100, 50)
    with bodies.arriving(ANN, 0) as first, bodies.arriving(ANN, FREE) as second, bodies.arriving(BOB, 0) as third:
        first.came(FREE)
        first.came(FREE + 40)
        second.came(FREE + 10)
        with pytest.raises(ApiError, match=naming("50", "65,536")) as it:
            second.came(FREE + 11)  # half of them belong to one key
        assert it.value.status_code == 429 and int(it.value.headers["Retry-After"]) >= 1
        third.came(FREE + 50)
        with pytest.raises(ApiError, match=naming("100")), bodies.arriving(EVE, FREE + 1):
            pass  # before a byte of it has come
        with bodies.arriving(EVE, FREE) as small:
            small.came(FREE)
        first.release()
        second.came(FREE + 50)
    with bodies.arriving(ANN, FREE + 300) as alone:
        alone.came(FREE + 300)
    assert bodies._held.total() == 0


def test_what_was_let_in_by_its_declared_size_is_not_refused_on_its_way():
    bodies = Bodies(100, 50)
    with bodies.arriving(ANN, FREE + 30) as first:
        with pytest.raises(ApiError, match=naming("50")), bodies.arriving(ANN, FREE + 30):
            pass
        with bodies.arriving(BOB, FREE + 50) as second:
            second.came(FREE + 50)
            first.came(FREE + 30)
    assert bodies._held.total() == 0


def test_large_bodies_are_refused_while_others_are_held_and_small_ones_are_taken(small):
    with connected(small) as first:
        first.sendall(posted("/v1/completions", b'{"model": "tiny", "prompt": "' + b"a" * (LARGE - 100), LARGE))
        small.until(lambda: small.serving.bodies._held.total() > 50_000)
        body = json.dumps({"model": "tiny", "prompt": "a" * LARGE, "max_tokens": 1})
        for path in ("completions", "count", "tokenize", "detokenize", "documents/doc-0/read", "documents/doc-0/stop"):
            made = small.http.post(f"/v1/{path}", content=body, headers={"Content-Type": "application/json"})
            assert made.status_code == 429 and int(made.headers["retry-after"]) >= 1, (path, made.text)
        for path in ("completions", "count"):
            few = {"prompt": "a", "max_tokens": 1} if path == "completions" else {"text": "a"}
            assert small.http.post(f"/v1/{path}", json={"model": "tiny"} | few).status_code == 200
    small.until(lambda: small.serving.bodies._held.total() == 0)
    made = small.http.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert made.status_code == 400, made.text  # only the context does not hold it


def test_json_counts_until_it_is_parsed_and_not_while_it_is_answered(small):
    gate = threading.Event()
    body = json.dumps({"model": "tiny", "prompt": "a", "max_tokens": 1}).encode().ljust(LARGE)
    small.serving.worker.post(lambda: gate.wait(60))
    try:
        with connected(small) as first, connected(small) as second:
            for number, one in enumerate((first, second), 1):
                one.sendall(posted("/v1/completions", body))
                small.until(lambda number=number: small.serving.admission.open == number)
                small.until(lambda: small.serving.bodies._held.total() == 0)
            gate.set()
            assert [one.recv(100).split()[1] for one in (first, second)] == [b"200", b"200"]
    finally:
        gate.set()


def test_counts_have_places_of_their_own(small):
    admission, owner = small.serving.admission, small.serving.keys.local
    paths = [f"/v1/{name}" for name in ("count", "tokenize", "detokenize", "documents/doc-0/read")]
    with admission.beside(owner, "count"), admission.beside(owner, "count"):
        for path in paths:
            made = small.http.post(path, content=b"{broken", headers={"Content-Type": "application/json"})
            assert made.status_code == 429 and int(made.headers["retry-after"]) >= 1, path
            assert "count tokens or begin a reading" in made.json()["error"]["message"]
        made = small.http.post("/v1/completions", json={"model": "tiny", "prompt": "a", "max_tokens": 1})
        assert made.status_code == 200 and admission.open == 0
    assert small.http.post("/v1/count", json={"model": "tiny", "text": "a"}).status_code == 200


def test_long_counts_hold_up_no_answer_and_are_not_begun_for_who_has_gone(small, monkeypatch):
    gate, begun = threading.Event(), []

    def slow(served, body):
        begun.append(body.text)
        gate.wait(60)
        return Prompt([1])

    def count(text: str) -> socket.socket:
        one = connected(small)
        one.sendall(posted("/v1/count", json.dumps({"model": "tiny", "text": text}).encode()))
        return one

    monkeypatch.setattr(tokens, "_made", slow)
    monkeypatch.setattr(small.serving.admission, "_limits", Limits(counting=9))
    try:
        with count("one"), count("two"):
            small.until(lambda: sorted(begun) == ["one", "two"])
            with count("three"):
                small.until(lambda: small.serving.admission._beside.total() == 3)
            small.until(lambda: small.serving.admission._beside.total() == 2)
            made = small.http.post("/v1/completions", json={"model": "tiny", "prompt": "a", "max_tokens": 1})
            assert made.status_code == 200
    finally:
        gate.set()
    monkeypatch.undo()
    small.until(lambda: small.serving.admission._beside.total() == 0)
    assert small.http.post("/v1/count", json={"model": "tiny", "text": "a"}).status_code == 200
    assert sorted(begun) == ["one", "two"]


def test_a_number_of_tokens_is_kept_under_the_lock_of_the_library_and_of_no_document_that_is_gone(tmp_path):
    shelf = Shelf(tmp_path, 9)
    made, locked = Library(shelf, Vectors(shelf, Worker(), lambda: None)), []
    entry = shelf.add("ann", "a.txt", Document(TEXT, "a.txt"), ABOUT)

    class Kept(dict):
        def __setitem__(self, key, value):
            locked.append(made._lock._is_owned())
            super().__setitem__(key, value)

    def encode(text, special):
        entry.gone = gone
        return [1, 2, 3]

    made._tokens = Kept()
    tokenizer = SimpleNamespace(encode=encode)
    for gone in (True, False):
        served = SimpleNamespace(name="tiny", loaded=SimpleNamespace(tokenizer=tokenizer))
        assert made.tokens(entry, served) == 3
        assert len(made._tokens) == (not gone)
    assert locked == [True]


def test_an_index_is_made_once_though_two_ask_for_it(tmp_path, monkeypatch):
    shelf = Shelf(tmp_path, 9)
    made, calls, again = Library(shelf, Vectors(shelf, Worker(), lambda: None)), [], threading.Event()
    entry = shelf.add("ann", "a.txt", Document(TEXT, "a.txt"), ABOUT)
    second = threading.Thread(target=lambda: made.passages(entry))

    def cut(document):
        calls.append(document)
        if len(calls) == 1:
            second.start()
            again.wait(0.3)  # for the second, if it does not wait for the first
        again.set()
        return passages(document)

    monkeypatch.setattr(library, "passages", cut)
    made.passages(entry)
    second.join(30)
    assert len(calls) == 1


@pytest.fixture
def opening(monkeypatch):
    """Files of which those that are called slow are opened when the gate is."""
    gate, opened, usual = threading.Event(), list[str](), documents.arrive

    def open_it(shelf, owner, name, *given):
        opened.append(name)
        if name.startswith("slow"):
            gate.wait(60)
        return usual(shelf, owner, name, *given)

    monkeypatch.setattr(documents, "arrive", open_it)
    yield gate, opened
    gate.set()


def sending(server, name: str, text: str = TEXT) -> socket.socket:
    """A connection on which a file was sent."""
    body = f'--x\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n{text}\r\n--x--\r\n'.encode()
    lines = "POST /v1/documents HTTP/1.1", "Host: localhost", f"Authorization: Bearer {server.key}"
    lines = *lines, "Content-Type: multipart/form-data; boundary=x", f"Content-Length: {len(body)}"
    one = connected(server)
    one.sendall("\r\n".join((*lines, "", "")).encode() + body)
    return one


def test_a_file_whose_sender_has_gone_is_not_kept(small, opening):
    gate, opened = opening
    before = shelf(small)
    with sending(small, "slow.txt"), sending(small, "slow-two.txt"):
        small.until(lambda: sorted(opened) == ["slow-two.txt", "slow.txt"])
        with sending(small, "slow-three.txt"):  # it waits for its turn
            small.until(lambda: small.serving.admission.open == 3)
        small.until(lambda: small.serving.admission.open == 2)
    small.http.get("/health")  # by its answer the server has seen that all have gone
    gate.set()
    small.until(lambda: small.serving.admission.open == 0)
    assert shelf(small) == before and "slow-three.txt" not in opened
    assert small.serving.readings.waiting == 0 and not small.serving._turns


READER = """import signal, sys
open(sys.argv[1] + ".begun", "x").close()
signal.pause()
"""


def test_the_process_that_opens_a_file_ends_when_its_sender_goes(small, tmp_path, monkeypatch):
    (tmp_path / "slow_reader.py").write_text(READER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(arriving, "extract", SimpleNamespace(__name__="slow_reader", MEMORY=1))
    drafts = small.serving.shelf.drafts
    with sending(small, "a.txt"):
        small.until(lambda: list(drafts.glob("*.begun")))
    small.until(lambda: small.serving.admission.open == 0)
    for file in drafts.glob("*.begun"):
        file.unlink()
    assert not list(drafts.iterdir())
    with pytest.raises(ClientGoneError):
        stopped = Stop()
        stopped.set()
        stopped.written(["no such program"], 1)


def test_where_nobody_else_has_a_key_a_slow_file_does_not_hold_up_the_next(small, opening):
    with sending(small, "slow.txt"):
        small.until(lambda: opening[1] == ["slow.txt"])
        made = small.http.post("/v1/documents", files={"file": ("quick.txt", TEXT.encode())}, timeout=20)
        assert made.status_code == 201
    opening[0].set()
    small.until(lambda: small.serving.admission.open == 0)


def test_files_count_until_they_have_arrived(small, opening):
    text = TEXT * (LARGE // len(TEXT))
    with sending(small, "slow.txt", text):
        small.until(lambda: opening[1] == ["slow.txt"])
        made = small.http.post("/v1/documents", files={"file": ("a.txt", text.encode())}, timeout=20)
        assert made.status_code == 201, made.text
    opening[0].set()
    small.until(lambda: small.serving.admission.open == 0)


@pytest.mark.parametrize("declared", [True, False])
def test_files_are_refused_while_those_of_others_take_all_the_room(small, declared):
    body = (
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
        + b"a" * LARGE
        + b"\r\n--x--\r\n"
    )
    content = body if declared else (body[at : at + 1000] for at in range(0, len(body), 1000))
    before = shelf(small)
    with small.serving.uploads.arriving(EVE, FREE + 90_000):
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        made = small.http.post("/v1/documents", content=content, headers=kind)
        assert made.status_code == 429 and int(made.headers["retry-after"]) >= 1, made.text
    assert shelf(small) == before


def test_a_key_has_all_the_room_where_there_is_no_other(served_models, tmp_path):
    for names, part in (("a", 1), ("ab", 2)):
        for name in names:
            make_key(tmp_path / f"{names}.toml", name)
        given = {"models": [{"name": "tiny", "source": str(served_models["tiny"])}], "store": tmp_path / names}
        serving = Serving(ServeSettings.parse(given, "test"), Keys.load(tmp_path / f"{names}.toml", b"salt"))
        most = serving.settings.limits.bodies
        with serving.bodies.arriving(ANN, FREE + most // 2), ExitStack() as second:
            if part == 1:
                second.enter_context(serving.bodies.arriving(ANN, FREE + most // 2))
            else:
                with pytest.raises(ApiError, match="of this key"):
                    second.enter_context(serving.bodies.arriving(ANN, FREE + 1))


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_document_that_is_deleted_before_its_upload_is_answered_is_not_there(small, monkeypatch, when):
    """Others with the same key see it as soon as it is kept."""
    real = small.serving.begin

    def begin(entry, served):
        tokens = real(entry, served) if when == "after" else 0
        small.http.delete(f"/v1/documents/{entry.number}").raise_for_status()
        return tokens if when == "after" else real(entry, served)

    before = shelf(small)
    monkeypatch.setattr(small.serving, "begin", begin)
    made = small.http.post("/v1/documents", files={"file": ("a.txt", TEXT.encode())}, timeout=20)
    assert (made.status_code, made.json()["error"]["code"]) == (404, "document_not_found"), made.text
    assert shelf(small) == before


def test_a_file_that_cannot_be_read_after_it_came_is_not_kept(small, monkeypatch):
    def refuse(entry, served):
        raise DataError("the template refuses it")

    before = shelf(small)
    monkeypatch.setattr(small.serving.readings, "begin", refuse)
    made = small.http.post("/v1/documents", files={"file": ("a.txt", TEXT.encode())})
    assert made.status_code == 400 and "refuses it" in made.json()["error"]["message"], made.text
    assert shelf(small) == before


def test_the_files_of_one_key_do_not_hold_up_those_of_another(served_models, tmp_path, opening):
    keys = {name: make_key(tmp_path / "keys.toml", name) for name in ("ann", "bob")}
    given = {"keys": tmp_path / "keys.toml", "room": 200}
    with material.live(tmp_path / "store", {"tiny": served_models["tiny"]}, keys["ann"], **given) as server:
        bob = server.as_owner(keys["bob"])
        with ExitStack() as slow:
            for number in range(4):
                slow.enter_context(sending(server, f"slow-{number}.txt"))
            server.until(lambda: server.serving.admission.open == 4)
            made = bob.http.post("/v1/documents", files={"file": ("quick.txt", TEXT.encode())}, timeout=20)
            assert made.status_code == 201 and len(opening[1]) == 2, made.text
        opening[0].set()
        server.until(lambda: server.serving.admission.open == 0 and not server.serving._turns)


def test_who_follows_a_reading_takes_no_place_of_an_answer(small):
    number = small.http.post("/v1/documents", files={"file": ("a.txt", TEXT.encode())}).json()["id"]
    material.read(small, number)
    serving, asked = small.serving, {"question": "a", "max_tokens": 2}
    with serving.admission.beside(serving.keys.local, "watch"), serving.admission.beside(serving.keys.local, "watch"):
        assert small.http.get(f"/v1/documents/{number}/events").status_code == 429
        assert serving.admission.open == 0
        assert small.http.post(f"/v1/documents/{number}/ask", json=asked).status_code == 200
    with serving.admission.answering(serving.keys.local, 4):
        assert small.http.get(f"/v1/documents/{number}/events").text.endswith("data: [DONE]\n\n")


def test_a_reading_that_is_followed_for_an_hour_makes_nobody_wait_longer():
    now = [0.0]
    admission = Admission(Limits(waiting=1, each=1), lambda: now[0])
    with admission.beside(ANN, "watch"):
        now[0] += 3600
    with admission.answering(ANN), pytest.raises(ApiError) as it:
        admission.check(BOB)
    assert it.value.headers["Retry-After"] == "1"
    admission.closing = True
    with pytest.raises(ApiError, match="stopping"), admission.beside(ANN, "watch"):
        pass
