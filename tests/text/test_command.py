"""`handscroll tokenizer` on real files."""

import pytest
import typer
from typer.testing import CliRunner

from handscroll.base.errors import ConfigError
from handscroll.cli.tokenizer import register
from handscroll.text.tokenizer import Tokenizer


@pytest.fixture
def run():
    app = typer.Typer()
    register(app)
    app.callback()(lambda: None)  # keeps the verb's name while it is the only one
    return lambda *words: CliRunner().invoke(app, ["tokenizer", *map(str, words)])


def test_trains_and_writes_a_folder(run, tmp_path):
    (tmp_path / "a.txt").write_text("one two three, one two three\n" * 9)
    result = run(tmp_path / "a.txt", "--vocab", 265, "--kind", "wordpiece", "--special", "<a>", "--out", tmp_path / "t")
    assert result.exit_code == 0, result.output
    assert "wordpiece tokenizer with 265 tokens from 1 documents (261 bytes)" in result.output
    assert Tokenizer.load(tmp_path / "t").token(264) == "<a>"
    again = run(tmp_path / "a.txt", "--out", tmp_path / "t")
    assert isinstance(again.exception, ConfigError) and str(tmp_path / "t") in str(again.exception)


def test_sentinels_take_the_last_ids_in_descending_order(run, tmp_path):
    (tmp_path / "a.txt").write_text("one two three, one two three\n" * 9)
    result = run(tmp_path / "a.txt", "--vocab", 265, "--special", "</s>", "--sentinels", 3, "--out", tmp_path / "t")
    assert result.exit_code == 0, result.output
    tokens = Tokenizer.load(tmp_path / "t").words[-4:]
    assert tokens == ["</s>", "<extra_id_2>", "<extra_id_1>", "<extra_id_0>"]


def test_wrong_settings_name_the_option(run, tmp_path):
    (tmp_path / "a.txt").write_text("one")
    result = run(tmp_path / "a.txt", "--kind", "bbpe", "--out", tmp_path / "t")
    assert isinstance(result.exception, ConfigError) and "kind" in str(result.exception)
