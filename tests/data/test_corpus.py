"""What a recipe excludes is left out, whatever the spelling, and a pattern that does nothing is refused or told."""

import os
import tomllib
from pathlib import Path

import pytest

from handscroll.base.errors import DataError
from handscroll.data.corpus import select, stdlib
from handscroll.evaluate.haystack import DEFAULT

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def books(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "b.txt", "more/a.txt", "more/c.txt"):
        path = tmp_path / "books" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "books"


def names(*given, **settings):
    return [path.as_posix() for path in select(*given, **settings)]


@pytest.mark.parametrize("name", ["longer", "starter"])
def test_recipes_leave_out_the_haystack_of_the_needles(name):
    text = tomllib.loads((RECIPES / f"{name}.toml").read_text(encoding="utf-8"))["text"]
    chosen = set(select(text["files"], text["exclude"]))
    assert len(chosen) > 100
    assert not chosen & {stdlib() / held_out for held_out in (*DEFAULT, "subprocess.py", "statistics.py")}


def test_the_fixed_part_of_a_glob_may_be_a_part_of_a_name(books):
    (books.parent / "before.txt").write_text("x")
    (books.parent / "efore.txt").write_text("x")
    assert names(["be*.txt"]) == ["before.txt"]
    assert names(["books/m*/a.txt"], include=["more/*"]) == ["books/more/a.txt"]


def test_a_whole_path_excludes_one_file_only(books):
    assert names(["books/**/*.txt"], [f"{books}/a.txt"]) == ["books/b.txt", "books/more/a.txt", "books/more/c.txt"]
    assert names(["books/**/*.txt"], include=[f"{books}/more/*"]) == ["books/more/a.txt", "books/more/c.txt"]


@pytest.mark.parametrize("folder", ["books", "books/"])
def test_patterns_are_relative_to_a_folder_with_and_without_a_slash(books, folder):
    assert names([folder], ["a.txt", "more/c.txt"]) == ["books/b.txt", "books/more/a.txt"]


@pytest.mark.parametrize("files", ["books", "books/", "./books", "books/**/*.txt"])
@pytest.mark.parametrize("exclude", ["books/a.txt", "./books/a.txt", "books/a*", "a.txt"])
def test_a_pattern_may_be_written_as_the_path_is(books, files, exclude):
    assert names([files], [exclude]) == ["books/b.txt", "books/more/a.txt", "books/more/c.txt"]
    assert names(["books/more/*.txt"], ["books/more/a.txt"]) == ["books/more/c.txt"]


def test_a_wildcard_stands_for_folders_below_the_fixed_part(books):
    assert names(["books"], ["*/a.txt"]) == ["books/a.txt", "books/b.txt", "books/more/c.txt"]


def test_what_one_glob_excludes_no_other_brings_back(books):
    assert names(["books/more/*.txt", "books/**/*.txt"], ["more/a.txt"]) == [
        "books/more/c.txt", "books/a.txt", "books/b.txt",
    ]  # fmt: skip


def test_a_file_in_two_spellings_is_taken_once(books):
    (books / "same.txt").symlink_to(books / "a.txt")
    given = ["books/a.txt", f"{books}/a.txt", "books/../books/a.txt", "books/*.txt"]
    assert names(given) == ["books/a.txt", "books/b.txt"]


def test_a_name_that_is_no_file_is_refused(books):
    with pytest.raises(DataError, match=r"exclude = 'z\.txt': no file .* has this name"):
        select(["books/*.txt"], ["a.txt", "z.txt"])
    with pytest.raises(DataError, match=r"exclude = '\{stdlib\}/nothing\.py'"):
        select(["{stdlib}/json/*.py"], ["{stdlib}/nothing.py"])
    with pytest.raises(DataError, match=r"include = 'old/\*': no file"):
        select(["books/*.txt"], include=["a.txt", "old/*"])


def test_a_pattern_that_excludes_nothing_is_told(books, caplog):
    assert len(select(["books/*.txt"], ["tests/*"])) == 2
    assert "exclude = 'tests/*' matches no file" in caplog.text


def test_folders_that_are_links_are_told(books, tmp_path, caplog):
    """Neither a folder nor ** enters them; a plain pattern looks into no folder."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "d.txt").write_text("d")
    (books / "linked").symlink_to(tmp_path / "elsewhere")
    for pattern in ("books", "books/**/*.txt"):
        caplog.clear()
        assert not any(name.endswith("d.txt") for name in names([pattern]))
        assert "folder books/linked is a link to another folder" in caplog.text, pattern
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "linked").symlink_to(tmp_path / "elsewhere")
    for pattern in ("books/*.txt", "b*/mo*/**/*.txt"):  # and what they do not enter is not looked through
        caplog.clear()
        assert names([pattern]) and not caplog.text


@pytest.mark.parametrize("pattern", ["*/**/*.txt", "b*/mo*/**/*.txt", "books/**/*.txt", "**/*.txt"])
def test_a_folder_that_a_pattern_finds_and_that_is_closed_is_told_at_any_depth(books, monkeypatch, caplog, pattern):
    opened = os.scandir

    def scandir(path="."):
        if os.fspath(path).rstrip("/").endswith("shut"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return opened(path)

    monkeypatch.setattr(os, "scandir", scandir)
    for folder in (books.parent / "shut", books / "more-shut", books / "more" / "shut"):
        folder.mkdir()
    assert "books/more/c.txt" in names([pattern]) and "shut cannot be opened (Permission denied)" in caplog.text
    for own in ("shut", "shut/**/*.txt"):
        with pytest.raises(DataError, match="folder shut cannot be opened"):
            select([own])
