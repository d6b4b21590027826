"""Documents: uploaded in every kind, read once, asked, kept over a restart, seen by their owner alone, and deleted."""

import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import handscroll
from handscroll.base.errors import CheckpointError, ConfigError
from handscroll.cache.reading.store import Store
from handscroll.serve.documents import readings, shelf
from handscroll.serve.documents.asking import document_prompt
from handscroll.serve.documents.eta import seconds_left
from handscroll.serve.documents.readings import Readings
from handscroll.serve.documents.shelf import Shelf, name_of
from handscroll.serve.errors import ApiError
from handscroll.serve.keys import make_key
from handscroll.serve.models import Models, Served
from handscroll.serve.schemas.chat import ChatMessage
from handscroll.serve.settings import ModelSource
from handscroll.text.document import Document
from tests.serve import material
from tests.serve.material import TEXT, read
from tests.text.documents import paragraph, write_docx, write_epub, write_pdf

CANARY = "zebra-canary-7431"
ABOUT = {"bytes": 1, "sha256": "", "text_sha256": "", "notes": []}
BOOK = f"{TEXT}The word is {CANARY}.\n{TEXT * 3}"


@pytest.fixture(scope="module")
def keyed(served_models, tmp_path_factory):
    """A server with two owners."""
    folder = tmp_path_factory.mktemp("documents")
    keys = {name: make_key(folder / "keys.toml", name) for name in ("ann", "bob")}
    settings = {"keys": folder / "keys.toml", "room": 200}
    with material.live(folder / "store", {"tiny": served_models["tiny"]}, keys["ann"], **settings) as made:
        made.bob = made.as_owner(keys["bob"])
        yield made


def uploaded(server, name: str, data: bytes) -> dict:
    made = server.http.post("/v1/documents", files={"file": (name, data)})
    assert made.status_code == 201, made.text
    return read(server, made.json()["id"])


def ask(server, number: str, question: str, **more) -> dict:
    body = {"question": question, "max_tokens": 8, "temperature": 0} | more
    made = server.http.post(f"/v1/documents/{number}/ask", json=body)
    assert made.status_code == 200, made.text
    return made.json()


def test_an_answer_is_that_of_the_library_and_says_what_was_read(keyed, served_models, tmp_path):
    about = uploaded(keyed, "book.txt", BOOK.encode())
    made = ask(keyed, about["id"], "What is the word?")
    lm, store = handscroll.load(served_models["tiny"]), Store(tmp_path)
    lm.read(BOOK, store, "book", room=200)
    assert made["choices"][0]["message"]["content"] == lm.ask("book", "What is the word?", store, max_tokens=8)
    told = made["handscroll"]
    assert told["document"]["tokens"] == told["document"]["seen"] == about["readings"]["tiny"]["tokens"]
    assert told["document"]["text_sha256"] == about["text_sha256"] and told["model"] == "tiny"
    assert told["tokens"]["cached"] >= told["document"]["from_reading"] >= told["document"]["tokens"] - 16
    assert made["usage"]["prompt_tokens_details"]["cached_tokens"] == told["tokens"]["cached"]


def test_later_turns_read_only_what_is_new(keyed):
    number = uploaded(keyed, "again.txt", BOOK.encode())["id"]
    first = ask(keyed, number, "What is the word?")
    said = first["choices"][0]["message"]["content"]
    history = [{"role": "user", "content": "What is the word?"}, {"role": "assistant", "content": said}]
    second = ask(keyed, number, "Why?", history=history)["handscroll"]
    assert second["tokens"]["read_now"] < 80 and second["tokens"]["cached"] >= second["document"]["tokens"] - 16
    asked = {"model": "tiny", "document": number, "max_tokens": 8, "temperature": 0}
    chat = keyed.http.post("/v1/chat/completions", json=asked | {"messages": history[:1]}).json()
    assert chat["choices"][0]["message"]["content"] == said
    pieces = keyed.openai.chat.completions.create(
        model="tiny", messages=history[:1], max_tokens=8, temperature=0, stream=True, extra_body={"document": number}
    )
    assert "".join(one.choices[0].delta.content or "" for one in pieces) == said
    system = [{"role": "system", "content": "Be brief."}, *history[:1]]
    refused = keyed.http.post("/v1/chat/completions", json=asked | {"messages": system})
    assert refused.status_code == 400 and "begins with the user" in refused.json()["error"]["message"]
    counted = keyed.http.post("/v1/count", json={"model": "tiny", "document": number, "messages": history[:1]}).json()
    assert counted["count"] == first["usage"]["prompt_tokens"]


