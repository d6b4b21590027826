"""Keys of config.json that no family reads: off, bookkeeping, or refused; and the values of those that are read."""

import json

import pytest
import torch

from handscroll.base.errors import ConfigError
from handscroll.models.describe import facts
from handscroll.models.table import family
from handscroll.models.weights import save_model
from handscroll.nn.mlp import ACTIVATIONS
from tests.conformance.families import FORMS

# What transformers 4 wrote into files when all of a configuration was dumped.
DUMP = {
    "add_cross_attention": False,
    "bad_words_ids": None,
    "begin_suppress_tokens": None,
    "chunk_size_feed_forward": 0,
    "cross_attention_hidden_size": None,
    "diversity_penalty": 0.0,
    "do_sample": False,
    "early_stopping": False,
    "encoder_no_repeat_ngram_size": 0,
    "exponential_decay_length_penalty": None,
    "finetuning_task": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "is_decoder": False,
    "length_penalty": 1.0,
    "max_length": 20,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "num_beams": 1,
    "num_return_sequences": 1,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_scores": False,
    "prefix": None,
    "pruned_heads": {},
    "remove_invalid_values": False,
    "repetition_penalty": 1.0,
    "return_dict": True,
    "return_dict_in_generate": False,
    "sep_token_id": None,
    "suppress_tokens": None,
    "temperature": 1.0,
    "tf_legacy_loss": False,
    "tie_encoder_decoder": False,
    "tokenizer_class": None,
    "top_k": 50,
    "top_p": 1.0,
    "torchscript": False,
    "typical_p": 1.0,
    "use_bfloat16": False,
}
NEURON = {"neuron": {"compiler_version": "2.15", "static_batch_size": 1, "auto_cast": "matmul", "dynamic_axes": [1]}}
BOOKKEEPING = {
    "a dump": DUMP,
    "neuron": NEURON,
    "unsloth": {"unsloth_fixed": True, "unsloth_version": "2025.1.5", "unsloth_training": True},
    "sentence-transformers": {"sentence_transformers": {"version": "5.0"}, "export_model_type": "transformer"},
    "rerankers": {"sbert_ce_default_activation_function": "torch.nn.modules.activation.Sigmoid"},
    "onnx": {"onnx_opset": 14, "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}, "use_external": 1}},
    "old": {"output_past": True, "emb_size": 312, "pooler_type": "first_token_transform", "directionality": "bidi"},
    "megatron": {"attention_softmax_in_fp32": True, "masked_softmax_fusion": True, "tensor_parallel_size": 8},
    "trainers": {"sequence_parallel_enabled": True, "lora_alpha": 16, "mask_time_prob": 0.05, "optimizer": "adamw"},
    "people": {"name": "mine", "language": "english", "license": "mit", "adapters": {"adapters": {}, "map": {}}},
    "runs": {
        "global_step": 1000,
        "label_smoothing_factor": 0.1,
        "mask_ratio": 0.15,
        "local_rank": 0,
        "clip_grad_norm": 0.5,
        "offset_alibi": 100,
    },
    "lengths": {"max_target_positions": 64, "max_sequence_length": 16384, "seq_length": 64, "model_max_length": 512},
}
OFF = {
    "use_mrope": False,
    "rope_interleaved": False,
    "attention_multiplier": 1.0,
    "logit_scale": 1,
    "attn_logit_softcap": None,
    "moe": {},
    "expert_layers": [],
    "num_experts": 0,
    "qk_layernorm": False,
    "attention_type": "default",
    "rotary_pct": 1.0,
}
BEARING = {
    "use_mrope": True,
    "rope_interleaved": True,
    "attention_multiplier": 0.5,
    "logit_scale": 0.0625,
    "use_rope": False,
    "rotary_pct": 0.25,
    "local_attention": 128,
    "num_experts": 8,
    "FFN_type": "softmoe",
    "mlp_type": "senet",
    "attn_config": {"clip_qkv": 8},
    "layer_norm_position": "post",
    "hidden_activation": "gelu",
    "alibi_bias_max": 8,
    "output_multiplier": 0.5,
    "activation_name": "relu",
    "num_experts_per_token": 2,
    "useCausalMask": False,
    "add_cross_attention": True,
    "is_encoder_decoder": True,
}


def read(name: str, more: dict):
    kind = family(name)
    return kind.parse({"model_type": name, **kind.forms[""], **more})


@pytest.mark.parametrize("kind", BOOKKEEPING)
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "t5", "bloom", "gemma3_text"])
def test_bookkeeping_is_ignored_in_every_family(name, kind):
    more = {key: value for key, value in BOOKKEEPING[kind].items() if key not in family(name).keys}
    assert read(name, more) == read(name, {})


