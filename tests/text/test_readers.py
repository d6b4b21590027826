"""Readers: what comes in comes out exactly, and what cannot be read is refused with its place."""

import gzip
import json
from pathlib import Path

import pytest

from handscroll.base.errors import DataError
from handscroll.text.readers import Reader, read
from tests.naming import naming

CHINESE = "　　却说贾雨村授了应天府，一到任就有件人命官司详至案下，却是两家争买一婢，各不相让，以致殴伤人命。\r\n"
DATA = Path(__file__).parents[2] / "../shared/data"


def texts(*paths, **settings):
    return [document.text for document in read(paths, **settings)]


def test_rows_without_a_text_column_are_read_whole_where_that_is_asked_for(tmp_path, caplog):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (tmp_path / "a.csv").write_text("name,city\nAda,London\nGrace,\n")
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n{"name": "Ada", "of": ["x"], "old": null, "ok": true}\n')
    parquet.write_table(pyarrow.table({"name": ["Ada"], "age": [36]}), tmp_path / "c.parquet")
    whole = Reader(whole_rows=True)
    assert [document.text for document in whole.read(tmp_path / "a.csv")] == [
        "name: Ada\ncity: London",
        "name: Grace\ncity: ",
    ]
    assert "2 rows have no column named text or content" in caplog.text
    assert [document.text for document in whole.read(tmp_path / "b.jsonl")] == [
        "one",
        'name: Ada\nof: ["x"]\nold: \nok: true',
    ]
    assert [document.text for document in whole.read(tmp_path / "c.parquet")] == ["name: Ada\nage: 36"]
    for name in ("a.csv", "c.parquet"):
        with pytest.raises(DataError, match="neither 'text' nor 'content'"):
            texts(tmp_path / name)
        with pytest.raises(DataError, match="no key 'body'"):
            list(Reader("body", whole_rows=True).read(tmp_path / name))


def test_plain_text_is_exact(tmp_path):
    text = "\tOne\r\n\n two \x0c \u2028 三\U0001f600\u00e9 e\u0301 \ufeff inside\r"
    (tmp_path / "a.txt").write_bytes(text.encode())
    (tmp_path / "b.md.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "c.py").write_bytes(text.encode())
    assert texts(tmp_path) == [text] * 3


@pytest.mark.promise("R16")
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-16-be", "utf-32-be"])
def test_byte_order_marks(tmp_path, encoding):
    mark = "\ufeff" if encoding.endswith("be") else ""
    (tmp_path / "a.txt").write_bytes((mark + CHINESE).encode(encoding))
    assert texts(tmp_path / "a.txt") == [CHINESE]
    assert texts(tmp_path / "a.txt", encoding=encoding) == [CHINESE]


def test_gb18030_is_recognised_and_recorded(tmp_path):
    (tmp_path / "a.txt").write_bytes((CHINESE + "㐀 and 𠀀").encode("gb18030"))
    (document,) = read(tmp_path / "a.txt")
    assert document.text == CHINESE + "㐀 and 𠀀"
    assert document.metadata == {"encoding": "gb18030"}


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Über die Größe der Bäume läßt sich streiten", "cp1252"),
        ("Все люди рождаются свободными и равными", "cp1251"),
        ("すべての人間は、生まれながらにして自由であり", "shift_jis"),
        ("すべての人間は、生まれながらにして自由であり", "euc-jp"),
        ("모든 인간은 태어날 때부터 자유로우며", "euc-kr"),
        ("子曰：學而時習之，不亦說乎？有朋自遠方來，不亦樂乎？", "big5"),
    ],
)
def test_other_encodings_are_refused_then_read_by_name(tmp_path, text, encoding):
    data = text.encode(encoding)
    (tmp_path / "a.txt").write_bytes(b"plain, " + data)
    bad = next(i for i, byte in enumerate(b"plain, " + data) if byte > 127)
    with pytest.raises(DataError, match=naming("a.txt", f"0x{data[bad - 7]:02x}", f"offset {bad}")):
        texts(tmp_path / "a.txt")
    assert texts(tmp_path / "a.txt", encoding=encoding) == ["plain, " + text]


def test_every_chinese_book_is_recognised_as_gb18030(tmp_path):
    if not DATA.is_dir():
        pytest.skip("../shared/data is absent")
    for book in sorted((DATA / "text_zh").glob("*/*.txt")):
        text = book.read_text(encoding="utf-8")[:3000]
        (tmp_path / "a.txt").write_bytes(text.encode("gb18030"))
        assert texts(tmp_path / "a.txt") == [text], book