def test_every_kind_of_file_becomes_text_with_its_places(keyed, tmp_path):
    write_pdf(tmp_path / "a.pdf", [[(72, 700, "first page")], [(72, 700, "second page")]])
    write_docx(tmp_path / "a.docx", paragraph("a word document"))
    write_epub(tmp_path / "a.epub", ["<h1>One</h1><p>a chapter</p>", "<h1>Two</h1><p>another</p>"])
    (tmp_path / "a.html").write_text("<html><body><p>a page</p><script>alert(1)</script></body></html>")
    (tmp_path / "a.md").write_text("# 标题\n\n一段文字。")
    (tmp_path / "a.py").write_text(TEXT)
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    found = {}
    for file in sorted(tmp_path.iterdir()):
        about = uploaded(keyed, file.name, file.read_bytes())
        found[file.suffix] = keyed.http.get(f"/v1/documents/{about['id']}/text").json()
        assert about["readings"]["tiny"]["state"] == "read", about
    assert [place["name"] for place in found[".pdf"]["places"]] == ["page 1", "page 2"]
    assert "a word document" in found[".docx"]["text"] and len(found[".epub"]["places"]) == 2
    assert "a page" in found[".html"]["text"] and "alert" not in found[".html"]["text"]
    assert found[".md"]["text"] == "# 标题\n\n一段文字。" and found[".py"]["text"] == TEXT
    assert [place["name"] for place in found[".jsonl"]["places"]] == ["line 1", "line 2"]


def test_the_rows_of_a_table_are_shown_together_and_cited_one_by_one(keyed):
    rows = [f"the key of room {number} hangs at hook {number * 7919 % 1000}" for number in range(400)]
    rows[333] = "the walnut stands in the cellar"
    number = uploaded(keyed, "keys.csv", "\n".join(["text", *rows]).encode())["id"]
    found = keyed.http.get(f"/v1/documents/{number}/text").json()
    text, starts = found["text"], [place["start"] for place in found["places"]]
    sizes = [end - start for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]
    assert starts[0] == 0 and max(sizes) < 2100 and len(starts) < len(text) / 1900 + 1
    assert found["places"][0]["name"].startswith("line 2 to line ") and found["places"][-1]["name"].endswith(
        " line 401"
    )
    body = {"query": "Where does the walnut stand?", "documents": [number], "count": 1}
    (hit,) = keyed.http.post("/v1/documents/search", json=body).json()["data"]
    first, last = (int(word) for word in hit["place"].replace("line ", "").split(" to "))
    assert first <= 335 <= last < first + 30 and rows[333] in hit["text"]


def test_a_table_without_a_text_column_is_read_with_all_its_columns(keyed):
    about = uploaded(keyed, "people.csv", b"name,city\nAda,London\nGrace,New York\n")
    text = keyed.http.get(f"/v1/documents/{about['id']}/text").json()["text"]
    assert text == "name: Ada\ncity: London\n\nname: Grace\ncity: New York\n\n"
    assert "2 rows have no column named text or content" in about["notes"][0]


