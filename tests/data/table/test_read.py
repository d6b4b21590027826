"""Reading tables: every kind of file gives the same rows, and every row is in the table or in its account."""

import csv
import gzip
import io
import json
import re
import zipfile

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from handscroll.base.errors import ConfigError, DataError
from handscroll.data.table.read import read_table

ROWS = [{"text": "good, really", "label": "yes"}, {"text": '坏 "very"', "label": "no"}]


def values(table):
    return [dict(record.values) for record in table]


def as_csv(rows, sign=","):
    out = io.StringIO()
    writer = csv.DictWriter(out, rows[0], delimiter=sign, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def json_lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def saved(folder, rows, names=("no", "yes")):
    """What `datasets` writes for one split, with a class whose numbers have names."""
    folder.mkdir(parents=True)
    features = {"info": {"features": {"label": {"names": list(names), "_type": "ClassLabel"}}}}
    numbers = [{**row, "label": names.index(row["label"])} for row in rows]
    table = pyarrow.Table.from_pylist(numbers).replace_schema_metadata({"huggingface": json.dumps(features)})
    with pyarrow.ipc.new_stream(str(folder / "data-00000-of-00001.arrow"), table.schema) as writer:
        writer.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    (folder / "dataset_info.json").write_text("{}")


def test_every_kind_of_file_gives_the_same_rows(tmp_path):
    texts = {
        "a.csv": as_csv(ROWS),
        "semicolons.csv": as_csv(ROWS, ";"),
        "a.tsv": as_csv(ROWS, "\t"),
        "a.jsonl": json_lines(ROWS),
        "a.json": json.dumps(ROWS),
        "data.json": json.dumps({"version": 1, "data": ROWS}),
        "lines.json": json_lines(ROWS),
    }
    files = []
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as packed:
            packed.writestr(name, text)
        files += [tmp_path / name, tmp_path / f"{name}.gz", tmp_path / f"{name}.zip"]
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    saved(tmp_path / "saved", ROWS)
    for file in [*files, tmp_path / "a.parquet", tmp_path / "saved"]:
        table = read_table(file)
        assert values(table) == ROWS, file
        assert table.columns == ("text", "label") and table.account.read == table.account.kept == 2
        assert [record.number for record in table] == [1, 2], file
    assert read_table(tmp_path / "a.csv").records[1].place == f"{tmp_path}/a.csv, row 2"


def test_encodings_are_those_of_the_readers(tmp_path):
    rows = [{"text": "这是一个很好的故事，我们都在看。", "label": "好"}]
    for encoding in ("utf-8-sig", "utf-16", "gb18030", "gbk"):
        (tmp_path / f"{encoding}.csv").write_bytes(as_csv(rows).encode(encoding))
        table = read_table(tmp_path / f"{encoding}.csv")
        assert values(table) == rows
        assert any("read as" in note for note in table.account.notes) == (encoding != "utf-8-sig")
    (tmp_path / "big5.csv").write_bytes(as_csv([{"text": "這是一個故事"}]).encode("big5"))
    assert values(read_table(tmp_path / "big5.csv", encoding="big5")) == [{"text": "這是一個故事"}]
    (tmp_path / "latin.csv").write_bytes("text\ncafé au lait\n".encode("cp1252"))
    with pytest.raises(DataError, match="name its encoding"):
        read_table(tmp_path / "latin.csv")


def test_files_without_names_are_asked_for_them(tmp_path):
    file = tmp_path / "a.tsv"
    file.write_text('1\tIt is "fine" .\n0\t"Never" again .\n')
    with pytest.raises(DataError, match="does not look like names"):
        read_table(file)
    table = read_table(file, names=("label", "text"))
    assert values(table)[1] == {"label": "0", "text": '"Never" again .'}
    assert "1 cells begin with a quote" in str(table.account)
    with pytest.raises(DataError, match="2 cells, but 3 columns"):
        read_table(file, names=("label", "text", "more"))
    file.write_text("good\tfine film\nbad\tdull\ngood\tlovely\ngood\tfun\n")
    with pytest.raises(DataError, match="its cells stand in 2 rows again"):
        read_table(file)
    file.write_text("1\tx\n")
    with pytest.raises(ConfigError, match="a name of its own"):
        read_table(file, names=("text", "text"))
    file.write_text("label\ttext\n1\tx\n")
    with pytest.raises(DataError, match="names the columns already"):
        read_table(file, names=("label", "text"))
    file.write_text("text\t2019\nfine\t1\n")
    with pytest.raises(DataError, match="if it does name them"):
        read_table(file)
    with pytest.raises(DataError, match=r"text \| 2019\) is read as a row"):
        read_table(file, names=("text", "year"))
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(ConfigError, match="own columns"):
        read_table(tmp_path / "a.jsonl", names=("text",))


def test_quotes_in_tsv_follow_the_file_or_the_user(tmp_path):
    file = tmp_path / "a.tsv"
    file.write_text('a\tb\n"x ""y"" z"\t1\nplain\t2\n')  # as pandas writes
    assert values(read_table(file))[0]["a"] == 'x "y" z'
    assert values(read_table(file, quotes=False))[0]["a"] == '"x ""y"" z"'
    file.write_text('a\tb\n"two\nlines"\t1\nplain\t2\n')
    assert values(read_table(file))[0]["a"] == "two\nlines"


def test_broken_lines_are_refused_by_number_or_counted(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n\n{"text": \n[1]\n{"text": "\\ud800"}\n{"text": "y"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:3: not valid JSON"):
        read_table(tmp_path / "a.jsonl")
    table = read_table(tmp_path / "a.jsonl", skip_broken=True)
    assert [record.values["text"] for record in table] == ["x", "y"]
    left = table.account.left_out[0]
    assert (left.count, left.places[0]) == (3, f"{tmp_path}/a.jsonl, line 3") and table.account.read == 5
    (tmp_path / "a.csv").write_text('text,label\nx,1\ny\n"z"!,2\nw,3\n')
    with pytest.raises(DataError, match=r"a\.csv:3: 1 cells, but 2 columns"):
        read_table(tmp_path / "a.csv")
    table = read_table(tmp_path / "a.csv", skip_broken=True)
    assert [record.values["text"] for record in table] == ["x", "w"] and table.account.left_out[0].count == 2
    (tmp_path / "a.json").write_text('[{"text": "x"},\n {"text": }]')
    with pytest.raises(DataError, match=r"a\.json:2"):
        read_table(tmp_path / "a.json", skip_broken=True)
    (tmp_path / "b.jsonl").write_text("{\n")
    with pytest.raises(DataError, match="no rows"):
        read_table(tmp_path / "b.jsonl", skip_broken=True)


def test_only_who_can_skip_broken_lines_is_told_so(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"text": \n')
    with pytest.raises(DataError, match="--skip-broken"):
        read_table(tmp_path / "a.jsonl", skip_broken=False)
    with pytest.raises(DataError, match=r"a\.jsonl:2") as without:
        read_table(tmp_path / "a.jsonl")
    assert "--skip" not in str(without.value)


def test_a_stray_quote_takes_its_own_line_alone(tmp_path):
    lines = [f"film {n},{'neg' if n % 2 else 'pos'}" for n in range(1, 101)]
    lines[9] = '"so bad a film,neg'
    lines[59] = 'he said "yes",pos'
    file = tmp_path / "a.csv"
    file.write_text("\n".join(["text,label", *lines]) + "\n")
    with pytest.raises(DataError, match=r"a\.csv:11: .*line 61"):
        read_table(file)
    table = read_table(file, skip_broken=True)
    [left] = table.account.left_out
    assert (len(table), left.count, left.places) == (99, 1, (f"{file}, line 11",))
    assert [one for one in table.account.notes if "line 11" in one and "line 61" in one]
    lines[59] = "he said yes"  # the file ends in the quotation
    file.write_text("\n".join(["text,label", *lines]) + "\n")
    assert read_table(file, skip_broken=True).account.left_out[0].count == 2
    lines[59] = 'the end",pos'  # the quotation ends well: a row of many lines, which is noted
    file.write_text("\n".join(["text,label", *lines]) + "\n")
    table = read_table(file)
    assert len(table) == 50 and "11 to 61" in table.account.notes[0]
    lines[59] = 'the end"'  # a row of one cell
    file.write_text("\n".join(["text,label", *lines]) + "\n")
    table = read_table(file, skip_broken=True)
    assert (len(table), table.account.left_out[0].count) == (49, 51)


def test_lines_may_end_in_carriage_returns(tmp_path):
    file = tmp_path / "a.csv"
    file.write_bytes(b"text,label\rgood,1\rbad,0\r")
    table = read_table(file)
    assert [record.values["text"] for record in table] == ["good", "bad"] and len(table.account.notes) == 1
    file.write_bytes(b"text,label\ngood,1\nso\rbad,0\n")
    with pytest.raises(DataError, match=r"a\.csv:3: .*carriage return"):
        read_table(file)


def test_a_line_of_a_million_characters_is_a_row(tmp_path):
    text = "x" * 1_200_000
    for name, content in (("a.csv", f"text\n{text}\n"), ("a.jsonl", json_lines([{"text": text}]))):
        (tmp_path / name).write_text(content)
        assert values(read_table(tmp_path / name)) == [{"text": text}]


def test_folders_keep_splits_apart(tmp_path):
    for split in ("train", "test"):
        saved(tmp_path / "saved" / split, [{"text": split, "label": "yes"}])
        (tmp_path / "files").mkdir(exist_ok=True)
        (tmp_path / "files" / f"my-{split}-0001.csv").write_text(f"text\n{split}\n")
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    (tmp_path / "files" / "notes.txt").write_text("x")
    for folder in ("saved", "files"):
        with pytest.raises(DataError, match="several splits"):
            read_table(tmp_path / folder)
        assert [row["text"] for row in values(read_table(tmp_path / folder, split="test"))] == ["test"]
        with pytest.raises(DataError, match="no split 'dev'"):
            read_table(tmp_path / folder, split="dev")
    assert "1 .txt" in str(read_table(tmp_path / "files", split="train").account)
    with pytest.raises(DataError, match="has no splits"):
        read_table(tmp_path / "files" / "my-test-0001.csv", split="test")


def test_several_files_are_one_table_that_says_where_they_differ(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\nx,1\n")
    (tmp_path / "b.jsonl").write_text('{"text": "y", "more": [1]}\n')
    turned = read_table([tmp_path / "b.jsonl", tmp_path / "a.csv"])
    assert [record.values["text"] for record in turned] == ["y", "x"]
    table = read_table([tmp_path / "a.csv", tmp_path / "b.jsonl"])
    assert table.columns == ("text", "label", "more") and "lack: label" in str(table.account)
    with pytest.raises(DataError, match="twice"):
        read_table([tmp_path / "a.csv", tmp_path / "a.csv"])
    with pytest.raises(DataError, match="is no kind of table"):
        read_table(__file__)


def test_objects_of_objects_and_questions_become_rows(tmp_path):
    (tmp_path / "a.json").write_text('{"7": {"text": "x"}, "8": {"text": "y"}}')
    assert values(read_table(tmp_path / "a.json")) == [{"id": "7", "text": "x"}, {"id": "8", "text": "y"}]
    answers = [{"text": "here", "answer_start": 0}, {"text": "gone", "answer_start": 1}]
    asked = {"id": "q", "question": "where?", "answers": answers}
    squad = {"data": [{"title": "t", "paragraphs": [{"context": "I am here", "qas": [asked]}]}]}
    (tmp_path / "b.json").write_text(json.dumps(squad))
    table = read_table(tmp_path / "b.json")
    assert values(table)[0]["answers"] == [{"text": "here", "answer_start": 5}, {"text": "gone", "answer_start": None}]
    assert table.columns == ("id", "title", "context", "question", "answers")
    assert [one.count for one in table.account.repaired] == [1, 1]
    assert table.records[0].get("answers.text") == ["here", "gone"]
    (tmp_path / "c.json").write_text('{"a": 1}')
    with pytest.raises(DataError, match="0 lists of objects"):
        read_table(tmp_path / "c.json")


@pytest.mark.parametrize("text", ["", "\n", "text,label\n", "text,text\na,b\n"])
def test_a_table_without_rows_is_an_error(tmp_path, text):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=re.escape(str(tmp_path))):
        read_table(tmp_path / "a.csv")


CELL = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0\r"), max_size=20)


@given(rows=st.lists(st.tuples(CELL, CELL), min_size=1, max_size=5))
def test_what_was_written_is_read(tmp_path_factory, rows):
    """Any cells, written by the csv module and as JSON lines, come back as they were."""
    folder = tmp_path_factory.mktemp("rows")
    given_rows = [dict(zip(("one", "two"), row, strict=True)) for row in rows]
    for name, text in (("a.csv", as_csv(given_rows)), ("a.jsonl", json_lines(given_rows))):
        (folder / name).write_text(text, encoding="utf-8", newline="")
        assert values(read_table(folder / name)) == given_rows
