"""Cleaning does what was asked, nothing else, and counts the rows."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handscroll.base.errors import ConfigError, DataError
from handscroll.data.table.clean import Cleaning, clean, folded, without_html
from handscroll.data.table.duplicates import distinct_ids
from handscroll.data.table.read import read_table
from handscroll.data.table.table import Table
from handscroll.data.table.words import words
from tests.cli.material import run


def cleaned(texts, **how):
    table = clean(Table.of([{"text": text} for text in texts]), ["text"], Cleaning(**how))
    return [record.values["text"] for record in table], table.account


@pytest.mark.parametrize(
    ("how", "text", "new"),
    [
        ({"mojibake": True}, "schÃ¶n â€œso‘", "schön “so‘"),
        ({"unicode": "NFC"}, "e\u0301ｱ", "éｱ"),
        ({"unicode": "NFKC"}, "ｆｕｌｌ ﬁt", "full fit"),
        ({"control": True}, "a\x00b\x1b\u200bc\td\n", "abc\td\n"),
        ({"html": True}, "<p>one</p><p>two &amp; three</p>", "one\n\ntwo & three"),
        ({"html": True}, "a &lt; b &nbsp;c", "a < b \xa0c"),
        ({"html": True}, "<script>x <b>y", "x y"),
        ({"space": True}, "a \t b  \r\n\r\n\r\n\r\nc\u3000d ", "a b\n\nc d"),
    ],
)
def test_each_step(how, text, new):
    (found,), account = cleaned([text], **how)
    assert found == new and account.repaired[0].count == 1 and account.repaired[0].places == ("rows, row 1",)
    assert cleaned([text])[0] == [text]  # nothing is done unasked
    assert not cleaned([new], **how)[1].repaired


@pytest.mark.parametrize("text", ["if a < b and c > d", "List<int> x", "R&D & more", "1 <2> 3"])
def test_what_is_no_html_stays(text):
    assert without_html(text) == text


@given(st.text(max_size=40))
def test_folding_changes_blanks_only_and_is_finished(text):
    assert "".join(folded(text).split()) == "".join(text.split())
    assert folded(folded(text)) == folded(text)


def test_boilerplate_is_what_stands_in_many_rows():
    texts = [f"{word} text\nAll rights reserved by us" for word in ("one", "two", "three")]
    found, account = cleaned([*texts, "other\nwords here"], boilerplate=3)
    assert found == ["one text", "two text", "three text", "other\nwords here"]
    assert account.repaired[0].count == 3 and "'All rights reserved by us' in 3 rows" in str(account)
    assert cleaned(texts, boilerplate=4)[0] == texts
    with pytest.raises(ConfigError, match="2 or more"):
        Cleaning(boilerplate=1)


def test_what_does_not_change_is_not_counted():
    """Not a number is not equal to itself."""
    made = clean(Table.of([{"text": "plain", "score": math.nan}]), ["text"], Cleaning(html=True))
    assert not made.account.repaired and made.records[0].values["text"] == "plain"


def test_empty_texts_and_copies_are_left_out_and_counted():
    long = (
        "the quick brown fox jumps over the lazy dog and runs into the deep dark wood where nobody has ever been before"
    )
    texts = ["One  two", " ", "one two", long, long + " indeed", "three"]
    found, account = cleaned(texts, empty=True, copies=True, near=0.8)
    assert found == ["One  two", long, "three"]
    assert {one.reason: one.count for one in account.left_out} == {
        "empty texts": 1,
        "exact copies": 1,
        "near copies (from 0.8)": 1,
    }
    assert account.read == 6 and account.kept == 3
    assert cleaned(texts, copies=True)[0] == ["One  two", " ", long, long + " indeed", "three"]
    with pytest.raises(DataError, match="no row is left"):
        cleaned([" "], empty=True)
    kept = clean(Table.of([{"text": one} for one in (0, False, None, [], "a")]), ["text"], Cleaning(empty=True))
    assert [record.values["text"] for record in kept.records] == [0, False, "a"]


def test_ids_are_distinct_or_counted():
    table = Table.of([{"id": 1}, {"id": 2}, {"id": 1}, {"id": None}, {"id": None}])
    with pytest.raises(DataError, match="row 3 has the id 1 of rows, row 1"):
        distinct_ids(table)
    assert [record.number for record in distinct_ids(table, skip=True)] == [1, 2, 4, 5]


def test_a_table_tells_rows_that_share_an_id(tmp_path):
    lines = [{"id": 7, "text": "a"}, {"text": "b"}, {"id": "7", "text": "c"}, {"id": 7, "text": "d"}, {"text": "e"}]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    table = read_table(file)
    assert len(table) == 5
    [note] = table.account.notes
    assert note == f"rows with the id of an earlier row, which stay: 1 ({file}, row 4 has that of {file}, row 1)"
    made = clean(table, ["text"], Cleaning(ids="id"))
    assert [record.get("text") for record in made] == ["a", "b", "c", "e"]
    assert [(one.reason, one.count) for one in made.account.left_out] == [("rows with the id of an earlier row", 1)]


def test_rows_without_an_id_share_none_and_an_empty_row_takes_no_id(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("id,text\n,one\n ,two\n7,\n7,four\n7,five\n", encoding="utf-8")
    table = read_table(file)
    assert "which stay: 2 " in table.account.notes[0]
    made = clean(table, ["text"], Cleaning(empty=True, ids="id"))
    assert [record.get("text") for record in made] == ["one", "two", "four"]


def test_the_account_of_a_cleaning_goes_with_its_rows(tmp_path):
    given = tmp_path / "given.csv"
    given.write_text("id,text\n1,a  b\n1,a b\n2,\n3,c\n", encoding="utf-8")
    out = tmp_path / "clean" / "rows.jsonl"
    run("data", "clean", given, "--out", out, "--space", "--empty", "--ids", "id")
    told = json.loads((tmp_path / "clean" / "rows.jsonl.account.json").read_text(encoding="utf-8"))
    assert told["files"] == [str(given)] and told["cleaning"]["ids"] == "id"
    [note] = read_table(given).account.notes  # the account of another file is not told
    assert "which stay: 1" in note
    for place in (out, out.parent, out.parent / "*"):  # an account is no table
        [note] = read_table(place).account.notes
        assert note == (
            f"{out}: cleaned before, 4 rows read, 2 kept; empty texts: 1; rows with the id of an earlier row: 1; rows "
            "with blanks folded: 1"
        )
    out.write_text(out.read_text(encoding="utf-8") + '{"text": "more"}\n', encoding="utf-8")
    assert read_table(out).account.notes == (f"{out}: 2 rows were written and 3 are there; it was changed since",)
    (tmp_path / "clean" / "rows.jsonl.account.json").write_text("[]", encoding="utf-8")
    assert "the account of rows.jsonl cannot be read" in read_table(out).account.notes[0]


def test_words_with_and_without_stop_words():
    assert words("The cat, 我们的书", "english") == ["cat", "我", "们", "的", "书"]
    assert words("The cat", ["cat"]) == ["The"]
    with pytest.raises(ConfigError, match="did you mean 'english'"):
        words("x", "englisch")
    pytest.importorskip("jieba")
    assert words("我们的故事，很长", "chinese", jieba=True) == ["故事", "很长"]


def test_what_is_wrong_is_said():
    with pytest.raises(ConfigError, match="NFKC"):
        Cleaning(unicode="NFD")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no column 'txt'"):
        clean(Table.of([{"text": "x"}]), ["txt"], Cleaning())


def test_a_dotted_column_is_cleaned_inside_its_object():
    rows = [{"meta": {"text": "a  b", "other": "c  d"}, "said": [{"text": "e  f"}, {"who": "g  h"}]}, {"meta": {}}]
    made = clean(Table.of(rows), ["meta.text", "said.text"], Cleaning(space=True))
    assert made.records[0].values == {
        "meta": {"text": "a b", "other": "c  d"},
        "said": [{"text": "e f"}, {"who": "g  h"}],
    }
    assert made.records[1].values == {"meta": {}} and made.account.repaired[0].count == 1


@pytest.mark.parametrize("column", ["messages", "messages.content"])
def test_boilerplate_in_lists_of_messages_is_taken_out(column):
    rows = [{"messages": [{"role": "user", "content": f"{n}\nSent from my telephone"}]} for n in range(3)]
    made = clean(Table.of(rows), [column], Cleaning(boilerplate=3))
    assert [record.get("messages.content") for record in made] == [["0"], ["1"], ["2"]]
    assert made.account.repaired[0].count == 3