@pytest.mark.parametrize(("name", "data", "status", "said"), [
    ("a.exe", b"MZ", 415, "unknown suffix"),
    ("a.txt", b"", 422, "empty"),
    ("a.pdf", b"%PDF-1.4\nbroken", 422, "a.pdf"),
    ("a.docx", b"PK\x03\x04broken", 422, "a.docx"),
    ("a.txt", b"\x00\x01binary", 422, "a.txt"),
    ("../../etc/a.exe", b"x", 415, "a.exe"),
])  # fmt: skip
def test_what_cannot_be_read_is_said_and_nothing_is_kept(keyed, name, data, status, said):
    before = keyed.http.get("/v1/documents").json()["data"]
    made = keyed.http.post("/v1/documents", files={"file": (name, data)})
    assert made.status_code == status and said in made.json()["error"]["message"], made.text
    assert str(keyed.serving.settings.store) not in made.text
    assert keyed.http.get("/v1/documents").json()["data"] == before
    assert not list(keyed.serving.shelf.drafts.iterdir())


def test_a_document_that_is_too_long_is_kept_and_refused_with_what_would_fit(keyed):
    about = uploaded(keyed, "long.txt", TEXT.encode() * 80)
    reading = about["readings"]["tiny"]
    assert reading["state"] == "refused" and reading["tokens"] > material.CONTEXT
    made = keyed.http.post(f"/v1/documents/{about['id']}/ask", json={"question": "Why?"})
    error = made.json()["error"]
    assert made.status_code == 400 and error["code"] == "context_length_exceeded"
    assert f"{material.CONTEXT - 200:,} would fit" in error["message"]


def test_a_short_context_has_room_for_a_document_too(served_models, tmp_path):
    """The usual room, which is more than half of this context."""
    with material.live(tmp_path, {"tiny": served_models["tiny"]}, room=2 * material.CONTEXT) as server:
        first = uploaded(server, "book.txt", BOOK.encode())
        assert first["readings"]["tiny"]["state"] == "read"
        second = uploaded(server, "other.txt", TEXT.encode())
        both = {"documents": [first["id"], second["id"]], "question": "a", "max_tokens": 2}
        for reading in ("whole", "passages"):
            made = server.http.post("/v1/documents/ask", json=both | {"reading": reading, "question": "walk"})
            assert made.status_code == 200, made.text


@pytest.mark.promise("R35")
def test_a_document_of_another_owner_does_not_exist(keyed):
    number = uploaded(keyed, "mine.txt", BOOK.encode())["id"]
    bob = keyed.bob.http
    asked = {"model": "tiny", "document": number, "messages": [{"role": "user", "content": "a"}]}
    tries = [
        bob.get(f"/v1/documents/{number}"),
        bob.get(f"/v1/documents/{number}/text"),
        bob.get(f"/v1/documents/{number}/events"),
        bob.delete(f"/v1/documents/{number}"),
        bob.post(f"/v1/documents/{number}/read", json={"model": "tiny"}),
        bob.post(f"/v1/documents/{number}/ask", json={"question": "a"}),
        bob.post("/v1/chat/completions", json=asked),
        bob.post("/v1/count", json=asked),
    ]
    assert [made.status_code for made in tries] == [404] * len(tries)
    assert bob.get("/v1/documents").json()["data"] == []
    for payload in ("%2e%2e%2fx", "%2e%2e%2f%2e%2e", "doc-" + "0" * 24, "doc-" + "A" * 24, "a" * 64, "~", "doc-%00"):
        assert keyed.http.get(f"/v1/documents/{payload}").status_code in (404, 400), payload
    same = uploaded(keyed.bob, "his.txt", BOOK.encode())  # the same text is read anew for another owner
    assert same["readings"]["tiny"]["state"] == "read"
    first = ask(keyed.bob, same["id"], "What is the word?")["handscroll"]
    assert first["tokens"]["cached"] == first["document"]["from_reading"]
    keyed.bob.http.delete(f"/v1/documents/{same['id']}")