@pytest.mark.parametrize("key", OFF)
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_a_setting_that_is_off_changes_nothing(name, key):
    assert read(name, {key: OFF[key]}) == read(name, {})


@pytest.mark.parametrize("key", BEARING)
def test_a_setting_that_bears_on_the_forward_pass_is_refused(key):
    with pytest.raises(ConfigError, match=f"'{key}' = "):
        read("llama", {key: BEARING[key]})


@pytest.mark.parametrize(("name", "truth"), [("gpt2", True), ("bert", False)])
def test_what_a_file_says_about_causality_must_be_true(name, truth):
    assert read(name, {"is_causal": truth}) == read(name, {})
    with pytest.raises(ConfigError, match="is_causal"):
        read(name, {"is_causal": not truth})


def test_code_of_its_own_is_refused_unless_the_class_is_known():
    code = {"auto_map": {"AutoModelForCausalLM": "modeling.Model"}}
    assert read("qwen2", code | {"architectures": ["Qwen2ForCausalLM"], "use_mrope": False}) == read("qwen2", {})
    with pytest.raises(ConfigError, match=r"class 'SteelForCausalLM'.*remote code"):
        read("qwen2", code | {"architectures": ["SteelForCausalLM"]})
    with pytest.raises(ConfigError, match="slots"):  # a number without meaning here may have one in that code
        read("qwen2", code | {"architectures": ["Qwen2ForCausalLM"], "slots": 2})


def test_a_second_name_of_a_key_is_read_and_must_agree():
    plain = family("gpt2").forms[""]
    renamed = {key: value for key, value in plain.items() if key != "n_layer"} | {"num_hidden_layers": plain["n_layer"]}
    assert family("gpt2").parse({"model_type": "gpt2", **renamed}) == read("gpt2", {})
    with pytest.raises(ConfigError, match="num_hidden_layers 9 contradicts n_layer 3"):
        read("gpt2", {"num_hidden_layers": 9})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 10**12),
        ("num_hidden_layers", "3"),
        ("num_hidden_layers", 3.0),
        ("num_hidden_layers", True),
        ("num_attention_heads", 0),
        ("hidden_size", -48),
        ("hidden_size", 10**400),
        ("vocab_size", [97]),
        ("head_dim", "8"),
        ("rms_norm_eps", float("nan")),
        ("rms_norm_eps", "1e-6"),
        ("rms_norm_eps", -1.0),
        ("tie_word_embeddings", "false"),
        ("attention_bias", 1),
        ("hidden_act", ["silu"]),
        ("eos_token_id", "</s>"),
        ("eos_token_id", [1, "2"]),
        ("max_position_embeddings", 1 << 60),
        ("layer_types", [{}, {}, {}]),
    ],
)
def test_values_are_typed_and_bounded_before_anything_is_made(key, value):
    with pytest.raises(ConfigError, match=f"{key} is "):
        read("llama", {key: value})


def test_absent_values_are_those_of_the_family():
    def without(name, *keys):
        plain = {key: value for key, value in family(name).forms[""].items() if key not in keys}
        return family(name).parse({"model_type": name, **plain})

    assert without("mistral", "sliding_window").windows == (4096,) * 3
    assert without("llama", "max_position_embeddings").context == 2048
    assert without("llama", "eos_token_id").eos == (2,)
    assert without("gpt2", "n_positions").context == 1024


def test_the_class_of_a_folder_is_judged_before_its_keys():
    with pytest.raises(ConfigError, match="remote code"):
        read("qwen2", {"auto_map": {"AutoModel": "m.M"}, "architectures": ["SteelForCausalLM"], "n_experts": 6})


def test_info_names_the_keys_that_change_nothing(tmp_path):
    save_model(FORMS["llama"].build(), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"unsloth_fixed": True, "use_mrope": False}))
    assert "unsloth_fixed, use_mrope" in dict(facts(tmp_path))["config keys not used"]


@pytest.mark.parametrize("name", ["gelu_new", "gelu_fast", "gelu", "gelu_python", "relu"])
def test_activations_of_gpt2_are_those_of_the_reference(name):
    from transformers.activations import ACT2FN

    ours = ACTIVATIONS[read("gpt2", {"activation_function": name}).activation]
    numbers = torch.linspace(-4.0, 4.0, 101)
    torch.testing.assert_close(ours(numbers), ACT2FN[name](numbers))
