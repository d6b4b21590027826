"""The haystack holds as much text as the longest length needs, and the command says where it ends."""

from typer.testing import CliRunner

from handscroll.cli.main import app
from handscroll.evaluate.haystack import haystack
from handscroll.text.tokenizer import Tokenizer
from tests.conftest import ROOT
from tests.evaluate.material import write_book


def test_a_length_beyond_the_limit_gets_text_enough(tmp_path):
    tokenizer, book = Tokenizer.load(ROOT / "handscroll" / "starter"), write_book(tmp_path / "book.txt")
    assert [len(haystack(tokenizer, [book], length, most=100)) for length in (50, 300)] == [100, 600]


def test_the_command_says_where_the_haystack_ends(tiny_folder, tmp_path, monkeypatch):
    book = write_book(tmp_path / "book.txt")
    run = ["evaluate", "needle", str(tiny_folder), "--lengths", "250", "--samples", "1", "--text", str(book)]
    count = len(haystack(Tokenizer.load(tiny_folder), [book], 250))
    for most in (count + 1, count, count - 1):
        monkeypatch.setattr("handscroll.evaluate.haystack.largest", lambda length, own=most: own)
        made = CliRunner().invoke(app, run)
        assert made.exit_code == 0, made.output
        assert (f"the haystack is the first {most:,} tokens" in made.output) == (most < count), made.output