@pytest.mark.promise("R33")
def test_after_delete_no_byte_is_left(keyed):
    number = uploaded(keyed, "secret.txt", f"{CANARY}-deleted {BOOK}".encode())["id"]
    ask(keyed, number, "What is the word?")
    store = keyed.serving.settings.store
    kept = {file for file in store.rglob("*") if file.is_file()}
    assert any(f"{CANARY}-deleted".encode() in file.read_bytes() for file in kept)
    assert keyed.http.delete(f"/v1/documents/{number}").json()["deleted"] is True
    assert not [
        file for file in store.rglob("*") if file.is_file() and f"{CANARY}-deleted".encode() in file.read_bytes()
    ]
    assert not [file for file in store.rglob("*") if number in str(file)]
    assert keyed.http.get(f"/v1/documents/{number}").status_code == 404
    assert keyed.http.delete(f"/v1/documents/{number}").status_code == 404


def test_after_delete_no_token_is_left_though_another_document_begins_alike(keyed):
    rest = "Nothing of this part stands in the other document: nine old keys lie under the seventh stone."
    first = uploaded(keyed, "old.txt", f"{BOOK}{rest}".encode())["id"]
    second = uploaded(keyed, "new.txt", f"{BOOK}And this part is new.".encode())["id"]
    want = ask(keyed, second, "What is the word?")["choices"]
    ids = keyed.serving.models.find("tiny").loaded.encode(rest, special=False)[5:25]
    wanted, store = np.array(ids, dtype=np.int32).tobytes(), keyed.serving.settings.store

    def holding():
        return [file for file in store.rglob("*") if file.is_file() and wanted in file.read_bytes()]

    assert holding()
    assert keyed.http.delete(f"/v1/documents/{first}").json()["deleted"] is True
    assert not holding()
    assert ask(keyed, second, "What is the word?")["choices"] == want


def test_a_reading_that_is_deleted_on_the_way_stops_and_leaves_nothing(keyed, monkeypatch):
    monkeypatch.setattr(readings, "CHUNK", 4)
    made = keyed.http.post("/v1/documents", files={"file": ("way.txt", f"on the way {BOOK * 2}".encode())}).json()
    assert keyed.http.delete(f"/v1/documents/{made['id']}").status_code == 200
    assert keyed.serving.readings.waiting == 0
    store = keyed.serving.settings.store
    assert not [file for file in store.rglob("*") if file.is_file() and b"on the way" in file.read_bytes()]


@pytest.mark.parametrize("step", ["open", "document"])
def test_a_document_that_is_deleted_while_it_is_opened_stays_closed(keyed, step, monkeypatch):
    number = uploaded(keyed, "gone.txt", BOOK.encode())["id"]
    serving = keyed.serving
    entry, readings = next(one for one in serving.shelf.all() if one.number == number), serving.readings
    served, done = serving.models.all["tiny"], getattr(Store, step)

    def slow(self, *about):
        found = done(self, *about)
        keyed.http.delete(f"/v1/documents/{number}").raise_for_status()
        return found

    monkeypatch.setattr(Store, step, slow)
    with pytest.raises(ApiError) as it:
        readings.opened(entry, served)
    assert it.value.status_code == 404 and not [key for key in readings._opened if key[0] == number]


def test_a_reading_that_was_evicted_is_said_and_beside_others_its_text_is_read(keyed):
    number, other = (uploaded(keyed, name, f"{name} {BOOK}".encode())["id"] for name in ("gone.txt", "other.txt"))
    (entry,) = (one for one in keyed.serving.shelf.all() if one.number == number)
    store = keyed.serving.readings.store(entry.owner)
    evicted = next(part for name, (part, _) in store.names().items() if name.startswith(number))

    shutil.rmtree(store.folder / "parts" / evicted)
    both = {"documents": [number, other], "question": "a", "max_tokens": 2}
    made = keyed.http.post("/v1/documents/ask", json=both)
    assert made.status_code == 200, made.text
    told = {one["name"]: one for one in made.json()["handscroll"]["documents"]}
    assert told["gone.txt"]["from_reading"] == 0 and told["gone.txt"]["seen"] == told["gone.txt"]["tokens"]
    for _ in range(2):
        refused = keyed.http.post(f"/v1/documents/{number}/ask", json={"question": "a"})
        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (409, "not_read")
        assert f"POST /v1/documents/{number}/read" in error["message"] and "evicted" in error["message"]
    keyed.http.post(f"/v1/documents/{number}/read", json={"model": "tiny"})
    assert read(keyed, number)["readings"]["tiny"]["state"] == "read"


