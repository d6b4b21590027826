"""Lengthening what was lengthened before starts from what the model was trained with, through folders too."""

import copy
import json
import math

import numpy as np
import pytest
import torch
import transformers

import handscroll
from handscroll.base.errors import CapacityError, ConfigError
from handscroll.extend.extend import extension
from handscroll.extend.methods import apply, candidates
from handscroll.extend.tune import TuneSettings
from handscroll.lm import LM
from handscroll.models.bert import Bert, BertConfig
from handscroll.models.bloom import Bloom, BloomConfig
from handscroll.models.t5 import T5, T5Config
from tests.extend.material import TEXT
from tests.naming import naming


def saved(lm, folder):
    lm.save(folder)
    return handscroll.load(folder)


@pytest.mark.parametrize("method", ["pi", "yarn", "ntk", "none", "dynamic-ntk"])
def test_declared_first_then_scaled_is_scaled_at_once(method, tiny_folder, tmp_path):
    lm = handscroll.load(tiny_folder)
    first = saved(extension(lm, 128, "none").lm, tmp_path / "first")
    assert first.trained == 64
    twice = saved(extension(first, 256, method, text=TEXT, measured=256).lm, tmp_path / "twice")
    once = saved(extension(lm, 256, method, text=TEXT, measured=256).lm, tmp_path / "once")
    assert twice.model.config == once.model.config and twice.trained == 64
    assert twice.provenance["before"] == once.provenance["before"]


def test_a_larger_base_is_a_scaling_that_goes_on_from_the_first_base(tiny_folder, tmp_path):
    lm = handscroll.load(tiny_folder)
    first = saved(extension(lm, 128, "ntk", text=TEXT, measured=128).lm, tmp_path / "first")
    for refused in ("pi", "none", "yarn"):
        with pytest.raises(ConfigError, match="'ntk'"):
            extension(first, 256, refused)
    twice, once = (extension(one, 256, "ntk", text=TEXT, measured=256) for one in (first, lm))
    assert twice.lm.model.config == once.lm.model.config
    assert twice.outcome.goal.trained == 64


def test_what_was_tuned_has_learned_its_positions(tiny_folder, tmp_path):
    lm = handscroll.load(tiny_folder)
    tune = TuneSettings(files=(TEXT,), steps=2, rows=1)
    first = saved(extension(lm, 128, "none", tune=tune, folder=tmp_path / "run").lm, tmp_path / "first")
    assert first.provenance["exact_to"] == 0  # other weights: nothing is as it was
    twice = extension(first, 256, "pi")
    assert twice.lm.model.config.positions.scaling.factor == 2.0 and twice.lm.trained == 128


def test_yarn_keeps_the_strength_of_its_attention(tiny_folder, tmp_path):
    lm = handscroll.load(tiny_folder)
    for candidate in candidates(lm.model, "yarn", 128):
        model = copy.deepcopy(lm.model)
        apply(model, candidate)
        (longer,) = candidates(model, "yarn", 256)
        (same,) = [one for one in candidates(lm.model, "yarn", 256) if one.detail == candidate.detail]
        ours, theirs = (one.changes["positions"].scaling.model_dump() for one in (longer, same))
        assert ours == pytest.approx(theirs, abs=1e-4), candidate.detail


def t5(tokenizer):
    torch.manual_seed(0)
    sizes = {"width": 32, "encoder_layers": 1, "layers": 1, "heads": 2, "head_size": 16, "mlp_width": 32}
    return LM(T5(T5Config(vocab=tokenizer.vocab_size, start=0, context=128, **sizes)).eval(), tokenizer, "new")


@pytest.mark.parametrize("second", ["reach", "divide"])
@pytest.mark.parametrize("first", ["none", "reach", "divide"])
def test_buckets_are_stretched_once_in_all(first, second, tiny_folder, tmp_path):
    """Whatever came before, the distance from which on nothing changes grows as the context does: 128 to 600."""
    lm = t5(handscroll.load(tiny_folder).tokenizer)
    between = saved(extension(lm, 300, first).lm, tmp_path / "between")
    longer = saved(extension(between, 600, second).lm, tmp_path / "longer")
    config = longer.model.config
    assert config.reach * config.factor == pytest.approx(600, rel=0.01)
    assert config.context == 600 and config.trained == 128
    assert longer.provenance["read_by"] == ("handscroll only" if config.factor != 1.0 else "any library")


def test_buckets_tuned_at_their_length_are_those_trained_with(tiny_folder, tmp_path):
    lm = t5(handscroll.load(tiny_folder).tokenizer)
    between = saved(extension(lm, 256, "reach").lm, tmp_path / "between")
    between.provenance = {}  # what handscroll train writes says nothing of lengthening
    config = extension(between, 512, "divide").lm.model.config
    assert (config.reach, config.factor) == (256, 2.0)


