"""`handscroll scores`: labels, names and answers of texts on the command line."""

import pytest
import torch
from typer.testing import CliRunner

from handscroll.base.errors import ConfigError, DataError
from handscroll.cli.main import app
from handscroll.lm import load
from handscroll.models.weights import save_model
from tests.models.heads import PLAIN, WORDS, foreign_of

RUN = CliRunner()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """An encoder with a head of each kind."""
    root, form = tmp_path_factory.mktemp("heads"), PLAIN["bert"]
    more = {"reward": {"id2label": {"0": "REWARD"}}, "many": {"id2label": {str(n): f"l{n}" for n in range(9)}}}
    for name in ("text", "tokens", "answer", *more):
        foreign = foreign_of(form, "text" if name in more else name, **more.get(name, {}))
        save_model(form.build(torch.float32, foreign=foreign), root / name)
        (root / name / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return root


def shown(*arguments, **more):
    result = RUN.invoke(app, ["scores", *map(str, arguments)], **more)
    if result.exception is not None:
        raise result.exception
    return result.stdout.splitlines()


def test_labels_of_several_texts(folders, tmp_path):
    (tmp_path / "lines.txt").write_text("the cat\n\na dog\n", encoding="utf-8")
    head, *rows = shown(folders / "text", "b c", "-", "--file", tmp_path / "lines.txt", input="on a dog")
    assert head.split() == ["text", "good", "bad", "neither", "of"] and len(rows) == 4
    assert [row[:6].rstrip() for row in rows] == ["0", "1", "line 1", "line 3"] and rows[1].endswith("on a dog")
    want = load(folders / "text").classify(["b c"])[0].tolist()
    assert [float(value) for value in rows[0].split()[1:4]] == pytest.approx(want, abs=6e-4)
    head, row = shown(folders / "many", "b c")
    assert head.split()[:2] == ["likeliest", "labels"] and row.count("l") == 5


def test_texts_of_a_file_are_its_lines(folders, tmp_path):
    (tmp_path / "lines.txt").write_text("\nthe cat\fsat\u2028on\n\n \na dog\r\n", encoding="utf-8")
    _, *rows = shown(folders / "text", "--file", tmp_path / "lines.txt")
    assert [row.split()[:2] for row in rows] == [["line", "2"], ["line", "5"]]
    assert rows[0].endswith("the cat sat on")


def test_numbers_of_pairs(folders):
    _, row = shown(folders / "reward", "a dog", "--question", "the cat")
    assert float(row.split()[0]) == pytest.approx(
        float(load(folders / "reward").scores([("the cat", "a dog")])), abs=6e-4
    )


def test_names_and_answers(folders):
    head, *rows = shown(folders / "tokens", "the cat sat", "--tokens")
    assert head.split() == ["score", "label", "text", "from", "to"] and len(rows) == 3
    assert len(shown(folders / "tokens", "the cat sat")) <= 4
    _, row = shown(folders / "answer", "a dog sat on the cat", "--question", "the cat")
    assert row.split()[1] in "a dog sat on the cat"


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        (["text"], DataError, "no text"),
        (["answer", "a"], ConfigError, "--question"),
        (["tokens", "a", "--question", "b"], ConfigError, "--question"),
        (["text", "a", "--tokens"], ConfigError, "--tokens"),
    ],
)
def test_what_does_not_fit_the_head_is_refused(folders, arguments, error, told):
    with pytest.raises(error, match=told):
        shown(folders / arguments[0], *arguments[1:])
