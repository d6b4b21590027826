"""Vectors of tokens of texts of any length, and the embedding score made of them."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import handscroll
from handscroll.base.errors import ConfigError, DataError
from handscroll.cli.main import app
from handscroll.evaluate.similarity import text_similarity, token_vectors
from handscroll.lm import LM
from handscroll.metrics.similarity import similarity
from handscroll.models.weights import save_model
from handscroll.nn.marks import Marks
from tests.conformance.families import FORMS
from tests.models.heads import PLAIN, WORDS

SHORT, LONG = "the cat sat on a dog .", "the cat sat on a dog , the dogs run on 猫 . " * 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("encoder")
    save_model(PLAIN["bert"].build(torch.float32), root)
    (root / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return root


@torch.no_grad()
def states(lm, ids):
    """The hidden states of one row, without those of [CLS] and [SEP]."""
    before, after = lm.tokenizer.frame()
    row = torch.tensor([[*before, *ids, *after]])
    marks = Marks.run(0, row.shape[1])
    return lm.model.hidden(lm.model.embed(row, marks), marks, lm.model.mask())[0, len(before) : -len(after)].numpy()


def test_a_short_text_is_read_in_one_row(folder):
    lm = handscroll.load(folder)
    ids = lm.tokenizer.encode(SHORT, special=False)
    np.testing.assert_allclose(token_vectors(lm, SHORT), states(lm, ids), atol=1e-5)
    assert token_vectors(lm, " ").shape == (0, lm.model.config.width)


def test_each_token_of_a_long_text_comes_from_the_window_where_it_has_most_around_it(folder):
    lm = handscroll.load(folder)
    ids = lm.tokenizer.encode(LONG, special=False)
    room = lm.model.config.context - 2
    assert len(ids) > 2 * room, "the text is longer than two windows"
    found = token_vectors(lm, LONG)
    assert len(found) == len(ids), "nothing is cut"
    overlap = lm.model.config.context // 2
    count = -(-(len(ids) - overlap) // (room - overlap))
    step = -(-(len(ids) - overlap) // count)
    starts = [n * step for n in range(count)]
    parts = [ids[first : first + step + overlap] for first in starts]
    windows = [states(lm, part) for part in parts]
    for token in range(len(ids)):
        around = [min(token - first, first + len(part) - 1 - token) for first, part in zip(starts, parts, strict=True)]
        best = int(np.argmax(around))
        np.testing.assert_allclose(found[token], windows[best][token - starts[best]], atol=1e-5)


def test_scores_of_texts_are_those_of_their_vectors(folder):
    lm = handscroll.load(folder)
    made = text_similarity(lm, [LONG, SHORT], [SHORT, SHORT])
    wanted = similarity(token_vectors(lm, LONG), token_vectors(lm, SHORT)).f1
    assert made.each is not None and made.each.tolist() == pytest.approx([wanted, 1.0], abs=1e-6)
    assert text_similarity(lm, [SHORT], [""]).value == 0
    with pytest.raises(DataError, match="the reference has no token"):
        text_similarity(lm, [""], [SHORT])


def test_on_the_command_line(folder, tmp_path):
    rows = [{"reference": SHORT, "prediction": SHORT}, {"reference": SHORT, "prediction": "a cat run"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    options = ["--metric", "embedding", "--encoder", str(folder)]
    result = CliRunner().invoke(app, ["metrics", str(tmp_path / "a.jsonl"), *options])
    value = text_similarity(handscroll.load(folder), [SHORT] * 2, [SHORT, "a cat run"]).value
    assert f"embedding  {value:.3f}" in result.stdout, result.exception


def test_a_causal_model_is_refused(folder):
    causal = LM(FORMS["llama"].build(torch.float32), handscroll.load(folder).tokenizer, "x")
    with pytest.raises(ConfigError, match="name an encoder"):
        token_vectors(causal, SHORT)