@pytest.mark.promise("R16")
@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"", r"a\.txt.*empty"),
        ("a.txt", b"\xef\xbb\xbf", "byte order mark"),
        ("a.txt", b"abc\0def", naming("NUL", "offset 3")),
        ("a.txt", b"\xff\xfea\0\0\0", "text file"),
        ("a.txt", b"\x89PNG\r\n\x1a\n\x93\x94", naming("0x89", "offset 0")),
        ("a.txt.gz", b"not gzip", "gzip"),
        ("a.txt.gz", gzip.compress(b"abc" * 999, mtime=0)[:-9], "gzip"),
        ("a.jsonl", b"\n\n", "empty"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', r"a\.jsonl:2: .*JSON"),
        ("a.jsonl", b'["x"]\n', naming("list", "object")),
        ("a.jsonl", b'{"body": "x"}\n', naming("'text'", "'content'", "body")),
        ("a.jsonl", b'{"text": ""}\n', naming("'text'", "empty")),
        ("a.jsonl", b'{"text": 3}\n', naming("'text'", "int")),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "surrogate"),
        ("a.jsonl", b'{"text": "\xe9"}\n', "offset 10"),
        ("a.html", b"<script>var a = 1; the rest", naming("<script>", "line 1")),
        ("a.html", b"<p> <style>p {}</style>", "visible"),
        ("a.csv", b"a,b\n", "no rows"),
        ("a.odt", b"a,b\n", naming("'.odt'")),
    ],
)
def test_refusals(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        texts(tmp_path / name)


def test_paths_are_checked_before_anything_is_read(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "empty").mkdir()
    for paths, message in [
        ([tmp_path / "a.txt", tmp_path / "none.txt"], r"none\.txt"),
        ([str(tmp_path / "*.rst")], naming("*.rst")),
        ([tmp_path / "empty"], "empty"),
        ([tmp_path, tmp_path / "a.txt"], "twice"),
        ([], "no files"),
    ]:
        with pytest.raises(DataError, match=message):
            read(paths)  # not iterated


def test_folders_are_sorted_and_skip_hidden_and_unknown(tmp_path):
    for name in ["b.txt", "a.txt", ".hidden.txt", "c.bin", "sub/d.md", ".git/e.txt"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert texts(tmp_path) == ["a.txt", "b.txt", "sub/d.md"]
    assert texts(str(tmp_path / "**/*.md"), str(tmp_path / "?.txt")) == ["sub/d.md", "a.txt", "b.txt"]


def test_json_lines_keep_metadata_and_odd_line_separators(tmp_path):
    records = [{"text": "one\u2028two\n", "id": 7}, {"content": "three"}]
    lines = "\n\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode("utf-8-sig")))
    first, second = read(tmp_path / "a.jsonl.gz")
    assert (first.text, first.metadata) == ("one\u2028two\n", {"id": 7})
    assert (second.text, second.source) == ("three", f"{tmp_path / 'a.jsonl.gz'}:3")
    (tmp_path / "b.jsonl").write_text('{"text": "x", "body": "y"}')
    assert texts(tmp_path / "b.jsonl", key="body") == ["y"]


def test_json_lines_stream(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "first"}\nbroken\n')
    documents = read(tmp_path / "a.jsonl")
    assert next(documents).text == "first"
    with pytest.raises(DataError, match=r":2"):
        next(documents)


def test_html_keeps_block_breaks_and_drops_what_is_not_text(tmp_path):
    page = """<!DOCTYPE html><html><head><title>A  title</title><style>p { color: red }</style>
    <script>if (a < b) document.write("<p>no</p>")</script></head><body><!-- no --><h1>Head</h1>
    <p>One&nbsp;&amp; <b>two</b>
    three<br>four</p><ul><li>x</li><li>y</li></ul><pre>  keep
      this</pre><table><tr><td>1</td><td>2</td></tr><tr><td>3</td></tr></table><script src="a"/>end</body></html>"""
    (tmp_path / "a.html").write_text(page, encoding="utf-8")
    (document,) = read(tmp_path / "a.html")
    assert document.text == ("Head\n\nOne\u00a0& two three\nfour\n\nx\ny\n\n  keep\n      this\n\n1\t2\n3\n\nend")
    assert document.metadata == {"title": "A title"}


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("<p>three <![CDATA[if (a < b) & c]]> end</p>", "three if (a < b) & c end"),
        ("<pre><![CDATA[a]] > b\n  c]]></pre>", "a]] > b\n  c"),
        ("<p>a<script>//<![CDATA[\nno <p>text\n//]]></script>b", "ab"),
        ("<p>a<![if IE]>b<![endif]>c", "abc"),
        ("<p>a <![odd[ x ]]> b <![1]> c", "a b c"),
    ],
)
def test_marked_sections_of_pages(tmp_path, page, text):
    (tmp_path / "a.html").write_text(page)
    assert texts(tmp_path / "a.html") == [text]


def test_html_obeys_its_declared_encoding(tmp_path):
    page = '<meta http-equiv="Content-Type" content="text/html; charset=gb2312"><p>红楼梦'
    (tmp_path / "a.htm").write_bytes(page.encode("gb18030"))
    assert texts(tmp_path / "a.htm") == ["红楼梦"]
    (tmp_path / "b.htm").write_bytes('<meta charset="iso-8859-1"><p>L’été'.encode("cp1252"))
    assert texts(tmp_path / "b.htm") == ["L’été"]


@pytest.mark.parametrize(
    ("label", "text", "encoding", "found"),
    [
        ("gb2312", "漢字 é", "utf-8-sig", "gb18030"),  # a byte order mark decides
        ("utf-8", "漢字 é", "utf-16", None),
        ("iso-8859-1", "L’été", "utf-8", "cp1252"),  # valid UTF-8 that a tool saved without a change of the label
        ("gbk", "红楼梦", "utf-8", "gb18030"),
        ("iso-8859-1", "L’été", "cp1252", None),
        ("gb2312", "什么", "gb18030", None),  # by chance also valid UTF-8
        ("gb2312", "是在", "gb18030", None),
        ("utf-16", "plain", "ascii", "utf-16"),  # a page whose label is read in ASCII is not in UTF-16
        ("utf-8", "漢字", "utf-8", None),
    ],
)
def test_a_byte_order_mark_and_valid_utf_8_stand_above_the_label_of_a_page(tmp_path, label, text, encoding, found):
    (tmp_path / "a.html").write_bytes(f'<meta charset="{label}"><p>{text}</p>'.encode(encoding))
    (document,) = read(tmp_path / "a.html")
    assert document.text == text and document.metadata.get("declared encoding") == found
