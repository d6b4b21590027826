"""What a path stands for: no file, folder or link in it is passed over without a word."""

import os
from pathlib import Path

import pytest

from handscroll.base.errors import DataError
from handscroll.data.survey.survey import survey
from handscroll.data.table.files import sources
from handscroll.data.table.table import Ledger
from handscroll.text.readers import Reader, files_of, read
from tests.naming import naming


def texts(*paths):
    return [document.text for document in Reader().read(paths)]


def told(caplog, *words):
    return any(all(word in line for word in words) for line in caplog.messages)


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    for name in ("a.txt", "sub/b.txt", "sub/deep/c.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


@pytest.fixture
def closed(monkeypatch):
    """Closes folders, for every user of the machine."""
    shut, opened = set[str](), os.scandir

    def scandir(path="."):
        if os.fspath(path).rstrip("/") in shut:
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return opened(path)

    monkeypatch.setattr(os, "scandir", scandir)
    return lambda folder: shut.add(str(folder))


def test_folders_that_cannot_be_opened_are_named(corpus, closed, caplog):
    closed(corpus / "sub" / "deep")
    for path in (corpus, corpus / "**", corpus / "**" / "*.txt"):
        caplog.clear()
        assert texts(path) == ["a.txt", "sub/b.txt"]
        assert [line for line in caplog.messages if str(corpus / "sub" / "deep") in line and "denied" in line], path
        assert len(caplog.messages) == 1
    with pytest.raises(DataError, match=naming("matches no file", "deep", "Permission denied")):
        read(corpus / "*" / "*" / "*.txt")
    assert any("deep" in problem for problem in survey(corpus).skipped)
    closed(corpus / "sub")
    with pytest.raises(DataError, match=naming("sub", "Permission denied")):
        read(corpus / "sub")
    (corpus / "a.txt").unlink()
    with pytest.raises(DataError, match=naming("no text files", "sub", "Permission denied")):
        read(corpus)


def test_linked_folders_are_named_and_not_entered(corpus, tmp_path, caplog):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "d.txt").write_text("d")
    (corpus / "more").symlink_to(tmp_path / "more")
    (corpus / "round").symlink_to(corpus)
    assert texts(corpus) == ["a.txt", "sub/b.txt", "sub/deep/c.txt"]
    assert told(caplog, "left out", str(corpus / "more"), "link") and told(caplog, str(corpus / "round"), "link")
    assert texts(corpus, corpus / "more")[-1] == "d"


def test_folders_that_a_pattern_matches_are_named(corpus, caplog):
    assert texts(corpus / "*") == ["a.txt"]
    assert told(caplog, "left out", str(corpus / "sub"), "matches the pattern")
    caplog.clear()
    assert len(texts(corpus / "**")) == 3 and not caplog.messages


def test_a_file_and_a_link_to_it_in_a_folder_are_read_once(corpus, caplog):
    (corpus / "latest.txt").symlink_to(corpus / "sub" / "b.txt")
    (corpus / "sub" / "again.txt").symlink_to("b.txt")
    for path in (corpus, corpus / "**"):
        caplog.clear()
        assert texts(path) == ["a.txt", "sub/b.txt", "sub/deep/c.txt"]
        assert told(caplog, "left out", "latest.txt", "b.txt") and told(caplog, "again.txt", "b.txt")
    (corpus / "sub" / "b.txt").unlink()
    (corpus / "sub" / "b.txt").symlink_to(corpus / "none.txt")
    assert texts(corpus) == ["a.txt", "sub/deep/c.txt"]  # what links to nothing is left out
    assert told(caplog, "left out", "latest.txt", "is a link to nothing")
    (corpus / "loop.txt").symlink_to("loop.txt")
    assert texts(corpus) == ["a.txt", "sub/deep/c.txt"] and told(caplog, "loop.txt", "is a link to nothing")


def test_what_is_no_file_is_named(corpus, caplog):
    os.mkfifo(corpus / "pipe.txt")
    assert len(texts(corpus)) == 3 and told(caplog, "left out", "pipe.txt", "pipe, socket")


def test_names_that_begin_like_a_home_folder_are_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("~$report.txt").write_text("text")
    assert texts("~$report.txt") == ["text"]
    with pytest.raises(DataError, match=naming("~$none.docx", "does not exist")):
        read("~$none.docx")
    with pytest.raises(DataError, match=naming("too long")):
        read("a" * 300)


def test_tables_name_what_they_did_not_enter(corpus, caplog):
    (corpus / "t.csv").write_text("text\nx\n")
    (corpus / "again.csv").symlink_to("t.csv")
    (corpus / "round").symlink_to(corpus)
    (corpus / "gone.csv").symlink_to("none.csv")
    step = Ledger()
    assert [source.path.name for source in sources(corpus, None, step)] == ["t.csv"]
    assert all(any(name in note for note in step.notes) for name in ("again.csv", "round", "gone.csv"))
    assert files_of(corpus)[0] == corpus / "a.txt"
