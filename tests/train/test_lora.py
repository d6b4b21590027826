"""LoRA: starts as the model, trains only its update, merges exactly, and PEFT reads its files."""

import json

import peft
import pytest
import torch

from handscroll.base.errors import ConfigError
from handscroll.models.weights import load_model, save_model
from handscroll.train.lora import LoRA, add_lora, merge_lora, save_adapter
from tests.conformance.families import reference, reference_logits, save
from tests.models.t5 import reference as t5_reference
from tests.models.t5 import save as save_t5


@pytest.fixture
def tokens():
    return torch.randint(3, 97, (2, 30), generator=torch.Generator().manual_seed(0))


def trained(folder, settings, family="llama"):
    """A model with an update that is no longer zero."""
    model = load_model(save(reference(family), folder))
    add_lora(model, settings)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".b"):
                parameter.normal_(0.0, 0.1, generator=generator)
    return model


def test_fresh_update_changes_nothing_and_only_it_trains(tmp_path, tokens):
    model = load_model(save(reference("llama"), tmp_path))
    with torch.no_grad():
        want = model(tokens)
    add_lora(model, LoRA(rank=4))
    torch.testing.assert_close(model(tokens).detach(), want)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable and all(name.endswith((".a", ".b")) for name in trainable)
    assert len(trainable) == 3 * 4 * 2


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_merged_equals_unmerged(tmp_path, tokens, family):
    model = trained(tmp_path, LoRA(rank=4, targets=("query", "value", "down")), family)
    with torch.no_grad():
        want = model(tokens)
        merge_lora(model)
        torch.testing.assert_close(model(tokens), want, atol=1e-5, rtol=1e-5)
    save_model(model, tmp_path / "merged")
    assert not any("base" in name for name in model.state_dict())


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's own call
@pytest.mark.parametrize("family", ["llama", "qwen3", "olmo2", "smollm3"])
def test_peft_reads_the_adapter_with_equal_logits(tmp_path, tokens, family):
    settings = LoRA(rank=4, alpha=6.0, targets=("query", "value", "up", "down"))
    model = trained(tmp_path / "base", settings, family)
    save_adapter(model, settings, tmp_path / "adapter", str(tmp_path / "base"))
    theirs = peft.PeftModel.from_pretrained(reference(family), tmp_path / "adapter").eval()
    with torch.no_grad():
        assert (reference_logits(theirs, tokens) - model(tokens)).abs().max() < 1e-4
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == 4


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's own call
def test_peft_reads_the_adapter_of_an_encoder_decoder(tmp_path, tokens):
    settings = LoRA(rank=4, alpha=6.0, targets=("query", "value", "down"))
    save_t5("v1.0", tmp_path / "base")
    model = load_model(tmp_path / "base")
    add_lora(model, settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".b"):
                parameter.normal_(0.0, 0.1)
    save_adapter(model, settings, tmp_path / "adapter", str(tmp_path / "base"))
    theirs = peft.PeftModel.from_pretrained(t5_reference("v1.0"), tmp_path / "adapter").eval()
    assert isinstance(theirs, peft.PeftModelForSeq2SeqLM)
    with torch.no_grad():
        found, target = model(tokens, tokens[:, :9]), tokens[:, :9]
        assert (
            theirs(input_ids=tokens, decoder_input_ids=target).logits - found
        ).abs().max() < 1e-4 * found.abs().max()
    merge_lora(model)
    with torch.no_grad():
        assert (model(tokens, target) - found).abs().max() < 1e-4 * found.abs().max()


def test_fused_projections_and_unknown_targets_are_refused(tmp_path):
    model = trained(tmp_path, LoRA(rank=2, targets=("query",)), "gpt2")
    with pytest.raises(ConfigError, match="fused"):
        save_adapter(model, LoRA(rank=2), tmp_path / "adapter", "x")
    with pytest.raises(ConfigError, match="'gate'"):
        add_lora(load_model(tmp_path), LoRA(targets=("gate",)))


def test_updates_of_half_precision_weights_are_float32(tmp_path, tokens):
    settings = LoRA(rank=4, alpha=8.0)
    model = load_model(save(reference("llama"), tmp_path), torch.bfloat16)
    add_lora(model, settings)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trained and all(parameter.dtype == torch.float32 for parameter in trained)
    assert model.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        model(tokens).float().square().mean().backward()
    assert any(float(parameter.grad.norm()) > 0 for parameter in trained)
    torch.nn.init.normal_(model.layers[0].attention.query.update.b, std=0.1)
    with torch.no_grad():
        want = model(tokens)
        merge_lora(model)
        apart = (model(tokens) - want).float().norm() / want.float().norm()
    assert apart < 0.02
    assert all(parameter.dtype == torch.bfloat16 for parameter in model.parameters())
