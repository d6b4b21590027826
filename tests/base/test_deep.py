"""Files that break a parser by their depth or by one long number are refused like any other wrong file."""

import json

import pytest

from handscroll.base.config import read_recipe
from handscroll.base.errors import HandscrollError
from handscroll.cli.extend import _read_factors
from handscroll.data.sources import TokenSource
from handscroll.models.weights import read_json
from handscroll.text.tokenizer import Tokenizer


@pytest.mark.promise("R19")
@pytest.mark.parametrize("text", ["[" * 200_000 + "]" * 200_000, "9" * 5000], ids=["deep", "long"])
def test_no_parser_breaks(tmp_path, text):
    for name, content, read in (
        ("config.json", f'{{"a": {text}}}', read_json),
        ("recipe.toml", f"a = {text}", read_recipe),
        ("factors.json", f'{{"a": {text}}}', _read_factors),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(HandscrollError, match=name):
            read(tmp_path / name)
    for name, content, load in (("tokenizer.json", "{}", Tokenizer.load), ("index.json", text, TokenSource.load)):
        (tmp_path / name).write_text(content)
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"a": 1})[:-1] + f', "b": {text}}}')
        with pytest.raises(HandscrollError):
            load(tmp_path)
