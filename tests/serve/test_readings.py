"""Readings of documents where the disk refuses what is written of them, and where two requests meet at one reading."""

import threading

import pytest

from handscroll.base.errors import CheckpointError, ConfigError
from handscroll.cache.reading.store import Store
from handscroll.serve.documents.shelf import Shelf
from handscroll.serve.models import Models
from handscroll.serve.routes.documents import told
from tests.serve import material
from tests.serve.material import TEXT, read

FULL = "no space left on the disk"


@pytest.fixture(scope="module")
def live(served_models, tmp_path_factory):
    with material.live(tmp_path_factory.mktemp("readings"), {"tiny": served_models["tiny"]}, room=200) as made:
        yield made


def given(server, text: str = TEXT * 3):
    """A document that is read."""
    number = server.http.post("/v1/documents", files={"file": ("a.txt", text.encode())}).json()["id"]
    read(server, number)
    return next(one for one in server.serving.shelf.all() if one.number == number)


def refuse(*given):
    raise CheckpointError(FULL)


@pytest.mark.parametrize("state", ["waiting", "reading"])
def test_a_reading_whose_state_the_disk_refuses_fails_and_can_be_begun_again(live, monkeypatch, state):
    entry, save, refused = given(live), live.serving.shelf.save, []

    def full_once(one):
        if one.readings["tiny"]["state"] == state and not refused:
            refused.append(state)
            raise CheckpointError(FULL)
        save(one)

    monkeypatch.setattr(live.serving.shelf, "save", full_once)
    path = f"/v1/documents/{entry.number}"
    made = live.http.post(f"{path}/read", json={"model": "tiny"})
    assert made.status_code == 202 if state == "reading" else FULL in made.text, made.text
    live.until(lambda: refused and live.serving.readings.waiting == 0)
    found = live.http.get(path).json()["readings"]["tiny"]
    assert found["state"] == "failed" and FULL in found["error"] and "progress" not in found
    assert live.http.post(f"{path}/read", json={"model": "tiny"}).status_code == 202
    assert read(live, entry.number)["readings"]["tiny"]["state"] == "read"
    assert live.http.post(f"{path}/ask", json={"question": "a", "max_tokens": 2}).status_code == 200


def test_a_reading_ends_though_the_disk_refuses_to_note_it(live, monkeypatch):
    entry, save = given(live), live.serving.shelf.save

    def full_at_the_end(one):
        (save if live.serving.readings.waiting else refuse)(one)

    monkeypatch.setattr(live.serving.shelf, "save", full_at_the_end)
    live.http.post(f"/v1/documents/{entry.number}/read", json={"model": "tiny"}).raise_for_status()
    live.until(lambda: live.serving.readings.waiting == 0)
    assert read(live, entry.number)["readings"]["tiny"]["state"] == "read"


def test_a_disk_that_is_full_at_the_start_keeps_no_model_from_being_loaded(served_models, tmp_path, monkeypatch):
    models = {"tiny": served_models["tiny"], "second": served_models["tiny"]}
    with material.live(tmp_path, models, room=200) as server:
        entry = given(server)
        entry.readings["tiny"] = {"state": "reading", "tokens": 9}
        server.serving.shelf.save(entry)
    monkeypatch.setattr(Shelf, "save", refuse)
    with material.live(tmp_path, models, room=200) as server:
        found = server.http.get(f"/v1/documents/{entry.number}").json()["readings"]["tiny"]
        assert found["state"] == "failed" and FULL in found["error"]


def test_what_goes_wrong_once_a_model_is_loaded_keeps_no_other_from_being_loaded(served_models, tmp_path, monkeypatch):
    init = Models.__init__
    monkeypatch.setattr(Models, "__init__", lambda self, settings, worker, ready: init(self, settings, worker, refuse))
    with material.live(tmp_path, {"tiny": served_models["tiny"], "second": served_models["tiny"]}) as server:
        assert [one.state for one in server.serving.models.all.values()] == ["ready", "ready"]


@pytest.mark.parametrize("until", ["reading", "read"])
def test_a_late_word_that_a_reading_was_evicted_does_not_end_the_one_that_was_begun_meanwhile(live, monkeypatch, until):
    entry = given(live, f"Evicted and read again, {until}.\n{TEXT * 3}")
    store = live.serving.readings.store(entry.owner)
    for name in list(store.names()):
        store.forget(name)
    late, release, hold, said, named = *(threading.Event() for _ in range(3)), [], Store.named

    def hold_the_first(self, name):
        try:
            return named(self, name)
        except ConfigError:
            if not late.is_set():
                late.set()
                release.wait(60)
            raise

    path, question = f"/v1/documents/{entry.number}", {"question": "a", "max_tokens": 2}
    ask = threading.Thread(target=lambda: said.append(live.http.post(f"{path}/ask", json=question)))
    with monkeypatch.context() as patched:
        patched.setattr(Store, "named", hold_the_first)
        if until == "reading":
            patched.setattr(live.serving.worker, "breathe", lambda seconds: hold.wait(60))
        try:
            ask.start()
            live.until(late.is_set)
            live.http.post(f"{path}/read", json={"model": "tiny"}).raise_for_status()
            live.until(lambda: live.http.get(path).json()["readings"]["tiny"]["state"] == until)
            release.set()
            ask.join(60)
            assert live.http.get(path).json()["readings"]["tiny"]["state"] == until
        finally:
            release.set()
            hold.set()
    (made,) = said
    wanted = (200, None) if until == "read" else (409, "being_read")
    assert (made.status_code, made.json().get("error", {}).get("code")) == wanted, made.text
    assert read(live, entry.number)["readings"]["tiny"]["state"] == "read"


def test_what_is_said_of_a_document_is_copied_under_the_lock_of_its_readings(live):
    entry, lock = given(live), live.serving.readings._lock

    class Guarded(dict):
        def items(self):
            assert lock._is_owned()
            return super().items()

    entry.readings = Guarded(entry.readings)
    assert told(live.serving, entry)["readings"]["tiny"]["state"] == "read"
