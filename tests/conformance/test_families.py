"""Every family and scaling against the reference library, in both directions."""

import json

import pytest
import torch
import transformers

from handscroll.models.weights import load_model, save_model
from tests.conformance.families import FAMILIES, SCALINGS, reference, reference_logits, save

TOLERANCE = 1e-4
LENGTHS = (1, 63, 64, 65, 128, 256)  # trained to 64: up to four times that
CASES = [(family, "none") for family in FAMILIES] + [
    (family, scaling)
    for family in ("llama", "mistral-window", "qwen2", "qwen3", "glm4")
    for scaling in SCALINGS
    if scaling != "none" and not (family == "qwen3" and scaling == "longrope")
]


def ours_at(model, tokens):
    with torch.no_grad():
        return model(tokens, length=tokens.shape[1])


@pytest.mark.parametrize(("family", "scaling"), CASES)
def test_equal_logits_both_ways(family, scaling, tmp_path):
    theirs = reference(family, scaling)
    model = load_model(save(theirs, tmp_path / "theirs"))
    save_model(model, tmp_path / "ours")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32).eval()
    assert type(again) is type(theirs)
    for length in LENGTHS:
        tokens = torch.randint(3, 97, (2, length), generator=torch.Generator().manual_seed(length))
        want = reference_logits(theirs, tokens)
        assert (ours_at(model, tokens) - want).abs().max() < TOLERANCE
        assert (reference_logits(again, tokens) - want).abs().max() < TOLERANCE


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
def test_sharded_checkpoints_load_and_are_written(family, tmp_path):
    theirs = reference(family)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="60KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    model = load_model(tmp_path / "theirs")
    save_model(model, tmp_path / "ours", shard_bytes=60_000)
    index = json.loads((tmp_path / "ours" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32).eval()
    tokens = torch.randint(3, 97, (1, 40))
    want = reference_logits(theirs, tokens)
    assert (ours_at(model, tokens) - want).abs().max() < TOLERANCE
    assert torch.equal(reference_logits(again, tokens), want)
    assert (ours_at(load_model(tmp_path / "ours"), tokens) - want).abs().max() < TOLERANCE


def test_weights_survive_a_round_trip_bit_for_bit(tmp_path):
    model = load_model(save(reference("gpt2"), tmp_path / "a"))
    save_model(model, tmp_path / "b")
    again = load_model(tmp_path / "b")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
