"""`handscroll data look`, `clean` and `split`: what they print and write adds up."""

import json

import pytest
from typer.testing import CliRunner

from handscroll.base.errors import DataError
from handscroll.cli.main import app
from handscroll.data.table.read import read_table
from tests.cli.material import run

ROWS = [(f"text number {at} of many {at * 7}", "ab"[at % 2]) for at in range(40)] + [("Text number 1 of many 7", "a")]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_text("".join(f"{label}\t{text}\n" for text, label in ROWS))
    return path


def test_look_shows_rows_labels_copies_and_leakage(file):
    shown = run("data", "look", file, "--names", "label,text", "--test", file, "--rows", 1)
    for part in (
        "41 rows read, 41 kept, 0 left out",
        "row 1\n  label  a\n  text   text number 0 of many 0\n... and 40 more rows",
        "conversations: none (no question)",
        "labels by 'label': 2 (a 21, b 20)",
        '"text number 1 of many 7" is a and b',
        "by 'text': 1 exact copies",
        "41 of 41 test rows (100.0%) are in the training rows too",
    ):
        assert part in shown, shown
    run("data", "look", file, fails="does not look like names")
    run("data", "look", file, "--names", "label,text", "--map", "text", fails="FIELD=COLUMN")
    run("data", "look", file, "--names", "label,say", "--task", "classify", "--map", "text=say")
    run("data", "look", file, "--names", "stars,say", "--task", "classify", fails="no column for 'text'")


def test_split_writes_parts_that_add_up_and_overwrites_nothing(file, tmp_path):
    words = (
        "data",
        "split",
        file,
        "--names",
        "label,text",
        "--label",
        "label",
        "--test",
        0.2,
        "--out",
        tmp_path / "out",
    )
    shown = run(*words)
    parts = {name: read_table(tmp_path / "out" / f"{name}.jsonl") for name in ("train", "test")}
    assert sum(map(len, parts.values())) == 41 and f"test: {len(parts['test'])} rows" in shown
    record = json.loads((tmp_path / "out" / "split.json").read_text())
    assert record["rows"] == {name: len(part) for name, part in parts.items()} and record["account"]["read"] == 41
    run(*words, fails="nothing is overwritten")


def test_a_split_of_a_folder_is_split_again(file, tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("train", "test"):
        lines = "".join(f"text {name} {n},{n % 2}\n" for n in range(20))
        (tmp_path / "data" / f"{name}.csv").write_text(f"text,label\n{lines}")
    words = ("data", "split", tmp_path / "data", "--near", 1, "--out", tmp_path / "out")
    run(*words, fails="--split test")
    assert "20 rows read" in run(*words, "--split", "train")


def test_clean_does_what_is_asked(file, tmp_path):
    out = tmp_path / "clean.jsonl"
    shown = run("data", "clean", file, "--names", "label,text", "--copies", "--out", out)
    assert "41 rows read, 40 kept, 1 left out" in shown and len(read_table(out)) == 40
    run("data", "clean", file, "--names", "label,text", "--out", tmp_path / "b.jsonl", fails="nothing to do")
    run(
        "data",
        "clean",
        file,
        "--names",
        "label,text",
        "--space",
        "--out",
        tmp_path / "b.csv",
        fails="name the file .jsonl",
    )


def test_personal_data_is_masked_in_all_columns_unless_one_is_named(tmp_path):
    people = tmp_path / "people.csv"
    people.write_text("name,email,notes\nAnn,ann@b.org,write to  x@y.org whenever you like\n", encoding="utf-8")
    shown = run("data", "clean", people, "--personal", "--space", "--out", tmp_path / "all.jsonl")
    [row] = read_table(tmp_path / "all.jsonl")
    assert row.values == {"name": "Ann", "email": "[email]", "notes": "write to [email] whenever you like"}
    assert "masked in all columns: 2 email" in shown
    shown = run("data", "clean", people, "--personal", "--text", "notes", "--out", tmp_path / "one.jsonl")
    [row] = read_table(tmp_path / "one.jsonl")
    assert row.values["email"] == "ann@b.org" and "masked in 'notes': 1 email" in shown


def test_look_recognises_rows_as_the_task_does(tmp_path):
    talk = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
    pair = {"prompt": "hi", "chosen": "hello", "rejected": "no"}
    for task, row, said in (
        ("chat", {"conversations": talk}, "chat: recognised: ShareGPT (2 conversations)"),
        ("instruct", {"question": "hi", "answer": "hello"}, "instruct: recognised: question/answer (2 conversations)"),
        ("prefer", pair, "prefer: recognised: prompt/chosen/rejected (2 pairs)"),
    ):
        file = tmp_path / f"{task}.jsonl"
        file.write_text("\n".join(json.dumps(one) for one in (row, row, {"id": 1})), encoding="utf-8")
        shown = run("data", "look", file, "--task", task)
        assert said in shown and "not there" not in shown, shown
        assert "does not fit: rows of no known form" in shown and "row 3" in shown
    file.write_text('{"note": "hello there"}\n', encoding="utf-8")
    shown = CliRunner().invoke(app, ["data", "look", str(file), "--task", "chat"])
    assert isinstance(shown.exception, DataError) and "0 exact copies" in shown.stdout  # the rest is shown all the same
