"""Lengthening a T5: what changes, what stays, who can read the result."""

import json

import pytest
import torch
import transformers

from handscroll.base.errors import ConfigError
from handscroll.extend.extend import extension
from handscroll.extend.methods import apply, candidates
from handscroll.lm import LM
from handscroll.models.weights import load_model, save_model
from handscroll.nn.marks import Marks
from handscroll.text.training import TokenizerConfig, train_tokenizer
from tests.models.t5 import save, theirs_at, tokens


@pytest.fixture
def model(tmp_path):
    save("v1.1", tmp_path / "theirs")
    return load_model(tmp_path / "theirs")


def lengthened(model, method):
    (candidate,) = candidates(model, method, 2048)
    apply(model, candidate)
    return model.spec.positions[0].only_ours


def at(model, length):
    with torch.no_grad():
        return model(tokens(1, length), tokens(1, 9, 3))


def test_reach_leaves_short_text_as_it_was_and_other_libraries_read_it(model, tmp_path):
    short, long = at(model, 8), at(model, 300)
    assert not lengthened(model, "reach")
    assert model.config.reach == 512 and model.config.context == 2048 and model.config.trained == 512
    assert torch.equal(at(model, 8), short)  # of the encoder the buckets 0 .. 7 hold one distance each
    save_model(model, tmp_path / "ours")
    again = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "ours", dtype=torch.float32).eval()
    want = at(model, 300)
    assert (theirs_at(again, tokens(1, 300), tokens(1, 9, 3)) - want).abs().max() < 1e-5 * float(want.abs().max())
    assert (want - long).abs().max() > 1e-3


def test_divided_distances_are_those_of_a_text_read_with_gaps(model, tmp_path):
    """Four tokens apart and divided by four: as next to each other."""
    bias = model.source_bias()
    near = bias.values(Marks.run(0, 40), Marks.run(0, 40), torch.device("cpu"))
    assert lengthened(model, "divide")
    wide = model.source_bias().values(Marks.run(0, 160), Marks.run(0, 160), torch.device("cpu"))
    assert torch.equal(wide[:, :, ::4, ::4], near)
    save_model(model, tmp_path / "ours")
    again = load_model(tmp_path / "ours")
    assert again.config.factor == 4.0 and torch.equal(at(again, 50), at(model, 50))
    assert json.loads((tmp_path / "ours/config.json").read_text())["model_type"] == "t5-interpolated"
    with pytest.raises((ValueError, KeyError)):
        transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "ours")
    with pytest.raises(Exception, match="interpolated"):  # told to load it whatever its type
        transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "ours")


def test_none_changes_nothing_but_the_length(model):
    long = at(model, 700)
    assert not lengthened(model, "none")
    assert torch.equal(at(model, 700), long) and model.config.context == 2048


def test_the_factor_belongs_to_its_name(model, tmp_path):
    lengthened(model, "divide")
    save_model(model, tmp_path / "ours")
    path = tmp_path / "ours/config.json"
    path.write_text(path.read_text().replace("t5-interpolated", "t5"))
    with pytest.raises(ConfigError, match="relative_attention_factor"):
        load_model(tmp_path / "ours")


def test_what_would_be_measured_on_one_text_is_refused(model):
    tokenizer = train_tokenizer(["hello hello world " * 20], TokenizerConfig(vocab=266))
    lm = LM(model, tokenizer, "somewhere")
    for settings in ({}, {"method": "all"}, {"method": "reach", "text": "book.txt"}):
        with pytest.raises(ConfigError, match="method"):
            extension(lm, 2048, **settings)
    longer = extension(lm, 2048, "reach")
    assert longer.lm.context == 2048 and lm.context == 512 and longer.lm.provenance["read_by"] == "any library"
    assert longer.lm.provenance["exact_to"] == lm.model.config.buckets // 4
    with pytest.raises(ConfigError, match="relative"):
        extension(lm, 2048, "pi")
