"""Documents in parts: the same text as read whole, whatever the encoding and wherever blocks end."""

import gzip
import json

import pytest

from handscroll.base.errors import DataError
from handscroll.text import files as module
from handscroll.text.parts import parts
from handscroll.text.readers import Reader, read
from handscroll.text.training import TokenizerConfig, train_tokenizer

ENGLISH = "It was a dark night; the café was — naïvely — open.\nNobody came, and nothing was said.\r\n" * 9
CHINESE = "他們說：你好，今天的天氣很好，我們出去走走吧。是的，他也在這裡，不過他不想說話。\n" * 9


@pytest.fixture
def small(monkeypatch):
    """Blocks of seven bytes: every character of several bytes is cut somewhere."""
    monkeypatch.setattr(module, "BLOCK", 7)


def joined(path, **settings):
    found: list[tuple[str, str]] = []
    text = ""
    for part in parts(path, Reader(encoding=settings.pop("encoding", None)), **settings):
        text += part.text
        if part.last:
            found.append((part.source, text))
            text = ""
    assert not text
    return found


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.txt", (ENGLISH + CHINESE).encode()),
        ("marked.txt", b"\xef\xbb\xbf" + ENGLISH.encode()),
        ("wide.txt", ENGLISH.encode("utf-16")),
        ("zipped.txt.gz", gzip.compress(CHINESE.encode(), mtime=0)),
        ("plain", b"no suffix, no line end"),
        ("page.html", b"<html><body><p>One</p><p>Two &amp; three</p></body></html>"),
        ("lines.jsonl", b"".join(json.dumps({"text": text}).encode() + b"\n" for text in (ENGLISH, CHINESE))),
    ],
)
def test_parts_make_the_documents(name, data, tmp_path, small):
    (tmp_path / name).write_bytes(data)
    for size in (1, 30, 10_000):
        got = joined(tmp_path, size=size) if "." in name else joined(tmp_path / name, size=size)
        assert got == [(document.source, document.text) for document in read(tmp_path / name)]


def test_chinese_without_a_mark_is_judged_by_the_first_block(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_bytes(CHINESE.encode("gb18030"))
    monkeypatch.setattr(module, "BLOCK", 91)
    assert joined(tmp_path)[0][1] == CHINESE
    (tmp_path / "a.txt").write_bytes(ENGLISH.encode("latin-1", errors="replace"))
    with pytest.raises(DataError, match="UTF-8"):
        joined(tmp_path)
    assert "café" in joined(tmp_path, encoding="latin-1")[0][1]
    with pytest.raises(DataError, match="encoding"):
        joined(tmp_path, encoding="latin-99")


def test_parts_have_the_tokens_of_the_whole(tmp_path):
    tokenizer = train_tokenizer([ENGLISH, CHINESE], TokenizerConfig(vocab=330))
    (tmp_path / "a.txt").write_text(ENGLISH + CHINESE, encoding="utf-8")
    text = next(read(tmp_path)).text
    ids = [number for part in parts(tmp_path, size=40) for number in tokenizer.encode(part.text, special=False)]
    assert ids == tokenizer.encode(text, special=False)
    assert sum(1 for _ in parts(tmp_path, size=40)) > 20


@pytest.mark.promise("R16")
def test_memory_is_bounded_and_a_first_part_comes_early(tmp_path, small, caplog):
    (tmp_path / "a.txt").write_text(ENGLISH * 50 + "x" * 5000, encoding="utf-8")
    (tmp_path / "b.txt").write_bytes(b"text " * 99 + b"\xff")
    found = list(parts(tmp_path / "a.txt", size=100))
    assert max(len(part.text) for part in found) <= 400
    stream = parts([tmp_path / "a.txt", tmp_path / "b.txt"], size=100)
    assert next(stream).text == found[0].text
    rest = list(stream)  # b.txt is named and left out after what was passed on
    told = "".join(part.text for part in rest if part.source.endswith("b.txt"))
    assert told and ("text " * 99).startswith(told) and rest[-1].last
    assert any("b.txt" in line and "offset 495" in line for line in caplog.messages)
    with pytest.raises(DataError, match=r"b.txt.*offset 495"):
        list(parts(tmp_path / "b.txt", size=100))


@pytest.mark.parametrize(
    ("data", "told"), [(b"", "empty"), (b"text\0text", "NUL"), (b"text " * 9 + b"\0", "NUL.* byte")]
)
def test_what_is_no_text_is_refused(data, told, tmp_path, small):
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(DataError, match=told):
        list(parts(tmp_path))
