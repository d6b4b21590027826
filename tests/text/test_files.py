"""Several files: one that cannot be used is named, left out and counted, never silently; tables, labels, hard JSON."""

import gzip
import json

import pyarrow
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from handscroll.base.errors import DataError
from handscroll.cli.main import app
from handscroll.data.labelled import Columns, read_labelled
from handscroll.data.survey.survey import survey
from handscroll.report import render
from handscroll.report.corpus import corpus_page
from handscroll.text import files
from handscroll.text.parts import parts
from handscroll.text.readers import Reader, read
from tests.naming import naming

CHINESE = "他们说今天的天气很好，我们出去走走吧，因为这里没有什么事情可以做。"


def texts(*paths, **settings):
    return [document.text for document in Reader(**settings).read(paths)]


@pytest.fixture
def folder(tmp_path):
    contents = {"a.txt": b"good", "b.txt": b"", "c.jsonl": b'{"text": "one"}\n{"text": 1}\n', "d.md": b"caf\xe9"}
    contents |= {"e.pdf": b"no PDF", "f.txt": b"last", "g.png": b"x", "h.txt": b"%PDF-1.7"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_of_several_files_those_that_cannot_be_used_are_named_and_counted(folder, caplog):
    assert texts(folder) == ["good", "one", "last"]
    for name, reason in (("b.txt", "empty"), ("d.md", "UTF-8"), ("e.pdf", "not a PDF"), ("h.txt", "is a PDF")):
        assert any(name in line and reason in line for line in caplog.messages), name
    assert any("c.jsonl:2" in line and "1 documents before" in line for line in caplog.messages)
    assert any("5 files of" in line for line in caplog.messages) and any("1 .png" in line for line in caplog.messages)


def test_named_one_by_one_too_but_alone_it_is_an_error(folder, caplog):
    assert texts(folder / "a.txt", folder / "g.png", folder / "b.txt") == ["good"]
    assert any("g.png" in line for line in caplog.messages) and any(
        "in all: 2 files of 3" in line for line in caplog.messages
    )
    for name in ("b.txt", "c.jsonl", "d.md", "e.pdf", "g.png", "h.txt"):
        with pytest.raises(DataError, match=naming(name)):
            texts(folder / name)
    with pytest.raises(DataError, match=naming("none of the 2 files", "b.txt")):
        texts(folder / "b.txt", folder / "d.md")
    with pytest.raises(DataError, match=naming("missing.txt")):
        read([folder / "a.txt", folder / "missing.txt"])


def test_the_data_report_counts_what_it_left_out(folder):
    (folder / "i.txt").write_bytes(b"text " * 300_000 + b"\xff")  # the bad byte comes when some of it was counted
    corpus = survey(folder)
    assert (corpus.documents, corpus.files, len(corpus.skipped)) == (4, 4, 6)
    assert any("i.txt" in problem and "1500000" in problem for problem in corpus.skipped)
    page = render(corpus_page(corpus))
    assert "Left out" in page and "e.pdf" in page
    assert [part.source for part in parts(folder) if part.last][-1] == str(folder / "i.txt")


@pytest.mark.parametrize("count", [1, 2, 9, 10, 11, 100, 7000])
def test_the_data_report_takes_a_single_document_of_any_length(tmp_path, count):
    (tmp_path / "a.txt").write_text(("word " * 2000)[:count])
    corpus = survey(tmp_path)
    edges, counts = corpus.lengths.edges, corpus.lengths.counts
    assert sum(counts) == 1 and edges[0] <= count < edges[-1]
    render(corpus_page(corpus))


def test_tables_are_read_by_column(tmp_path, caplog):
    (tmp_path / "a.csv").write_bytes('\ufeffid,text\n1,"two\nlines, quoted ""so"""\n2,\n3,last'.encode())
    assert [(one.text, one.source[-7:], dict(one.metadata)) for one in read(tmp_path / "a.csv")] == [
        ('two\nlines, quoted "so"', "a.csv:3", {"id": "1"}),
        ("last", "a.csv:5", {"id": "3"}),
    ]
    assert any("1 rows without text" in line and "a.csv:4" in line for line in caplog.messages)
    (tmp_path / "b.tsv").write_bytes(f"id\tbody\n1\t{CHINESE}\n".encode("gb18030"))
    assert texts(tmp_path / "b.tsv", key="body") == [CHINESE]
    (tmp_path / "c.csv").write_text("id;text\n1;a, b\n")
    assert texts(tmp_path / "c.csv") == ["a, b"]
    (tmp_path / "d.csv.gz").write_bytes(gzip.compress(b"text\n" + b"x" * 200_000))
    assert texts(tmp_path / "d.csv.gz") == ["x" * 200_000]
    table = pyarrow.table({"id": list(range(5)), "body": ["a", "b", None, "", "e"]})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    assert texts(tmp_path / "a.parquet", key="body") == ["a", "b", "e"]
    assert any("2 rows without text" in line for line in caplog.messages)


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("a.csv", b"a,b\n1,2\n", ["'text'", "a, b", "--key"]),
        ("a.csv", b"text,text\n1,2\n", ["one name"]),
        ("a.csv", b"text,b\n1,2,3\n", ["a.csv:2", "3 cells"]),
        ("a.csv", b'text\n"open\n', ["a.csv:", "row of a table"]),
        ("a.parquet", b"PAR1 nothing", ["Parquet"]),
        ("a.parquet", b"", ["Parquet"]),
        ("a.jsonl", b'{"text": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", ["a.jsonl:1", "nested"]),
        ("a.jsonl", b'{"text": "a", "id": ' + b"9" * 5000 + b"}", ["a.jsonl:1", "digits"]),
        ("a.jsonl", b'{"text": "a", "text": "b"}', ["a.jsonl:1", "twice"]),
        ("a.txt.gz", gzip.compress(bytes(65 << 20).replace(b"\0", b" "), mtime=0), ["unpacks"]),
    ],
)
def test_refusals(tmp_path, monkeypatch, name, data, told):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=naming(*told)):
        texts(tmp_path / name)