@pytest.mark.parametrize("third", ["reach", "divide"])
@pytest.mark.parametrize("second", ["none", "reach", "divide"])
def test_buckets_lengthened_trained_and_lengthened_twice_more(second, third, tiny_folder, tmp_path):
    first = saved(extension(t5(handscroll.load(tiny_folder).tokenizer), 256, "reach").lm, tmp_path / "first")
    first.provenance = {}  # as handscroll train leaves it
    longer = saved(extension(first, 512, second).lm, tmp_path / "second")
    assert longer.trained == longer.model.config.trained == 256
    longest = extension(longer, 1024, third).lm
    assert longest.model.config.reach * longest.model.config.factor == 1024 and longest.trained == 256


@pytest.mark.parametrize(("method", "factor"), [("none", 4.0), ("pi", 4.0)])
def test_records_of_before_say_by_their_method(method, factor, tiny_folder, tmp_path):
    first = saved(extension(handscroll.load(tiny_folder), 128, method).lm, tmp_path / "first")
    del first.provenance["before"]
    longer = extension(first, 256, "pi").lm
    assert longer.model.config.positions.scaling.factor == factor and longer.trained == 64
    short = t5(first.tokenizer)
    short = extension(short, 256, "none").lm
    del short.provenance["before"]
    assert extension(short, 512, "divide").lm.model.config.factor == 4.0


def test_slopes_tuned_at_their_length_are_divided_by_what_is_new(tiny_folder, tmp_path):
    tokenizer = handscroll.load(tiny_folder).tokenizer
    config = BloomConfig(vocab=tokenizer.vocab_size, width=32, layers=1, heads=4, context=64)
    lm = LM(Bloom(config).eval(), tokenizer, "new")
    tune = TuneSettings(files=(TEXT,), steps=1, rows=1)
    longer = saved(extension(lm, 256, "none", tune=tune, folder=tmp_path / "run").lm, tmp_path / "longer")
    twice = extension(longer, 512, "slopes")
    assert twice.candidate.changes["factor"] == 2.0 and twice.lm.trained == 256 and twice.lm.model.config.trained == 256
    untuned = extension(
        extension(lm, 256, "slopes", text=TEXT, measured=256).lm, 512, "slopes", text=TEXT, measured=512
    )
    assert {row.candidate.changes["factor"] for row in untuned.outcome.rows} <= {2.0, 4.0, 8.0}


def test_what_stays_exact_of_a_scaled_checkpoint(tiny_folder):
    lm = handscroll.load(tiny_folder)
    first = next(one for one in candidates(lm.model, "self-extend", 128) if one.exact == 16)
    apply(lm.model, first)
    assert {one.exact for one in candidates(lm.model, "self-extend", 256)} == {16}
    lm = handscroll.load(tiny_folder)
    apply(lm.model, candidates(lm.model, "dynamic-ntk", 128)[0])
    assert candidates(lm.model, "dynamic-ntk", 256)[0].exact == 64


def test_slopes_that_only_we_divide_are_still_ours_under_auto(tiny_folder):
    tokenizer = handscroll.load(tiny_folder).tokenizer
    config = BloomConfig(vocab=tokenizer.vocab_size, width=32, layers=1, heads=4, context=64, factor=2.0)
    result = extension(LM(Bloom(config).eval(), tokenizer, "new"), 256, text=TEXT, measured=256)
    assert result.lm.provenance["read_by"] == "handscroll only"


def test_a_class_told_to_load_divided_slopes_refuses_them(tiny_folder, tmp_path):
    tokenizer = handscroll.load(tiny_folder).tokenizer
    config = BloomConfig(vocab=tokenizer.vocab_size, width=32, layers=1, heads=4, context=64)
    lm = LM(Bloom(config).eval(), tokenizer, "new")
    longer = saved(extension(lm, 256, "slopes", text=TEXT, measured=256).lm, tmp_path / "longer")
    assert longer.model.config.factor > 1
    with pytest.raises(Exception, match="n_head"):
        transformers.BloomForCausalLM.from_pretrained(tmp_path / "longer")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"to": 256.5}, "whole number"),
        ({"to": "256"}, "whole number"),
        ({"to": math.nan}, "whole number"),
        ({"method": None}, "method"),
        ({"to": 256.0}, "whole number"),
        ({"guard": math.nan}, naming("guard", "nan")),
        ({"guard": -1}, naming("guard", -1)),
        ({"measured": 0}, naming("measured", 0)),
    ],
)
def test_wrong_settings(settings, said, tiny_folder):
    with pytest.raises(ConfigError, match=said):
        extension(handscroll.load(tiny_folder), **{"to": 256, "method": "pi"} | settings)


@pytest.mark.parametrize("method", ["tile", "extrapolate"])
def test_a_table_that_memory_does_not_hold_is_refused(method, tiny_folder):
    tokenizer = handscroll.load(tiny_folder).tokenizer
    config = BertConfig(vocab=tokenizer.vocab_size, width=32, layers=1, heads=2, mlp_width=32, context=64)
    with pytest.raises(CapacityError, match="--to"):
        extension(LM(Bert(config), tokenizer, "new"), 10**12, method)


def test_the_record_of_a_folder_is_json(tiny_folder, tmp_path):
    extension(handscroll.load(tiny_folder), np.int64(128), "none").lm.save(tmp_path / "first")
    said = json.loads((tmp_path / "first" / "handscroll.json").read_text())
    assert said["before"]["base"] > 1 and said["trained"] == 64
