"""The settings of published decoders, as in their `config.json`: every key is understood, every number counted."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from handscroll.base.errors import ConfigError
from handscroll.models.table import family
from handscroll.models.weights import load_model, save_model
from tests.conformance.families import FORMS

PHI_4 = {
    "model_type": "phi3",
    "architectures": ["Phi3ForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_phi3.Phi3Config",
        "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
    },
    "attention_bias": False,
    "embd_pdrop": 0.0,
    "eos_token_id": 199999,
    "full_attn_mod": 1,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "interpolate_factor": 1,
    "lm_head_bias": False,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_attention_heads": 24,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "original_max_position_embeddings": 4096,
    "partial_rotary_factor": 0.75,
    "resid_pdrop": 0.0,
    "rope_scaling": {"long_factor": [2.0] * 48, "short_factor": [1.0] * 48, "type": "longrope"},
    "sliding_window": 262144,
    "tie_word_embeddings": True,
    "vocab_size": 200064,
}
STARCODER = {
    "model_type": "starcoder2",
    "activation_function": "gelu",
    "attention_softmax_in_fp32": True,
    "eos_token_id": 0,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_size": 3072,
    "intermediate_size": 12288,
    "layer_norm_epsilon": 1e-05,
    "max_position_embeddings": 16384,
    "mlp_type": "default",
    "norm_epsilon": 1e-05,
    "norm_type": "layer_norm",
    "num_attention_heads": 24,
    "num_hidden_layers": 30,
    "num_key_value_heads": 2,
    "rope_theta": 999999.4420358813,
    "scale_attention_softmax_in_fp32": True,
    "scale_attn_weights": True,
    "sliding_window": 4096,
    "use_bias": True,
    "vocab_size": 49152,
}
PYTHIA = {
    "model_type": "gpt_neox",
    "classifier_dropout": 0.1,
    "hidden_act": "gelu",
    "hidden_size": 512,
    "intermediate_size": 2048,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048,
    "num_attention_heads": 8,
    "num_hidden_layers": 6,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
    "use_parallel_residual": True,
    "vocab_size": 50304,
}
SMOLLM = {
    "model_type": "smollm3",
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "layer_types": ["full_attention"] * 36,
    "max_position_embeddings": 65536,
    "max_window_layers": 28,
    "no_rope_layer_interval": 4,
    "no_rope_layers": [1, 1, 1, 0] * 9,
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 4,
    "rope_theta": 5000000.0,
    "sliding_window": None,
    "use_sliding_window": False,
    "vocab_size": 128256,
}
MIXTRAL = {
    "model_type": "mixtral",
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "num_attention_heads": 32,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.02,
    "sliding_window": None,
    "vocab_size": 32000,
}
QWEN = {
    "model_type": "qwen3_moe",
    "decoder_sparse_step": 1,
    "head_dim": 128,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "max_window_layers": 48,
    "mlp_only_layers": [],
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "rope_theta": 1000000.0,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


@pytest.mark.parametrize(
    ("foreign", "parameters", "active"),
    [
        (PHI_4, 3_836_021_760, 3_836_021_760),
        (STARCODER, 3_030_371_328, 3_030_371_328),
        (PYTHIA, 70_426_624, 70_426_624),
        (SMOLLM, 3_075_098_624, 3_075_098_624),
        (MIXTRAL, 46_702_792_704, 12_879_925_248),
        (QWEN, 30_532_122_624, 3_353_032_704),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)
def test_a_published_model_has_its_published_size(foreign, parameters, active):
    spec = family(foreign["model_type"]).parse(foreign).spec
    assert (spec.parameters, spec.active) == (parameters, active)


def test_phi_4_mini_is_scaled_as_published():
    config = family("phi3").parse(PHI_4)
    scaling = config.positions.scaling
    assert (config.context, config.trained, config.rotary_size) == (131072, 4096, 96)
    assert scaling.attention_factor(131072) == pytest.approx(1.1902380714238083, abs=1e-12)
    short, long = (scaling.inverse_frequencies(96, 10000.0, length) for length in (4096, 4097))
    assert (short == 2 * long).all()


@pytest.mark.parametrize(
    ("foreign", "changes", "said"),
    [
        (PHI_4, {"rope_scaling": {"type": "linear", "factor": 32.0}}, "knows no scaling"),
        (PHI_4, {"lm_head_bias": True}, "lm_head_bias"),
        (STARCODER, {"norm_type": "rms_norm"}, "norm_type"),
        (PYTHIA, {"rotary_pct": 0.03}, "partial_rotary_factor"),
        (PYTHIA, {"hidden_act": "relu"}, "hidden_act"),
        (SMOLLM, {"no_rope_layers": [1, 0]}, "36 layers"),
        (SMOLLM, {"no_rope_layers": None, "no_rope_layer_interval": 0}, "no_rope_layer_interval"),
        (SMOLLM, {"no_rope_layers": 5}, "no_rope_layers"),
        (MIXTRAL, {"num_experts_per_tok": 9}, "9 experts"),
        (QWEN, {"decoder_sparse_step": 0}, "decoder_sparse_step"),
        (QWEN, {"mlp_only_layers": "all"}, "mlp_only_layers"),
        (QWEN, {"num_experts": 0}, "experts"),
    ],
)
def test_what_the_families_do_not_know_is_refused(foreign, changes, said):
    with pytest.raises(ConfigError, match=said):
        family(foreign["model_type"]).parse(foreign | changes)


def test_the_buffers_of_old_pythia_files_are_left_out(tmp_path):
    model = FORMS["gpt_neox"].build(torch.float32)
    save_model(model, tmp_path)
    file, tensors = tmp_path / "model.safetensors", {}
    for number in range(3):
        stem = f"gpt_neox.layers.{number}.attention"
        tensors |= {f"{stem}.bias": torch.ones(1, 1, 8, 8).bool(), f"{stem}.masked_bias": torch.tensor(-1e9)}
        tensors[f"{stem}.rotary_emb.inv_freq"] = torch.ones(2)
    save_file(load_file(file) | tensors, file, metadata={"format": "pt"})
    again = load_model(tmp_path).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())