@pytest.mark.parametrize(
    ("key", "line", "doubled"),
    [
        ("body", '{"body": "first", "body": "second"}', "'body'"),
        ("body", '{"body": "first", "b\\u006fdy": "second"}', "'body'"),
        (None, '{"text": "one", "id": 1, "id": 2}', "'id'"),  # other keys go into the metadata
        (None, '{"text": "one", "about": [{"page": 1, "page": 2}]}', "'page'"),
    ],
)
def test_no_key_of_a_line_may_come_twice(tmp_path, key, line, doubled):
    (tmp_path / "a.jsonl").write_text(line)
    with pytest.raises(DataError, match=naming("a.jsonl:1", doubled, "twice")):
        texts(tmp_path / "a.jsonl", key=key)


def test_a_column_of_numbers_or_none_is_refused(tmp_path):
    parquet.write_table(pyarrow.table({"id": [1], "text": [2.5]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=naming("a.parquet:1", "float")):
        texts(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=naming("'body'", "id, text")):
        texts(tmp_path / "a.parquet", key="body")


def test_json_lines_may_be_in_other_encodings(tmp_path):
    line = json.dumps({"text": CHINESE}, ensure_ascii=False) + "\n"
    for encoding in ("gb18030", "utf-16", "utf-8-sig"):
        (tmp_path / "a.jsonl").write_bytes((line * 2).encode(encoding))
        assert texts(tmp_path / "a.jsonl") == [CHINESE] * 2
    (tmp_path / "a.jsonl").write_bytes(line.encode("big5", errors="replace"))
    assert texts(tmp_path / "a.jsonl", encoding="big5")
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}\n' + b'{"text": "\xff"}\n')
    with pytest.raises(DataError, match=naming("a.jsonl", "0xff", "offset 27")):
        texts(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("a.jsonl", b'{"text": null, "label": 1}', ["a.jsonl:1", "null"]),
        ("a.jsonl", b'{"text": ["a"], "label": 1}', ["list"]),
        ("a.jsonl", b'{"text": "", "label": 1}', ["empty"]),
        ("a.jsonl", b'{"text": "x", "label": null}', ["label", "null"]),
        ("a.jsonl", b'{"text": "x", "label": 1.0}', ["label", "float"]),
        ("a.jsonl", b'{"text": "a \\ud83d", "label": 1}', ["surrogate"]),
        ("a.jsonl", b'{"text": "a"}', ["'label'", "text"]),
        ("a.tsv", "1\tdéjà vu".encode("latin-1"), ["a.tsv", "0xe9"]),
        ("a.tsv", b"\n", ["no labelled"]),
        ("a.pdf", b"", ["a.pdf", ".tsv"]),
    ],
)
def test_labelled_files_go_through_the_same_checks(tmp_path, name, data, told):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=naming(*told)):
        read_labelled(tmp_path / name, ["0", "1"])


