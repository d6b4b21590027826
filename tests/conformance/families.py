"""Tiny random checkpoints of every family and scaling, made by the reference library."""

import copy
from pathlib import Path

import torch
import transformers

SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
FAMILIES = {
    "llama": ("Llama", {}),
    "llama-biased": ("Llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama-mha": ("Llama", {"num_key_value_heads": 6, "head_dim": 16}),
    "mistral": ("Mistral", {"sliding_window": None, "head_dim": 8}),
    "mistral-window": ("Mistral", {"sliding_window": 24, "head_dim": 8}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 16, "attention_bias": False}),
    "glm": ("Glm", {"head_dim": 16}),
    "glm-unbiased": ("Glm", {"head_dim": 16, "attention_bias": False, "tie_word_embeddings": True}),
    "glm4": ("Glm4", {"head_dim": 16}),
    "bloom": ("Bloom", {"seq_length": 64}),  # six heads: slopes of no power of two
    "gpt2": ("GPT2", {}),
    "gpt2-untied": ("GPT2", {"tie_word_embeddings": False, "n_inner": 100}),
}
HALF = 4  # rotated pairs of head size 8, and of GLM's 16
SCALINGS = {
    "none": None,
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "llama3": {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [1.5, 2.0, 3.0, 4.0],
        "factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}


def reference(family: str, scaling: str = "none", seed: int = 0):
    """A random `transformers` model in eval mode, with weights large enough to make attention matter."""
    kind, extra = FAMILIES[family]
    settings = {**SIZES, **extra}
    if kind == "GPT2":
        settings = {"vocab_size": 97, "n_embd": 48, "n_layer": 3, "n_head": 6, "n_positions": 256, **extra}
        settings |= {"bos_token_id": 1, "eos_token_id": 2}
    if kind == "Bloom":
        settings = {"vocab_size": 97, "hidden_size": 48, "n_layer": 3, "n_head": 6, **extra}
    rope = copy.deepcopy(SCALINGS[scaling])
    if rope is not None:
        settings["rope_parameters"] = {"rope_theta": 500.0, **rope}
        if scaling in ("yarn", "llama3", "longrope", "linear"):
            settings["max_position_embeddings"] = 256
    config = getattr(transformers, f"{kind}Config")(**settings)
    torch.manual_seed(seed)
    name = "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.15)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def save(model, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def reference_logits(model, tokens: torch.Tensor) -> torch.Tensor:
    return model(tokens).logits
