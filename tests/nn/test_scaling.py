"""Scalings: properties that catch a formula written upside down, recorded numbers, and the reference library."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from handscroll.base.errors import ConfigError
from handscroll.base.tables import resolve
from handscroll.nn.scaling import SCALINGS, Scaling, scaling_from
from handscroll.nn.scaling.base import plain_frequencies
from handscroll.nn.scaling.dynamic import DynamicNTK
from handscroll.nn.scaling.llama3 import Llama3
from handscroll.nn.scaling.longrope import LongRoPE
from handscroll.nn.scaling.none import NoScaling
from handscroll.nn.scaling.ntk import ntk_base
from handscroll.nn.scaling.pi import PositionInterpolation
from handscroll.nn.scaling.yarn import YaRN
from tests.naming import naming

heads = st.integers(4, 128).map(lambda half: 2 * half)
bases = st.floats(5e3, 1e7)
factors = st.floats(1.01, 64.0)
originals = st.integers(1024, 16384)
light = settings(max_examples=60, deadline=None)


def make(name: str, factor: float, original: int, head_size: int) -> Scaling:
    """One scaling of each kind, with the fields that a caller has to give."""
    fields: dict = {"name": name, "factor": factor, "original": original}
    if name == "none":
        fields = {"name": name}
    if name == "pi":
        del fields["original"]
    if name == "llama3":
        fields |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    if name == "self-extend":
        fields |= {"window": original // 2, "group": math.ceil(2 * factor)}
    if name == "dual-chunk":
        fields |= {"chunk": original // 2}
    if name == "longrope":
        steps = [1.0 + (factor - 1.0) * i / (head_size // 2) for i in range(head_size // 2)]
        fields |= {"short_factor": [1.0] * (head_size // 2), "long_factor": steps}
    return scaling_from(fields)


def frequencies(scaling: Scaling, head_size: int, base: float, length: int | None = None) -> torch.Tensor:
    found = scaling.inverse_frequencies(head_size, base, length)
    assert found.dtype == torch.float64
    assert found.shape == (head_size // 2,)
    return found


def close(found: torch.Tensor, expected: torch.Tensor, rtol: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected, rtol=rtol, atol=0.0)


# --- the table ---


def test_every_row_is_a_scaling_that_knows_its_name():
    for name in SCALINGS:
        assert resolve(SCALINGS, name, "scaling").name == name


@pytest.mark.parametrize("name", SCALINGS)
def test_a_record_is_read_back_as_the_same_scaling(name):
    scaling = make(name, 4.0, 2048, 16)
    assert scaling.model_dump()["name"] == name
    assert scaling_from(scaling.model_dump(mode="json")) == scaling
    assert hash(scaling_from(scaling.model_dump())) == hash(scaling)


def test_errors_name_the_nearest():
    with pytest.raises(ConfigError, match="'yarn'"):
        scaling_from({"name": "yarm", "factor": 2.0})
    with pytest.raises(ConfigError, match="'factor'"):
        scaling_from({"name": "pi", "factr": 2.0})
    with pytest.raises(ConfigError, match="name"):
        scaling_from({"factor": 2.0})


# --- properties ---


@pytest.mark.parametrize("name", SCALINGS)
@light
@given(head_size=heads, base=bases, original=originals, length=st.none() | st.integers(1, 10**6))
def test_factor_one_is_the_identity(name, head_size, base, original, length):
    # Dynamic scaling by 1 still follows the length: base * (L / L0)^(d / (d - 2)); its identity is tested below.
    if name == "dynamic-ntk":
        length = None
    scaling = make(name, 1.0, original, head_size)
    close(frequencies(scaling, head_size, base, length), plain_frequencies(head_size, base))
    assert scaling.attention_factor(length) == 1.0


@pytest.mark.parametrize("name", [name for name in SCALINGS if name != "longrope"])
@light
@given(head_size=heads, base=bases, original=originals, factor=factors, stretch=st.floats(0.1, 64.0))
def test_frequencies_decrease_and_lie_between_plain_and_interpolated(name, head_size, base, original, factor, stretch):
    found = frequencies(make(name, factor, original, head_size), head_size, base, int(original * stretch))
    plain = plain_frequencies(head_size, base)
    assert (found.diff() < 0).all()
    assert (found <= plain * (1 + 1e-12)).all()
    if name != "dynamic-ntk":
        assert (found >= plain / factor * (1 - 1e-12)).all()


@light
@given(head_size=heads, base=bases, factor=factors)
def test_pi_divides_every_frequency(head_size, base, factor):
    found = frequencies(PositionInterpolation(factor=factor), head_size, base)
    close(found * factor, plain_frequencies(head_size, base))


@light
@given(head_size=heads, base=bases, factor=factors)
def test_ntk_keeps_the_highest_and_divides_the_lowest(head_size, base, factor):
    ratio = frequencies(NoScaling(), head_size, ntk_base(base, factor, head_size)) / plain_frequencies(head_size, base)
    assert ratio[0] == 1.0
    assert ratio[-1].item() == pytest.approx(1.0 / factor, rel=1e-9)
    assert (ratio.diff() < 0).all()


@light
@given(head_size=heads, base=bases, factor=factors, original=originals, truncate=st.booleans())
def test_yarn_ramp_is_not_upside_down(head_size, base, factor, original, truncate):
    scaling = YaRN(factor=factor, original=original, truncate=truncate)
    plain = plain_frequencies(head_size, base)
    ratio = frequencies(scaling, head_size, base) / plain
    turns = original * plain / (2.0 * math.pi)
    # Truncation widens the ramp to whole dimensions and so moves no dimension over either bound.
    kept, divided = turns > 32.0 * (1 + 1e-9), turns < 1.0 - 1e-9
    close(ratio[kept], torch.ones(int(kept.sum()), dtype=torch.float64))
    close(ratio[divided] * factor, torch.ones(int(divided.sum()), dtype=torch.float64))
    assert ratio[0] == 1.0
    assert (ratio.diff() <= 1e-12).all()


def test_yarn_example_keeps_the_first_and_divides_the_last():
    ratio = frequencies(YaRN(factor=4.0, original=4096), 128, 10000.0) / plain_frequencies(128, 10000.0)
    close(ratio[:20], torch.ones(20, dtype=torch.float64))  # 4096 / (2 pi) * 10000^(-40/128) = 36.7 turns, above 32
    close(ratio[46:] * 4.0, torch.ones(18, dtype=torch.float64))  # 0.87 turns at dimension 46, below 1
    assert ((ratio[22:44] < 1.0) & (ratio[22:44] > 0.25)).all()


def test_yarn_attention_factor():
    assert YaRN(factor=4.0, original=2048).attention_factor(None) == pytest.approx(1.1386294361119891)  # 0.1 ln 4 + 1
    both = YaRN(factor=40.0, original=4096, mscale=0.707, mscale_all_dim=1.0)
    assert both.attention_factor(None) == pytest.approx(0.92104235531633989)
    assert YaRN(factor=4.0, original=2048, attention_override=0.5).attention_factor(10) == 0.5


@light
@given(head_size=heads, base=bases, factor=factors, original=originals)
def test_llama3_bands(head_size, base, factor, original):
    plain = plain_frequencies(head_size, base)
    ratio = frequencies(make("llama3", factor, original, head_size), head_size, base) / plain
    wavelength = 2.0 * math.pi / plain
    high, low = wavelength < original / 4.0, wavelength > original
    assert (ratio[high] == 1.0).all()
    close(ratio[low] * factor, torch.ones(int(low.sum()), dtype=torch.float64))
    assert ((ratio >= 1.0 / factor - 1e-12) & (ratio <= 1.0)).all()


def test_longrope_picks_the_list_by_length():
    scaling = LongRoPE(factor=4.0, original=1000, short_factor=(1.0, 2.0), long_factor=(3.0, 5.0))
    plain = torch.tensor([1.0, 0.1], dtype=torch.float64)
    for length in (None, 1, 1000):
        close(frequencies(scaling, 4, 100.0, length), plain / torch.tensor([1.0, 2.0]))
        assert scaling.bucket(length) == 0
    for length in (1001, 10**6):
        close(frequencies(scaling, 4, 100.0, length), plain / torch.tensor([3.0, 5.0]))
        assert scaling.bucket(length) == 1
    assert scaling.attention_factor(1) == scaling.attention_factor(2000)


@light
@given(head_size=heads, base=bases, factor=st.floats(1.0, 64.0), original=originals)
def test_dynamic_is_continuous_at_the_original_and_grows_with_length(head_size, base, factor, original):
    scaling = DynamicNTK(factor=factor, original=original)
    plain = plain_frequencies(head_size, base)
    for length in (None, 1, original):
        assert torch.equal(frequencies(scaling, head_size, base, length), plain)
    close(frequencies(scaling, head_size, base, original + 1), plain, rtol=1.01 * factor / original)
    lowest = [frequencies(scaling, head_size, base, original * n)[-1] for n in (1, 2, 3, 9)]
    assert lowest == sorted(lowest, reverse=True)
    assert len(set(map(float, lowest))) == 4
    # The lowest frequency is divided by exactly the growth of the base.
    assert (plain[-1] / lowest[2]).item() == pytest.approx(factor * 3 - (factor - 1), rel=1e-9)


@pytest.mark.parametrize("name", SCALINGS)
@light
@given(lengths=st.tuples(*[st.none() | st.integers(1, 5000)] * 2))
def test_equal_buckets_mean_equal_frequencies(name, lengths):
    scaling = make(name, 4.0, 1024, 16)
    first, second = (frequencies(scaling, 16, 10000.0, length) for length in lengths)
    if scaling.bucket(lengths[0]) == scaling.bucket(lengths[1]):
        assert torch.equal(first, second)
        assert scaling.attention_factor(lengths[0]) == scaling.attention_factor(lengths[1])
    else:
        assert scaling.depends_on_length
        assert not torch.equal(first, second)


# --- recorded numbers ---

# Head size 8 and base 10000 give the plain frequencies 1, 0.1, 0.01, 0.001. Numbers were worked out from the papers'
# formulas with mpmath at 25 digits (2026), not with the code under test:
#   ntk s=4: the base grows by 4^(4/3), so f_i is divided by 4^(i/3);  dynamic s=4, L/L0=2: growth 8 - 3 = 5, by 5^(i/3)
#   yarn s=4, L0=2048: i(32) = 8 ln(2048/(64 pi)) / (2 ln 10^4) = 1.00800, i(1) = 2.51315; truncated to 1 and 3, so the
#     ramp is 0, 0, 1/2, 1; not truncated it is (2 - 1.00800) / 1.50515 = 0.65907 at i = 2
#   llama3 s=8, L0=8192, base 500000: 0.0376 turns 49.03 times (kept), 0.001414 1.84385 times (kept share 0.281283),
#     0.0000532 0.069 times (divided by 8)
RECORDED = {
    "none": (NoScaling(), 10000.0, None, [1.0, 0.1, 0.01, 0.001]),
    "pi": (PositionInterpolation(factor=4.0), 10000.0, None, [0.25, 0.025, 0.0025, 0.00025]),
    "ntk": (NoScaling(), 63496.042078727980, None, [1.0, 0.062996052494743658, 0.0039685026299204987, 0.00025]),
    "dynamic-ntk": (
        DynamicNTK(factor=4.0, original=1000),
        10000.0,
        2000,
        [1.0, 0.058480354764257321, 0.0034199518933533940, 0.0002],
    ),
    "yarn": (YaRN(factor=4.0, original=2048), 10000.0, None, [1.0, 0.1, 0.00625, 0.00025]),
    "yarn, not truncated": (
        YaRN(factor=4.0, original=2048, truncate=False),
        10000.0,
        None,
        [1.0, 0.1, 0.0050569715211294348, 0.00025],
    ),
    "llama3": (
        Llama3(factor=8.0, original=8192, low_freq_factor=1.0, high_freq_factor=4.0),
        500000.0,
        None,
        [1.0, 0.037606030930863936, 0.00052484616099294655, 6.6478698711812358e-06],
    ),
    "longrope": (
        LongRoPE(factor=32.0, original=4096, short_factor=(1.0,) * 4, long_factor=(1.0, 1.1, 1.25, 2.0)),
        10000.0,
        4097,
        [1.0, 0.090909090909090909, 0.008, 0.0005],
    ),
}


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_frequencies(name):
    scaling, base, length, expected = RECORDED[name]
    close(frequencies(scaling, 8, base, length), torch.tensor(expected, dtype=torch.float64))


def test_recorded_base_and_attention_factor():
    assert ntk_base(10000.0, 4.0, 8) == pytest.approx(63496.042078727980, rel=1e-14)
    # sqrt(1 + ln 32 / ln 4096) = sqrt(1 + 5/12)
    assert RECORDED["longrope"][0].attention_factor(None) == pytest.approx(1.1902380714238083, rel=1e-14)


# --- the reference library ---


def reference(head_size: int, base: float, rope: dict, maximum: int, length: int | None) -> tuple[torch.Tensor, float]:
    config = LlamaConfig(
        hidden_size=4 * head_size,
        num_attention_heads=4,
        head_dim=head_size,
        max_position_embeddings=maximum,
        rope_parameters=rope | {"rope_theta": base},
    )
    found, attention = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, seq_len=length)
    return found.to(torch.float64), attention


ORIGINAL = 2048
GRID = {
    "linear": ({}, lambda s, h: PositionInterpolation(factor=s)),
    "dynamic": ({}, lambda s, h: DynamicNTK(factor=s, original=ORIGINAL)),
    "yarn": ({}, lambda s, h: YaRN(factor=s, original=ORIGINAL)),
    "yarn, betas": (
        {"beta_fast": 16.0, "beta_slow": 2.0, "truncate": False},
        lambda s, h: YaRN(factor=s, original=ORIGINAL, beta_fast=16.0, beta_slow=2.0, truncate=False),
    ),
    "yarn, mscale": (
        {"mscale": 0.707, "mscale_all_dim": 1.0},
        lambda s, h: YaRN(factor=s, original=ORIGINAL, mscale=0.707, mscale_all_dim=1.0),
    ),
    "yarn, attention": (
        {"attention_factor": 1.25, "mscale": 1.0, "mscale_all_dim": 0.5},
        lambda s, h: YaRN(factor=s, original=ORIGINAL, mscale=1.0, mscale_all_dim=0.5, attention_override=1.25),
    ),
    "llama3": (
        {"low_freq_factor": 1.0, "high_freq_factor": 4.0},
        lambda s, h: Llama3(factor=s, original=ORIGINAL, low_freq_factor=1.0, high_freq_factor=4.0),
    ),
    "longrope": ({}, lambda s, h: make("longrope", s, ORIGINAL, h)),
}


@pytest.mark.parametrize("head_size", [16, 64, 128])
@pytest.mark.parametrize("kind", GRID)
def test_equals_the_reference_library(kind, head_size):
    extra, build = GRID[kind]
    rope_type = kind.split(",")[0]
    for factor in (1.0, 1.5, 4.0, 32.0):
        scaling = build(factor, head_size)
        rope = {"rope_type": rope_type, "factor": factor} | extra
        if rope_type not in ("linear", "dynamic"):
            rope["original_max_position_embeddings"] = ORIGINAL
        if rope_type == "longrope":
            rope |= {"short_factor": list(scaling.short_factor), "long_factor": list(scaling.long_factor)}
        maximum = ORIGINAL if rope_type == "dynamic" else int(ORIGINAL * factor)
        for base in (10000.0, 500000.0, 1e6):
            for length in (None, 17, ORIGINAL, ORIGINAL + 1, 5000, 65536):
                expected, attention = reference(head_size, base, rope, maximum, length)
                close(frequencies(scaling, head_size, base, length), expected, rtol=1e-5)  # float32 there
                assert scaling.attention_factor(length) == pytest.approx(attention, rel=1e-12)


# --- refusals ---

REFUSED = [
    ({"name": "pi", "factor": 0.5}, "equal to 1"),
    ({"name": "pi", "factor": float("inf")}, "finite"),
    ({"name": "pi", "factor": float("nan")}, "finite"),
    ({"name": "pi", "factor": "4"}, "valid number"),
    ({"name": "pi", "factor": True}, "valid number"),
    ({"name": "none", "factor": 2.0}, "'factor'"),
    ({"name": "dynamic-ntk", "factor": 2.0}, "original"),
    ({"name": "yarn", "factor": 2.0, "original": 0}, "equal to 1"),
    ({"name": "yarn", "factor": 2.0, "original": 64, "beta_fast": 1.0, "beta_slow": 2.0}, "beta_slow"),
    ({"name": "yarn", "factor": 2.0, "original": 64, "mscale": 1.0}, "mscale"),
    ({"name": "yarn", "factor": 2.0, "original": 64, "attention_override": 0.0}, "greater than 0"),
    ({"name": "yarn", "factor": 2.0, "original": 64, "truncate": None}, "boolean"),
    (
        {"name": "llama3", "factor": 2.0, "original": 64, "low_freq_factor": 4.0, "high_freq_factor": 4.0},
        "above",
    ),
    (
        {"name": "longrope", "factor": 2.0, "original": 64, "short_factor": [1.0], "long_factor": [1.0, 2.0]},
        "need",
    ),
    (
        {"name": "longrope", "factor": 2.0, "original": 64, "short_factor": [0.0], "long_factor": [1.0]},
        "greater than 0",
    ),
    ({"name": "longrope", "factor": 2.0, "original": 1, "short_factor": [1.0], "long_factor": [1.0]}, r"\b2\b"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED)
def test_bad_settings_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        scaling_from(values)


def test_a_class_can_be_built_directly_and_is_frozen():
    with pytest.raises(ValidationError, match="equal to 1"):
        PositionInterpolation(factor=0.5)
    with pytest.raises(ValidationError, match="frozen"):
        PositionInterpolation(factor=2.0).factor = 3.0


def test_misfits_with_the_head_are_refused_when_used():
    with pytest.raises(ConfigError, match=r"\b7\b"):
        NoScaling().inverse_frequencies(7, 10000.0, None)
    with pytest.raises(ConfigError, match="above 1"):
        DynamicNTK(factor=2.0, original=64).inverse_frequencies(8, 0.5, 1000)
    with pytest.raises(ConfigError, match=naming(4, 2)):
        ntk_base(10000.0, 2.0, 2)
    with pytest.raises(ConfigError, match="NTK"):
        ntk_base(10000.0, 0.5, 8)
    longrope = LongRoPE(factor=2.0, original=64, short_factor=(1.0, 1.0), long_factor=(1.0, 2.0))
    with pytest.raises(ConfigError, match=naming(8, 4)):
        longrope.inverse_frequencies(8, 10000.0, None)


@pytest.mark.parametrize(("original", "base"), [(1, 10000.0), (100_000, 10.0)])
def test_yarn_refuses_a_ramp_that_would_run_backwards(original, base):
    with pytest.raises(ConfigError, match="ramp"):
        YaRN(factor=2.0, original=original).inverse_frequencies(16, base, None)
