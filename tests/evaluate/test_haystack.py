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
    whole = CliRunner().invoke(app, run)
    assert whole.exit_code == 0 and "the haystack is the first" not in whole.output, whole.output
    monkeypatch.setattr("handscroll.evaluate.haystack.largest", lambda length, most=0: 400, raising=False)
    cut = CliRunner().invoke(app, run)
    assert cut.exit_code == 0 and "the haystack is the first 400 tokens" in cut.output, cut.output