def test_a_document_that_the_disk_refuses_is_not_there(tmp_path, monkeypatch):
    made = Shelf(tmp_path, 9)

    def refuse(file, content):
        assert made.all() == []  # nobody sees what is half there
        if file.name == "about.json":
            raise CheckpointError("the disk is full")
        file.write_bytes(content)

    monkeypatch.setattr(shelf, "write_file", refuse)
    with pytest.raises(CheckpointError, match="full"):
        made.add("ann", "a.txt", Document("text", "a.txt"), ABOUT)
    assert made.all() == [] and not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_variables_of_a_template_are_refused_where_there_is_none(served_models, tmp_path):
    lm = handscroll.load(served_models["tiny"])
    del lm.tokenizer.settings["chat_template"]
    plain = Served("plain", ModelSource(name="plain", source=""))
    plain.lm, reading = lm, lm.read(TEXT, Store(tmp_path))
    entry = Shelf(tmp_path, 9).add("ann", "a.txt", Document(TEXT, "a.txt"), ABOUT)
    asked = (plain, entry, lambda: (reading, None), [ChatMessage(role="user", content="a")])
    assert document_prompt(*asked).ids
    with pytest.raises(ConfigError, match="'plain' has no chat template"):
        document_prompt(*asked, {"enable_thinking": True})


def test_it_is_there_after_a_restart_and_answers_at_once(served_models, tmp_path):
    models = {"tiny": served_models["tiny"]}
    with material.live(tmp_path, models, room=200) as server:
        number = uploaded(server, "book.txt", BOOK.encode())["id"]
        want = ask(server, number, "What is the word?")
    with material.live(tmp_path, models, room=200) as server:
        made = ask(server, number, "What is the word?")
        assert made["choices"][0]["message"] == want["choices"][0]["message"]
        assert made["handscroll"]["document"] == want["handscroll"]["document"]
        events = server.http.get(f"/v1/documents/{number}/events").text
        assert events.count("data: ") == 2 and events.endswith("data: [DONE]\n\n")
        assert server.http.get("/v1/documents").json()["data"][0]["name"] == "book.txt"


def test_a_reading_of_other_weights_is_said_and_read_again(served_models, tmp_path):
    other = handscroll.load(served_models["tiny"])
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.mul_(1.1)
    other.save(tmp_path / "other")
    with material.live(tmp_path / "store", {"tiny": served_models["tiny"]}, room=200) as server:
        number = uploaded(server, "book.txt", BOOK.encode())["id"]
        beside = uploaded(server, "beside.txt", TEXT.encode())["id"]
    with material.live(tmp_path / "store", {"tiny": tmp_path / "other"}, room=200) as server:
        both = {"documents": [number, beside], "question": "a", "max_tokens": 2}
        made = server.http.post("/v1/documents/ask", json=both).json()
        assert [one["from_reading"] for one in made["handscroll"]["documents"]] == [0, 0]
        for path, more in (("ask", {}), ("explain", {"answer": "walnut"}), ("ask", {})):
            made = server.http.post(f"/v1/documents/{number}/{path}", json={"question": "What is the word?"} | more)
            error = made.json()["error"]
            assert (made.status_code, error["code"]) == (409, "not_read"), made.text
            assert "read with other weights" in error["message"] and f"{number}/read" in error["message"]
        assert server.http.get(f"/v1/documents/{number}").json()["readings"]["tiny"]["state"] == "failed"
        refused = server.http.post(f"/v1/documents/{beside}/ask", json={"question": "a"})
        assert refused.status_code == 409 and "read with other weights" in refused.text
        server.http.post(f"/v1/documents/{number}/read", json={"model": "tiny"})
        assert read(server, number)["readings"]["tiny"]["state"] == "read"
        said = ask(server, number, "What is the word?")["choices"][0]["message"]["content"]
    with material.live(tmp_path / "store", {"tiny": served_models["tiny"]}, room=200) as server:
        about = server.http.get(f"/v1/documents/{beside}").json()  # nothing was written of weights that were tried
        assert about["readings"]["tiny"]["state"] == "read"
        assert ask(server, beside, "What?")["handscroll"]["document"]["from_reading"] > 0
    store = Store(tmp_path / "own")
    other.read(BOOK, store, "book", room=200)
    assert said == other.ask("book", "What is the word?", store, max_tokens=8)


