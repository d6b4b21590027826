"""What the verbs print is what they were given: nothing is read as a code, and nothing is cut."""

import pytest

from handscroll.cli.options import say_weights
from handscroll.cli.screen import error_screen, screen, table
from handscroll.cli.train import Shown
from tests.cli.material import run

HOSTILE = ["l.jsonl:100: not JSON", "list[int]", "[/b] ends nothing", "a [red]word[/red]", "长卷" * 40, "x" * 300]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_is_printed_as_it_is(text, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    screen().print(text)
    error_screen().print(text)
    found = capsys.readouterr()
    assert found.out == found.err == f"{text}\n"


def test_a_table_keeps_every_cell_on_a_narrow_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    columns = ("name", "score", "text")
    screen().print(table(columns, [("a", 0.25, text) for text in HOSTILE] + [("b", 1234, "two\nlines")], "title [1]"))
    title, heads, *rows = capsys.readouterr().out.splitlines()
    assert title == "title [1]" and heads == "name  score  text"
    assert rows == [*(f"a     0.250  {text}" for text in HOSTILE), r"b     1,234  two\nlines"]


def test_wide_letters_keep_columns_in_line(capsys):
    screen().print(table(("word", "length"), [("长卷", 2), ("scroll", 10)]))
    assert capsys.readouterr().out == "word    length\n长卷         2\nscroll      10\n"


def test_labels_that_look_like_codes_are_shown(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "".join(f"words :100: number {n},[/b]\n" for n in range(9)), encoding="utf-8")
    said = run("data", "look", path)
    assert "[/b] 9" in said and "words :100: number 0" in said and "…" not in said


def test_only_rounded_weights_are_called_approximate(capsys):
    for weights in ("", "float", "int8", "int4"):
        say_weights(weights)
        assert ("approximate" in capsys.readouterr().err) == weights.startswith("int")


def test_progress_tells_the_score_where_the_objective_does():
    told = []
    shown = Shown(lambda done, note: told.append((done, note)))
    shown.record({"planned": 3, "loss": 0.5, "accuracy": 0.75, "validation_loss": 0.25})
    shown.record({"planned": 4, "loss": 0.5})
    assert told == [(3, "loss 0.5000 accuracy 0.75 validation 0.2500"), (4, "loss 0.5000")]