def test_labelled_files_of_every_kind(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "x", "label": true}\n{"text": "y", "label": "false"}\n')
    documents, numbers = read_labelled(tmp_path / "a.jsonl", ["false", "true"])
    assert ([one.text for one in documents], numbers) == (["x", "y"], [1, 0])
    (tmp_path / "b.tsv").write_bytes(b"\xef\xbb\xbf1\ta\rb\r\n" + f"0\t{CHINESE}".encode())
    documents, numbers = read_labelled(tmp_path / "b.tsv", ["0", "1"])
    assert ([one.text for one in documents], numbers) == (["a\rb", CHINESE], [1, 0])
    parquet.write_table(pyarrow.table({"body": ["x"], "stars": [5]}), tmp_path / "c.parquet")
    (tmp_path / "d.csv").write_text("stars,body\n5,x\n")
    for name in ("c.parquet", "d.csv"):
        documents, numbers = read_labelled(tmp_path / name, ["1", "5"], Columns("body", "stars"))
        assert (documents[0].text, numbers) == ("x", [1])


def test_a_file_that_cannot_be_read_is_told_before_a_model_is_loaded(tmp_path):
    (tmp_path / "a.pdf").write_bytes(b"no PDF")
    file, none = str(tmp_path / "a.pdf"), str(tmp_path / "no model")
    for command in (
        ["read", none, file, "--save", "a"],
        ["evaluate", "perplexity", none, file, "--length", "8"],
        ["evaluate", "policies", none, file],
        ["demo", "--model", none, "--text", file, "--out", str(tmp_path / "out")],
    ):
        done = CliRunner().invoke(app, command)
        assert isinstance(done.exception, DataError) and "a.pdf" in str(done.exception), command
    missing = str(tmp_path / "b.pdf")
    for command in (
        ["extend", none, "--to", "8", "--text", missing, "--out", str(tmp_path / "out")],
        ["extend", none, "--to", "8", "--tune", missing, "--out", str(tmp_path / "out")],
        ["evaluate", "needle", none, "--lengths", "64", "--text", missing],
    ):
        done = CliRunner().invoke(app, command)
        assert isinstance(done.exception, DataError) and "b.pdf" in str(done.exception), command


VERBS = ["read", "demo", "extend", "tokenizer", "data report"]
VERBS += ["evaluate perplexity", "evaluate needle", "evaluate policies"]


@pytest.mark.parametrize("verb", VERBS)
def test_what_an_error_advises_is_an_option_of_every_verb_that_reads_files(verb):
    shown = CliRunner().invoke(app, [*verb.split(), "--help"], env={"COLUMNS": "200"}).output
    assert all(option in shown for option in ("--key", "--encoding", "--skip-pictures"))


def test_lines_are_the_same_wherever_blocks_end(tmp_path, monkeypatch):
    text = "一\r\n\n二三\u2028四\r五\n六"
    (tmp_path / "a.txt").write_bytes(text.encode())
    monkeypatch.setattr(files, "BLOCK", 3)
    got = list(files.lines(tmp_path / "a.txt", None))
    assert got == [(1, "一"), (2, ""), (3, "二三\u2028四\r五"), (4, "六")]
