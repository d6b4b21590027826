"""Position settings of foreign configurations: every published form, every contradiction, and the way back."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from handscroll.base.errors import ConfigError
from handscroll.models.positions import POSITION_KEYS, notes, read_positions, write_positions
from handscroll.nn.positions.rotary import Rotary
from handscroll.nn.scaling.base import Scaling
from handscroll.nn.scaling.dynamic import DynamicNTK
from handscroll.nn.scaling.llama3 import Llama3
from handscroll.nn.scaling.longrope import LongRoPE
from handscroll.nn.scaling.none import NoScaling
from handscroll.nn.scaling.pi import PositionInterpolation
from handscroll.nn.scaling.yarn import YaRN
from tests.naming import naming

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
LISTS = {"short_factor": [1.0, 1.0, 1.0, 1.0], "long_factor": [1.0, 2.0, 3.0, 4.0]}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
llama3 = Llama3(factor=8.0, original=8192, low_freq_factor=1.0, high_freq_factor=4.0)
yarn = YaRN(factor=4.0, original=2048)
longrope = LongRoPE(
    factor=32.0, original=4096, short_factor=tuple(LISTS["short_factor"]), long_factor=tuple(LISTS["long_factor"])
)


def positions(scaling: Scaling, context: int, trained: int, base: float = 10000.0) -> Rotary:
    return Rotary(base=base, scaling=scaling, context=context, trained=trained)


def old(maximum: int, **rope) -> dict:
    return {"max_position_embeddings": maximum, "rope_scaling": rope}


def new(maximum: int, **rope) -> dict:
    return {"max_position_embeddings": maximum, "rope_parameters": rope}


# --- forms that are read ---

FORMS = {
    "nothing but a length (Llama 1)": ({"max_position_embeddings": 2048}, positions(NoScaling(), 2048, 2048)),
    "old, null": (
        {"max_position_embeddings": 4096, "rope_theta": 500000.0, "rope_scaling": None},
        positions(NoScaling(), 4096, 4096, 500000.0),
    ),
    "old, empty": ({"max_position_embeddings": 64, "rope_scaling": {}}, positions(NoScaling(), 64, 64)),
    "theta is a whole number": (
        {"max_position_embeddings": 64, "rope_theta": 1000000},
        positions(NoScaling(), 64, 64, 1e6),
    ),
    "new, default": (
        new(64, rope_type="default", rope_theta=1e6),
        positions(NoScaling(), 64, 64, 1e6),
    ),
    "new, only theta": (new(64, rope_theta=1e6), positions(NoScaling(), 64, 64, 1e6)),
    "new, without theta": (new(64, rope_type="default"), positions(NoScaling(), 64, 64)),
    "new, theta at the top": (
        {"rope_theta": 1e6} | new(64, rope_type="default"),
        positions(NoScaling(), 64, 64, 1e6),
    ),
    "theta in both places, equal": (
        {"rope_theta": 10000} | new(64, rope_type="default", rope_theta=10000.0),
        positions(NoScaling(), 64, 64),
    ),
    "Phi-3, not extended": (
        {"max_position_embeddings": 4096, "original_max_position_embeddings": 4096, "rope_scaling": None},
        positions(NoScaling(), 4096, 4096),
    ),
    "whole rotation": (
        {"max_position_embeddings": 64, "partial_rotary_factor": 1.0},
        positions(NoScaling(), 64, 64),
    ),
    "linear, extended length": (
        old(16384, type="linear", factor=4.0),
        positions(PositionInterpolation(factor=4.0), 16384, 4096),
    ),
    "linear, factor does not divide": (
        old(4096, type="linear", factor=3),
        positions(PositionInterpolation(factor=3.0), 4096, 1365),
    ),
    "linear, original length named": (
        {"original_max_position_embeddings": 4096} | old(4096, type="linear", factor=4.0),
        positions(PositionInterpolation(factor=4.0), 16384, 4096),
    ),
    "dynamic": (
        old(4096, rope_type="dynamic", factor=2.0),
        positions(DynamicNTK(factor=2.0, original=4096), 8192, 4096),
    ),
    "dynamic, factor of a rounded length (3000 * factor is 3002.9999999999995)": (
        old(3000, rope_type="dynamic", factor=3003 / 3000),
        positions(DynamicNTK(factor=3003 / 3000, original=3000), 3003, 3000),
    ),
    "yarn, extended length": (old(8192, **YARN), positions(yarn, 8192, 2048)),
    "yarn, original length (Qwen's model card)": (old(2048, **YARN), positions(yarn, 8192, 2048)),
    "yarn, original at the top": (
        {"original_max_position_embeddings": 2048} | old(8192, type="yarn", factor=4.0),
        positions(yarn, 8192, 2048),
    ),
    "yarn, both spellings of the type": (old(8192, type="yarn", **YARN), positions(yarn, 8192, 2048)),
    "yarn, new, nulls": (
        new(8192, rope_theta=1e6, attention_factor=None, beta_fast=None, **YARN),
        positions(yarn, 8192, 2048, 1e6),
    ),
    "yarn, less than the recipe reaches (Qwen3)": (old(2560, **YARN), positions(yarn, 8192, 2048)),
    "yarn, one length": (old(2048, rope_type="yarn", factor=4.0), positions(yarn, 8192, 2048)),
    "yarn, no factor": (
        old(8192, rope_type="yarn", factor=None, original_max_position_embeddings=2048),
        positions(yarn, 8192, 2048),
    ),
    "yarn, a factor for servers": (old(8192, attn_factor=0.878, **YARN), positions(yarn, 8192, 2048)),
    "yarn, half of a pair": (old(8192, mscale=1.0, mscale_all_dim=0, **YARN), positions(yarn, 8192, 2048)),
    "llama3, one length": (
        old(8192, rope_type="llama3", **{key: LLAMA3[key] for key in list(LLAMA3)[:3]}),
        positions(llama3, 8192, 8192),
    ),
    "longrope, one length": (
        old(4096, rope_type="longrope", factor=32.0, **LISTS),
        positions(longrope, 131072, 4096),
    ),
    "linear, both lengths (Vicuna)": (
        old(4096, type="linear", factor=4.0) | {"max_sequence_length": 16384},
        positions(PositionInterpolation(factor=4.0), 16384, 4096),
    ),
    "off": (
        old(64, rope_type="default", factor=1.0, mrope_interleaved=False, finetuned=True),
        positions(NoScaling(), 64, 64),
    ),
    "yarn of its authors": (old(8192, finetuned=True, **YARN), positions(yarn, 8192, 2048)),
    "yarn, everything": (
        old(
            8192, beta_fast=16, beta_slow=2, truncate=False, mscale=0.7, mscale_all_dim=0.9, attention_factor=1, **YARN
        ),
        positions(
            YaRN(
                factor=4.0,
                original=2048,
                beta_fast=16.0,
                beta_slow=2.0,
                truncate=False,
                mscale=0.7,
                mscale_all_dim=0.9,
                attention_override=1.0,
            ),
            8192,
            2048,
        ),
    ),
    "yarn, factor of a rounded length": (
        old(100_000, rope_type="yarn", factor=100_000 / 32768, original_max_position_embeddings=32768),
        positions(YaRN(factor=100_000 / 32768, original=32768), 100_000, 32768),
    ),
    "llama3": (
        {"rope_theta": 500000.0} | old(131072, rope_type="llama3", **LLAMA3),
        positions(llama3, 131072, 8192, 500000.0),
    ),
    "longrope, Phi-3": (
        {"original_max_position_embeddings": 4096} | old(131072, type="su", **LISTS),
        positions(longrope, 131072, 4096),
    ),
    "longrope, new": (
        new(131072, rope_type="longrope", factor=32.0, original_max_position_embeddings=4096, **LISTS),
        positions(longrope, 131072, 4096),
    ),
    "both forms, equal": (
        old(8192, type="yarn", factor=4, original_max_position_embeddings=2048)
        | {"rope_theta": 1e6, "rope_parameters": YARN | {"rope_theta": 1e6}},
        positions(yarn, 8192, 2048, 1e6),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_reads(form):
    config, expected = FORMS[form]
    before = json.dumps(config)
    assert read_positions(config, 8) == expected
    assert json.dumps(config) == before


def test_a_family_may_have_its_own_base():
    assert read_positions({"max_position_embeddings": 64}, 8, default_base=2e6).base == 2e6


# --- what is refused ---

REFUSED = {
    "unknown type": (old(64, rope_type="yarm", factor=2.0), "'yarn'"),
    "unsupported type": (
        old(64, rope_type="mrope"),
        naming("'mrope'", "default", "dual-chunk", "dynamic"),
    ),
    "two types": (old(64, rope_type="yarn", type="linear", factor=2.0), naming("linear", "yarn")),
    "no type": (old(64, factor=2.0), "rope_type"),
    "not a table": ({"max_position_embeddings": 64, "rope_scaling": "yarn"}, "rope_scaling"),
    "unknown key": (old(8192, beta_fat=3, **YARN), naming("'beta_fat'", "'beta_fast'")),
    "key of another type": (old(64, rope_type="linear", factor=2.0, beta_fast=3), "'beta_fast'"),
    "default with a factor": (old(64, rope_type="default", factor=2.0), "'factor'"),
    "contradictory forms": (
        old(8192, **YARN) | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        "they differ",
    ),
    "contradictory forms, one number": (
        old(8192, **YARN) | {"rope_parameters": YARN | {"beta_fast": 16}},
        "they differ",
    ),
    "two thetas": ({"rope_theta": 1e4} | new(64, rope_type="default", rope_theta=1e6), "rope_theta"),
    "theta is text": ({"rope_theta": "1e4", "max_position_embeddings": 64}, naming("rope_theta", "'1e4'")),
    "theta is 1": ({"rope_theta": 1, "max_position_embeddings": 64}, "greater than 1"),
    "no factor": (old(64, rope_type="linear"), "factor"),
    "null factor": (old(64, rope_type="dynamic", factor=None), "factor"),
    "longrope without lists": (
        old(64, rope_type="longrope", factor=2.0, original_max_position_embeddings=32),
        naming("short_factor", "long_factor"),
    ),
    "factor below 1": (old(64, rope_type="linear", factor=0.5), "equal to 1"),
    "factor as text": (old(64, rope_type="linear", factor="4"), "number"),
    "truncate null": (old(8192, truncate=None, **YARN), "truncate.*boolean"),
    "factor against the lengths": (
        old(16384, **YARN),
        naming("config.json", "2048 x 4 = 8192", 16384, 8),
    ),
    "linear against the lengths": (
        {"original_max_position_embeddings": 1000} | old(4096, type="linear", factor=2.0),
        "lengths",
    ),
    "longrope against the lengths": (
        old(131072, rope_type="longrope", factor=16.0, original_max_position_embeddings=4096, **LISTS),
        "lengths",
    ),
    "two originals": (
        {"original_max_position_embeddings": 4096} | old(8192, **YARN),
        "original_max_position_embeddings",
    ),
    "original is a fraction": (old(8192, **YARN | {"original_max_position_embeddings": 2048.5}), "whole number"),
    "dynamic with another original": (
        {"original_max_position_embeddings": 2048} | old(8192, rope_type="dynamic", factor=4.0),
        "max_position_embeddings",
    ),
    "llama3 shorter than its original": (
        old(4096, rope_type="llama3", **LLAMA3),
        naming("max_position_embeddings", 4096),
    ),
    "longrope shorter than its original": (
        {"original_max_position_embeddings": 4096} | old(2048, type="su", **LISTS),
        "equal to 1",
    ),
    "no length": ({"rope_theta": 1e4}, naming("max_position_embeddings", None)),
    "length is text": ({"max_position_embeddings": "64"}, naming("max_position_embeddings", "'64'")),
    "partial rotation": ({"max_position_embeddings": 64, "partial_rotary_factor": 0.5}, "partial.* 0.5"),
    "partial rotation inside": (new(64, rope_type="default", partial_rotary_factor=0.75), "partial_rotary_factor"),
    "settings per layer type": (
        new(64, full_attention={"rope_type": "default"}, sliding_attention={"rope_type": "default"}),
        naming("full_attention", "sliding_attention"),
    ),
    "lists of another head": (
        {"original_max_position_embeddings": 4096} | old(131072, type="su", short_factor=[1.0], long_factor=[2.0]),
        naming(8, 4),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case):
    config, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        read_positions(config, 8)


def test_what_a_file_does_not_say_is_told():
    recipe = old(2560, attn_factor=0.878, mscale=1.0, **YARN)
    found = notes(recipe, read_positions(recipe, 8))
    assert found[0] == "2,560 tokens are stated; the factor 4 of 2,048 reaches 8,192"
    assert "attn_factor is not used" in found[1]
    assert "mscale_all_dim" in found[2]
    assert notes(old(8192, **YARN), positions(yarn, 8192, 2048)) == []
    assert "absent" in notes({}, positions(NoScaling(), 64, 64))[0]


def test_a_factor_for_servers_is_no_misspelling():
    with pytest.raises(ConfigError, match="'attn_factor'") as caught:
        read_positions(old(8192, rope_type="linear", factor=4.0, attn_factor=0.878), 8)
    assert "attention_factor" not in str(caught.value)


@pytest.mark.parametrize("missing", list(LLAMA3)[:3])
def test_llama3_needs_all_its_numbers(missing):
    rope = {key: value for key, value in LLAMA3.items() if key != missing}
    with pytest.raises(ConfigError, match=missing):
        read_positions(old(131072, rope_type="llama3", **rope), 8)


@pytest.mark.parametrize(
    ("scaling", "context", "trained", "message"),
    [
        (yarn, 8192, 4096, "equal"),
        (NoScaling(), 64, 128, "scaling"),
        (PositionInterpolation(factor=4.0), 8192, 4096, "lengths"),
        (DynamicNTK(factor=4.0, original=64), 255, 64, "lengths"),
    ],
)
def test_positions_must_agree_in_themselves(scaling, context, trained, message):
    values = {"base": 10000.0, "scaling": scaling, "context": context, "trained": trained}
    with pytest.raises(ConfigError, match=message):
        Rotary.parse(values, "test")


# --- the way back ---


@st.composite
def any_positions(draw) -> Rotary:
    kind = draw(st.sampled_from(["none", "pi", "dynamic-ntk", "yarn", "llama3", "longrope"]))
    trained = draw(st.integers(64, 32768))
    context = draw(st.integers(trained, 40 * trained))
    factor = context / trained
    scale = st.floats(0.1, 2.0)
    scaling: Scaling = NoScaling()
    if kind == "pi":
        scaling = PositionInterpolation(factor=factor)
    elif kind == "dynamic-ntk":
        scaling = DynamicNTK(factor=factor, original=trained)
    elif kind == "yarn":
        mscale, both = draw(st.tuples(scale, scale) | st.just((None, None)))
        scaling = YaRN(
            factor=factor,
            original=trained,
            beta_fast=draw(st.floats(8.0, 64.0)),
            truncate=draw(st.booleans()),
            mscale=mscale,
            mscale_all_dim=both,
            attention_override=draw(st.none() | scale),
        )
    elif kind == "llama3":
        scaling = Llama3(factor=draw(st.floats(1.0, 32.0)), original=trained, low_freq_factor=1.0, high_freq_factor=4.0)
    elif kind == "longrope":
        lists = st.tuples(*[st.floats(1.0, 64.0)] * 8)
        scaling = LongRoPE(factor=factor, original=trained, short_factor=draw(lists), long_factor=draw(lists))
    return positions(scaling, context, trained, draw(st.floats(5e3, 1e7)))


def save(folder, config: dict) -> dict:
    """A small Llama configuration with the given position keys, as it lies on disk."""
    plain = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "head_dim": 16}
    text = json.dumps(plain | config)
    (folder / "config.json").write_text(text, encoding="utf-8")
    return json.loads(text)


def frequencies_of(config, length: int | None) -> tuple[torch.Tensor, float]:
    rope = config.rope_parameters
    if rope["rope_type"] == "default":
        return 1.0 / rope["rope_theta"] ** (torch.arange(0, 16, 2, dtype=torch.float64) / 16), 1.0
    found, attention = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, seq_len=length)
    return found.to(torch.float64), attention


@settings(max_examples=80, deadline=None)
@given(start=any_positions())
def test_write_then_read_is_the_identity_and_the_reference_library_agrees(tmp_path_factory, start):
    folder = tmp_path_factory.mktemp("model")
    written = write_positions(start)
    assert set(written) <= set(POSITION_KEYS)
    assert read_positions(save(folder, written), 16) == start
    theirs = AutoConfig.from_pretrained(folder)
    for length in (None, 1, start.trained, start.trained + 1, start.context):
        expected, attention = frequencies_of(theirs, length)
        found = start.scaling.inverse_frequencies(16, start.base, length)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=0.0)
        assert start.scaling.attention_factor(length) == pytest.approx(attention, rel=1e-9)
    theirs.save_pretrained(folder)
    again = read_positions(json.loads((folder / "config.json").read_text(encoding="utf-8")), 16)
    # The library keeps top-level keys that it has no use for, so the trained length survives its own saving too.
    assert again == start


@pytest.mark.parametrize("form", FORMS)
def test_the_reference_library_reads_every_form_the_same(form, tmp_path):
    config, expected = FORMS[form]
    lists = {key: [*LISTS[key], *LISTS[key]] for key in LISTS}  # the folder's head has 8 pairs
    for key in ("rope_scaling", "rope_parameters"):
        if "short_factor" in (config.get(key) or {}):
            config = config | {key: config[key] | lists}
    found = read_positions(save(tmp_path, config), 16)
    assert (found.context, found.trained) == (expected.context, expected.trained)
    if (config.get("rope_scaling") or {}).get("type") == "su":  # the library no longer loads its own older name (5.23)
        save(tmp_path, config | {"rope_scaling": config["rope_scaling"] | {"type": "longrope"}})
    theirs = AutoConfig.from_pretrained(tmp_path)
    for length in (None, 1, found.trained + 1, found.context):
        frequencies, attention = frequencies_of(theirs, length)
        ours = found.scaling.inverse_frequencies(16, found.base, length)
        # The reference computes in float32; on a ramp a difference of large terms loses a few more bits.
        torch.testing.assert_close(ours, frequencies, rtol=1e-5, atol=0.0)
        assert found.scaling.attention_factor(length) == pytest.approx(attention, rel=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_survives_a_record_and_a_rewrite(form):
    expected = FORMS[form][1]
    assert Rotary.parse(expected.model_dump(mode="json"), "record") == expected
    assert read_positions(json.loads(json.dumps(write_positions(expected))), 8) == expected


def test_the_written_form_is_the_one_both_major_versions_read():
    assert write_positions(positions(yarn, 8192, 2048, 1e6)) == {
        "max_position_embeddings": 8192,
        "rope_theta": 1e6,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048},
    }
    assert write_positions(positions(DynamicNTK(factor=2.0, original=64), 128, 64)) == {
        "max_position_embeddings": 64,
        "rope_theta": 10000.0,
        "rope_scaling": {"rope_type": "dynamic", "factor": 2.0},
    }
    # Divided by 3, the written length gives the trained one only to the nearest token.
    assert write_positions(positions(PositionInterpolation(factor=3.0), 4097, 1365)) == {
        "max_position_embeddings": 4097,
        "rope_theta": 10000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 3.0},
        "original_max_position_embeddings": 1365,
    }
    # A changed base is a plain rope; the trained length stays on record.
    assert write_positions(positions(NoScaling(), 256, 64, 63496.0)) == {
        "max_position_embeddings": 256,
        "rope_theta": 63496.0,
        "rope_scaling": None,
        "original_max_position_embeddings": 64,
    }