def test_a_document_that_was_being_deleted_when_the_server_ended_does_not_come_back(served_models, tmp_path):
    models = {"tiny": served_models["tiny"]}
    with material.live(tmp_path, models, room=200) as server:
        number = uploaded(server, "book.txt", BOOK.encode())["id"]
        stays = uploaded(server, "stays.txt", TEXT.encode())["id"]
        (entry,) = (one for one in server.serving.shelf.all() if one.number == number)
        server.serving.shelf.hide(entry)
    with material.live(tmp_path, models, room=200) as server:
        assert [one["id"] for one in server.http.get("/v1/documents").json()["data"]] == [stays]
        assert ask(server, stays, "What?")["handscroll"]["document"]["from_reading"] > 0
    left = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert not [file for file in left if number in str(file) or CANARY.encode() in file.read_bytes()]


@pytest.mark.parametrize("ending", ["stop", "delete"])
def test_a_reading_that_was_stopped_waits_for_no_work_of_others(keyed, monkeypatch, ending):
    gave, worker = [], keyed.serving.worker

    def breathe(seconds):
        for progress in list(keyed.serving.readings._going.values()):
            (progress.halt if ending == "stop" else progress.stop).set()

    monkeypatch.setattr(worker, "breathe", breathe)
    monkeypatch.setattr(worker, "give_way", lambda: gave.append(1))
    number = keyed.http.post("/v1/documents", files={"file": ("stop.txt", f"{ending} {BOOK}".encode())}).json()["id"]
    keyed.until(lambda: keyed.serving.readings.waiting == 0)
    assert gave == []
    keyed.http.delete(f"/v1/documents/{number}").raise_for_status()


def test_a_reading_that_a_stop_interrupted_goes_on(served_models, tmp_path, monkeypatch):
    monkeypatch.setattr(readings, "CHUNK", 4)
    models = {"tiny": served_models["tiny"]}
    with material.live(tmp_path, models, room=200) as server:
        slow(server, monkeypatch)
        number = server.http.post("/v1/documents", files={"file": ("book.txt", BOOK.encode())}).json()["id"]
        server.until(lambda: "progress" in server.http.get(f"/v1/documents/{number}").json()["readings"]["tiny"])
        refused = server.http.post(f"/v1/documents/{number}/ask", json={"question": "a"})
        assert refused.status_code == 409 and "is being read" in refused.json()["error"]["message"]
    monkeypatch.undo()
    with material.live(tmp_path, models, room=200) as server:
        assert read(server, number)["readings"]["tiny"]["state"] == "read"
        ask(server, number, "What is the word?")


