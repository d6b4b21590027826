"""Names of saved readings and the documents beside them: kills, earlier layouts, damage, and what cannot be written."""

import errno
import json
import os
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from handscroll.base.errors import CheckpointError, ConfigError
from handscroll.cache.reading import names
from handscroll.cache.reading import store as module
from handscroll.cache.reading.reading import Document
from handscroll.cache.reading.store import Store
from handscroll.generate.read import ToRead, read
from tests.generate import readings
from tests.generate.readings import text
from tests.naming import naming

OLD, NEW = Document("the old and secret text", 1.0), Document("another text, as secret", 2.0)


@pytest.fixture
def lm(tiny_folder):
    return readings.roomy(tiny_folder)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "readings")


def texts(store):
    """Files of the store that hold some of the documents' text."""
    return [path.name for path in store.folder.rglob("*") if path.is_file() and b"secret" in path.read_bytes()]


def fails(code):
    def refuse(*_, **__):
        raise OSError(code, os.strerror(code))

    return refuse


def test_a_kill_while_a_name_is_moved_leaves_the_old_reading_or_the_new_one(store, monkeypatch):
    """Wherever it stops: the document is that of the part, and after `forget` no file holds either text."""
    given = {("1" * 32, 10): OLD, ("2" * 32, 20): NEW}
    seen = set()
    for stop in range(1, 12):
        store.name("book", "1" * 32, 10, OLD)
        dying = readings.dying(stop)
        with monkeypatch.context() as patch, suppress(SystemExit):
            for name in ("unlink", "replace"):
                patch.setattr(Path, name, dying(getattr(Path, name)))
            patch.setattr(os, "fsync", dying(os.fsync))
            store.name("book", "2" * 32, 20, NEW)
        found = store.names()["book"]
        assert store.document("book") == given[found]
        seen.add(found)
        store.forget("book")
        assert not texts(store) and not list((store.folder / "names").iterdir())
    assert len(seen) == 2


def test_a_kill_before_the_first_record_leaves_a_text_that_goes_with_the_next_work(store, monkeypatch):
    write = names.write_file

    def dying(path, content):
        if path.suffix == ".json":
            raise SystemExit
        write(path, content)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(names, "write_file", dying)
        store.name("book", "1" * 32, 10, OLD)
    assert len(texts(store)) == 1
    (store.folder / "names" / "book.json.tmp-99-0123abcd").write_bytes(b"secret")
    (store.folder / "names" / "b.tmp-1-a.json").write_text('{"number": "x", "length": 3}')  # a name as any other
    store.prune()
    assert not texts(store) and store.names() == {"b.tmp-1-a": ("x", 3)}


def test_names_of_earlier_versions_still_open(lm, store):
    ids = text(200)
    number = lm.read(ids, store).number
    folder = store.folder / "names"
    for name in ("book", "other"):
        (folder / f"{name}.json").write_text(json.dumps({"number": number, "length": 200, "when": 1.0}))
        (folder / f"{name}.txt").write_text(OLD.text)
    store.prune()
    assert store.document("book") == store.document("other") == OLD
    store.name("book", number, 200, NEW)
    assert store.document("book") == NEW and not (folder / "book.txt").exists()
    store.forget("book")
    assert texts(store) == ["other.txt"]
    store.forget("other")
    assert not texts(store)


def test_a_document_that_was_changed_is_found(store):
    store.name("book", "1" * 32, 10, OLD)
    (path,) = (store.folder / "names").glob("*.txt")
    path.write_text(NEW.text)
    with pytest.raises(CheckpointError, match="SHA-256"):
        store.document("book")
    path.unlink()
    with pytest.raises(CheckpointError, match="missing"):
        store.document("book")


def test_a_damaged_record_is_said_and_can_be_forgotten(store):
    """Its document goes with it; the names beside it stay."""
    store.name("book", "1" * 32, 10, OLD)
    store.name("other", "2" * 32, 20)
    (store.folder / "names" / "book.json").write_text('{"number": "11')
    with pytest.raises(CheckpointError, match="record of the reading 'book' is damaged"):
        store.named("book")
    with pytest.raises(ConfigError, match="no reading is named 'boot'"):
        store.forget("boot")
    store.forget("book")
    assert not texts(store) and list(store.names()) == ["other"]
    with pytest.raises(ConfigError, match="no reading is named 'book'"):
        store.named("book")


def test_a_name_that_gets_another_text_while_it_is_opened_gives_that_one(store, monkeypatch):
    store.name("book", "1" * 32, 10, OLD)
    found = names.Names._text

    def moved(self, name, value):
        path = found(self, name, value)
        monkeypatch.setattr(names.Names, "_text", found)
        store.name("book", "2" * 32, 12, NEW)
        return path

    monkeypatch.setattr(names.Names, "_text", moved)
    assert store.document("book") == NEW


def test_sweeping_looks_into_the_folder_once(store, monkeypatch):
    for number in range(3):
        store.name(f"book-{number}", str(number) * 32, 10, OLD)
    monkeypatch.setattr(Path, "glob", fails(errno.EIO))  # it would be asked once for each name
    names.Names(store.folder / "names").sweep()
    assert len(texts(store)) == 3


def test_a_store_that_cannot_be_made_is_refused_with_its_path():
    with pytest.raises(ConfigError, match=naming("/dev/null/x", "Not a directory", "--store")):
        Store("/dev/null/x")


def test_a_store_that_is_read_only_is_read(lm, store, monkeypatch):
    lm.read(text(200), store, "book")
    lm.read(text(200, seed=1), store, "broken")
    want = lm.ask("book", "?", store, max_tokens=5)
    number = store.names()["broken"][0]
    (store.folder / "parts" / number / "layer-000.bin").write_bytes(b"")
    refuse = fails(errno.EROFS)
    monkeypatch.setattr(Path, "touch", refuse)
    monkeypatch.setattr(module.FileLock, "acquire", refuse)
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert lm.ask("book", "?", store, max_tokens=5) == want
    with pytest.raises(CheckpointError, match="layer-000"):  # what is wrong, and not that nobody may mend it
        lm.ask("broken", "?", store)
    for work in (lambda: store.forget("book"), lambda: store.name("a", number, 9), store.prune):
        with pytest.raises(CheckpointError, match=naming(str(store.folder), "Read-only")):
            work()


def test_what_another_one_forgot_first_is_not_known(lm, store, monkeypatch):
    lm.read(text(200), store, "book")
    lock = Store._lock

    @contextmanager
    def late(self):
        monkeypatch.undo()
        Store(store.folder.parent).forget("book")
        with lock(self):
            yield

    monkeypatch.setattr(Store, "_lock", late)
    with pytest.raises(ConfigError, match="no reading is named 'book'"):
        store.forget("book")


def test_a_name_is_as_long_as_a_file_system_takes(lm, store):
    for name in ("红" * 66, "я" * 100, "x" * 100):
        store.name(name, "1" * 32, 10, OLD)
        assert store.document(name) == OLD
        store.forget(name)
    for name in ("红" * 90, "x" * 101, "红" * 65 + "x" * 6):
        with pytest.raises(ConfigError, match=naming("100", "200 bytes")):
            lm.read(text(200), store, name, on_read=lambda *_: pytest.fail("something was read"))
    with pytest.raises(ConfigError, match="200 bytes"):
        read(lm.model, lm.tokenizer, store, ToRead(lm._ids(text(200)), "", unfinished="红" * 65 + "x"))
