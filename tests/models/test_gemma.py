"""Gemma 2 and 3: what their files say of windows, rope and caps, and numbers in the precision that they come in."""

import json

import pytest
import torch
import transformers

from handscroll.base.errors import ConfigError
from handscroll.lm import LM
from handscroll.models.table import family
from handscroll.models.weights import load_model, save_model
from handscroll.nn.norm import OffsetRMSNorm
from tests.conformance.families import FORMS, reference, reference_logits, scatter
from tests.conformance.material import tokenizer

FULL, SLIDING = "full_attention", "sliding_attention"


def read(name="gemma3_text", **changes):
    kind = family(name)
    return kind.parse({"model_type": name, **kind.forms[""], **changes})


def nested(**full):
    tables = {FULL: {"rope_type": "default", "rope_theta": 5e5} | full, SLIDING: {"rope_theta": 300.0}}
    return {"rope_parameters": tables, "rope_local_base_freq": None}


def test_a_table_for_each_kind_of_layer():
    config = read(**nested(rope_type="linear", factor=4.0), max_position_embeddings=256)
    assert (config.positions.base, config.positions.scaling.name, config.local_base) == (5e5, "pi", 300.0)
    full, local = config.spec.positions
    assert (full.trained, full.context, local.base, local.scaling.name) == (64, 256, 300.0, "none")
    assert [layer.positions for layer in config.spec.layers] == [1, 1, 0]
    assert [layer.window for layer in config.spec.layers] == [16, 16, None]
    assert read(rope_local_base_freq=None).local_base == 10_000.0 and read().positions.base == 1_000_000.0


def test_a_model_without_windows_names_each_layer_as_its_saved_readings_do():
    config = read(layer_types=[FULL] * 3)
    assert config.windows == (None, None, None) == config.every_window and config.layer_types == [FULL] * 3


@pytest.mark.parametrize("windows", [(0, None, None), (-1, 16, None)])
def test_a_window_without_a_token_is_refused(windows):
    with pytest.raises(ValueError, match="at least one token"):
        type(read()).model_validate(read().model_dump() | {"windows": windows})


@pytest.mark.parametrize("scaling", [{}, {"rope_type": "linear", "factor": 4.0}])
def test_what_the_reference_library_writes_is_read(tmp_path, scaling):
    """transformers 5 has a table for each kind of layer, and scales those that see all alone."""
    foreign = dict(FORMS["gemma3_text"].foreign, head_dim=16, **nested(**scaling))
    foreign |= {"max_position_embeddings": 256} if scaling else {}
    del foreign["rope_local_base_freq"]
    model = transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**foreign)).eval()
    scatter(model)
    model.save_pretrained(tmp_path)
    assert SLIDING in json.loads((tmp_path / "config.json").read_text())["rope_parameters"]
    ours, tokens = load_model(tmp_path), torch.arange(20, 90)[None]
    with torch.no_grad():
        assert (ours(tokens) - reference_logits(model, tokens)).abs().max() < 1e-4
    assert ours.config.local_base == 300.0 and ours.config.positions.base == 5e5


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layer_types": [FULL, "chunked_attention", FULL]}, "does not describe"),
        ({"layer_types": [FULL]}, "does not describe 3 layers"),
        ({"sliding_window": None}, "no sliding_window"),
        ({"use_bidirectional_attention": True}, "read from left to right"),
        ({"hidden_activation": "gelu"}, "gelu_pytorch_tanh"),
        ({"attn_logit_softcapping": 50.0}, "does not read it"),
        ({"rope_parameters": {FULL: {"rope_theta": 1e6}, "rope_theta": 3.0}}, "which is not a kind"),
        ({"rope_parameters": {SLIDING: {"rope_type": "linear", "factor": 2.0}}}, "is scaled"),
        ({"rope_parameters": {SLIDING: {"rope_theta": 7.0}}}, "contradicts"),
    ],
)
def test_what_cannot_be_read_is_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        read(**changes)


def test_a_model_of_pictures_is_refused():
    with pytest.raises(ConfigError, match=r"pictures and text.*gemma3_text"):
        family("gemma3")


def test_layers_without_types_follow_the_pattern_of_their_family():
    second, third = (read(name, num_hidden_layers=7, layer_types=None) for name in ("gemma2", "gemma3_text"))
    assert [window is None for window in second.windows] == [False, True, False, True, False, True, False]
    assert [window is None for window in third.windows] == [False] * 5 + [True, False]
    other = read(num_hidden_layers=4, layer_types=None, sliding_window_pattern=2)
    assert [window is None for window in other.windows] == [False, True, False, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_multiply_in_float32(dtype):
    from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm

    theirs, ours = Gemma3RMSNorm(48, 1e-6).to(dtype), OffsetRMSNorm(48, 1e-6).to(dtype)
    scatter(theirs)
    ours.load_state_dict(theirs.state_dict())
    x = (3 * torch.randn(2, 9, 48, generator=torch.Generator().manual_seed(0))).to(dtype)
    assert torch.equal(ours(x), theirs(x))


def test_token_vectors_in_bfloat16_are_scaled_as_the_reference_scales_them(tmp_path):
    theirs = reference("gemma3_text").to(torch.bfloat16)
    theirs.save_pretrained(tmp_path)
    ours, tokens = load_model(tmp_path, torch.bfloat16), torch.arange(20, 90)[None]
    embedded = theirs.model.embed_tokens(tokens)
    assert torch.equal(ours.embed(tokens, None), embedded)
    with torch.no_grad():
        want, got = reference_logits(theirs, tokens).float(), ours(tokens).float()
    assert (got - want).abs().max() < 0.05 * want.abs().max()


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text"])
def test_losses_are_those_of_the_capped_logits(name):
    lm = LM(FORMS[name].build(torch.float32), tokenizer(), name)
    ids = list(range(20, 60))
    want = torch.nn.functional.cross_entropy(lm.logits(ids)[:-1], torch.tensor(ids[1:]), reduction="none")
    for window in (None, 30):
        got = lm.nll(ids, window=window)
        torch.testing.assert_close(got[:29] if window else got, want[:29] if window else want, atol=1e-5, rtol=1e-5)


def test_a_new_one_begins_as_a_sum_of_its_tokens(tmp_path):
    """Norms start at weight 0, which is a factor of 1."""
    model = FORMS["gemma3_text"].kind.build(FORMS["gemma3_text"].config)
    assert all(not norm.weight.any() for norm in model.modules() if isinstance(norm, OffsetRMSNorm))
    save_model(model, tmp_path)
    assert load_model(tmp_path).config == model.config