@pytest.mark.parametrize("name", ["another", "broken"])
def test_a_document_whose_model_does_not_come_back_is_stopped(served_models, tmp_path, name):
    """Its model is not served any more, or could not be loaded."""
    models = {"tiny": served_models["tiny"], "second": served_models["tiny"]}
    with material.live(tmp_path / "store", models, room=200) as server:
        number = uploaded(server, "book.txt", BOOK.encode())["id"]
        left(server, number, "second")
        left(server, number, "tiny")
    given = {"another": served_models["tiny"]} | ({"tiny": tmp_path / "broken"} if name == "broken" else {})
    with material.live(tmp_path / "store", given, room=200) as server:
        about = server.http.get(f"/v1/documents/{number}").json()
        assert {one["state"] for one in about["readings"].values()} == {"stopped"}
        assert server.http.get(f"/v1/documents/{number}/events").text.endswith("data: [DONE]\n\n")
        for model, status in (("tiny", 200), ("second", 200), ("third", 404)):
            assert server.http.post(f"/v1/documents/{number}/stop", json={"model": model}).status_code == status
    with material.live(tmp_path / "store", models, room=200) as server:
        about = server.http.get(f"/v1/documents/{number}").json()  # whoever comes back does not go on
        assert {one["state"] for one in about["readings"].values()} == {"stopped"}


def left(server, number: str, model: str) -> None:
    """What a server leaves that is killed while a document is read."""
    (entry,) = (one for one in server.serving.shelf.all() if one.number == number)
    entry.readings[model] = {"state": "reading", "tokens": 9}
    server.serving.shelf.save(entry)


def test_a_document_is_stopped_while_its_model_is_loaded(served_models, tmp_path, monkeypatch):
    models, made = {"tiny": served_models["tiny"]}, list[Readings]()
    with material.live(tmp_path, models, room=200) as server:
        number = uploaded(server, "book.txt", BOOK.encode())["id"]
        left(server, number, "tiny")
    begin, load = Readings.__init__, Models._make

    def beginning(self, *given):
        made.append(self)
        begin(self, *given)

    def loading(self, served):
        (entry,) = made[0]._shelf.all()
        assert made[0].progress(entry)["tiny"]["state"] == "reading"
        made[0].stop(entry, "tiny")
        load(self, served)

    monkeypatch.setattr(Readings, "__init__", beginning)
    monkeypatch.setattr(Models, "_make", loading)
    with material.live(tmp_path, models, room=200) as server:
        assert server.http.get(f"/v1/documents/{number}").json()["readings"]["tiny"]["state"] == "stopped"
        assert server.serving.readings.waiting == 0


def test_a_reading_that_fails_in_any_way_says_so(keyed, monkeypatch):
    def fail(*given):
        raise MemoryError

    monkeypatch.setattr(readings, "read", fail)
    made = uploaded(keyed, "large.txt", f"no memory {BOOK}".encode())
    assert made["readings"]["tiny"]["state"] == "failed" and "Memory" in made["readings"]["tiny"]["error"]


def slow(server, monkeypatch) -> None:
    """Let the thread that computes take its time between two chunks."""
    worker = server.serving.worker
    usual = worker.breathe
    monkeypatch.setattr(worker, "breathe", lambda seconds: (time.sleep(0.05), usual(seconds)))


def test_the_time_left_follows_a_cost_that_grows():
    chunks = [(at * 100, (at + 1) * 100, 1.0 + 0.1 * at) for at in range(10)]
    truth = sum(1.0 + 0.1 * at for at in range(10, 40))
    assert seconds_left(chunks, 4000) == pytest.approx(truth, rel=0.01)
    assert seconds_left([], 100) is None and seconds_left([], 100, 0.5) == 50.0
    assert seconds_left([(0, 10, 1.0)], 30) == pytest.approx(2.0)
    falling = [(0, 10, 3.0), (10, 20, 2.0), (20, 30, 1.0)]
    assert seconds_left(falling, 40) == pytest.approx(2.0)  # a cost never falls


def test_names_of_files_are_names():
    assert (
        name_of("C:\\a\\b.txt") == "b.txt" and name_of("/etc/passwd") == "passwd" and name_of("a/../") == "document.txt"
    )
    assert name_of("a\x00\nb.txt") == "ab.txt" and len(name_of("x" * 999)) == 200
    assert Path(name_of("..")).name in ("..", "document.txt")
