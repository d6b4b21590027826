"""Mixtures of experts: Mixtral (Jiang et al. 2024, arXiv:2401.04088) and Qwen3-MoE (Qwen Team 2025, arXiv:2505.09388).

A Llama whose MLPs are several, of which a router picks a few for each token (`nn/mlp.py: Experts`). In Qwen3-MoE some
layers may have a plain MLP, and queries and keys are normalised head by head.
"""

from typing import Any

from pydantic import Field, model_validator
from torch import nn

from handscroll.base.errors import ConfigError
from handscroll.base.spec import LayerSpec, ModelSpec
from handscroll.models import llama
from handscroll.models.foreign import Entry, Family, Foreign, Part, layer_entries, only, required
from handscroll.models.gguf.side import BASE_KEYS, GGUFSide, Header, Written, gguf_ends
from handscroll.models.heads import Places, headed
from handscroll.models.positions import read_positions
from handscroll.nn.mlp import Experts


class MixtureConfig(llama.LlamaConfig):
    """Sizes and switches. `chosen` of the `experts` read a token; `dense` are the layers with a plain MLP instead.

    With `normed` the weights of the chosen ones sum to 1. An expert is `expert_width` wide, a plain MLP `mlp_width`.
    """

    family: str = "mixtral"
    experts: int = Field(ge=1)
    chosen: int = Field(ge=1)
    normed: bool = True
    expert_width: int = Field(ge=1)
    dense: frozenset[int] = frozenset()

    @model_validator(mode="after")
    def _enough(self):
        if self.chosen > self.experts:
            raise ValueError(f"{self.chosen} experts cannot read a token where there are {self.experts}")
        return self

    @property
    def spec(self) -> ModelSpec:
        spec = super().spec
        mixed = {"experts": self.experts, "chosen": self.chosen, "mlp_width": self.expert_width}
        layers = (
            layer if number in self.dense else layer.model_copy(update=mixed)
            for number, layer in enumerate(spec.layers)
        )
        return spec.model_copy(update={"layers": tuple(layers)})


class Mixture(llama.Llama):
    """A decoder whose layers have experts."""

    config: MixtureConfig

    def mlp(self, layer: LayerSpec) -> nn.Module:
        if not layer.experts:
            return super().mlp(layer)
        return Experts(layer.width, layer.mlp_width, layer.experts, layer.chosen, self.config.normed)


def _read(foreign: Foreign, name: str) -> MixtureConfig:
    only(foreign, name, llama.SILU)
    values, window = llama.read_form(foreign, name), foreign.get("sliding_window")
    own = _read_qwen(foreign, values["layers"]) if name == "qwen3_moe" else _read_mixtral(foreign)
    if name == "qwen3_moe" and not foreign.get("use_sliding_window", False):
        window = None
    values |= own | {
        "chosen": foreign["num_experts_per_tok"],
        "windows": () if window is None else (window,) * values["layers"],
        "positions": read_positions(foreign, values["head_size"], BASES[name]),
    }
    return MixtureConfig.parse(values, "config.json")


def _read_mixtral(foreign: Foreign) -> dict[str, Any]:
    return {
        "norm_eps": foreign.get("rms_norm_eps", 1e-5),
        "experts": foreign["num_local_experts"],
        "expert_width": required(foreign, "intermediate_size", "mixtral"),
    }


def _read_qwen(foreign: Foreign, layers: int) -> dict[str, Any]:
    every, plain = foreign.get("decoder_sparse_step", 1), foreign.get("mlp_only_layers") or []
    bias = bool(foreign.get("attention_bias", False))
    if type(every) is not int or every < 1 or not isinstance(plain, list):
        raise ConfigError(
            f"config.json: decoder_sparse_step is {every!r} and mlp_only_layers {plain!r}; expected a whole number "
            "from 1 up and a list of layers"
        )
    return {
        "norm_eps": foreign.get("rms_norm_eps", 1e-6),
        "attention_bias": bias,
        "output_bias": bias,
        "query_key_norm": True,
        "experts": foreign["num_experts"],
        "expert_width": required(foreign, "moe_intermediate_size", "qwen3_moe"),
        "normed": bool(foreign.get("norm_topk_prob", False)),
        "dense": frozenset(n for n in range(layers) if n in plain or (n + 1) % every),
    }


def _write(config: MixtureConfig) -> Foreign:
    written = llama.written_form(config, ARCHITECTURES[config.family]) | {
        "num_experts_per_tok": config.chosen,
        "sliding_window": next(iter(config.windows), None),
    }
    if config.family == "mixtral":
        return written | {"num_local_experts": config.experts, "intermediate_size": config.expert_width}
    return written | {
        "attention_bias": config.attention_bias,
        "use_sliding_window": bool(config.windows),
        "num_experts": config.experts,
        "moe_intermediate_size": config.expert_width,
        "norm_topk_prob": config.normed,
        "decoder_sparse_step": 1,
        "mlp_only_layers": sorted(config.dense),
    }


def _entries(config: MixtureConfig) -> list[Entry]:
    """The tensors; the reference library joins the experts of a layer in one parameter when it reads them."""
    usual = llama.parts(config)
    plain = {theirs: usual.pop(theirs) for theirs in list(usual) if theirs.startswith("mlp.")}
    mixed = _mixture(config)
    entries = llama.ends(config.tied)
    for number in range(config.layers):
        parts = usual | (plain if number in config.dense else mixed)
        entries += layer_entries(1, "model.layers", parts, first=number)
    return entries


def _mixture(config: MixtureConfig) -> dict[str, Part]:
    stem, names = EXPERTS[config.family]
    found = {f"{stem}.gate": Part("mlp.router", gathered=True)}
    for number in range(config.experts):
        for ours, theirs in zip(("gate", "up", "down"), names, strict=True):
            found[f"{stem}.experts.{number}.{theirs}"] = Part(f"mlp.experts.{number}.{ours}", gathered=True)
    return found


def _from_gguf(header: Header) -> Foreign:
    header.only("expert_shared_count", 0)
    return llama.from_gguf(header) | {"norm_topk_prob": True}  # as llama.cpp computes it


def _to_gguf(config: MixtureConfig, foreign: Foreign) -> Written:
    if config.dense or not config.normed:
        raise ConfigError(
            f"llama.cpp reads a '{config.family}' with experts in every layer only, whose weights it makes sum to 1"
        )
    return llama.to_gguf(config)


def _gguf_entries(config: MixtureConfig) -> list[Entry]:
    """All experts of a layer lie in one tensor for each of their matrices."""
    parts = llama.parts(config, llama.GGUF_NAMES)
    for name in ("gate", "up", "down"):
        del parts[f"ffn_{name}"]
        ours = tuple(f"mlp.experts.{number}.{name}" for number in range(config.experts))
        parts[f"ffn_{name}_exps"] = Part(ours, stacked=True)
    parts["ffn_gate_inp"] = Part("mlp.router")
    return gguf_ends(config.tied) + layer_entries(config.layers, "blk", parts)


GGUF_KEYS = BASE_KEYS | {
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}
GGUF = GGUFSide("qwen3moe", GGUF_KEYS, _from_gguf, _to_gguf, _gguf_entries)
ARCHITECTURES = {"mixtral": "MixtralForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM"}
EXPERTS = {
    "mixtral": ("block_sparse_moe", ("w1", "w3", "w2")),
    "qwen3_moe": ("mlp", ("gate_proj", "up_proj", "down_proj")),
}
BASES = {"mixtral": 1_000_000.0, "qwen3_moe": 10_000.0}  # of the published configurations
COMMON = (llama.KEYS - {"attention_bias", "mlp_bias"}) | {"sliding_window", "num_experts_per_tok"}
QWEN = "attention_bias use_sliding_window num_experts moe_intermediate_size norm_topk_prob decoder_sparse_step"
KEYS = {
    "mixtral": COMMON | {"num_local_experts"},
    "qwen3_moe": COMMON | frozenset(QWEN.split()) | {"mlp_only_layers"},
}
# What a file leaves out, as published.
ABSENT: dict[str, Foreign] = {
    "mixtral": {
        "max_position_embeddings": 131_072,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "qwen3_moe": {
        "max_position_embeddings": 32_768,
        "num_key_value_heads": 4,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "sliding_window": 4096,
    },
}
SMALL = llama.SMALL | {"num_experts_per_tok": 2}
FORMS: dict[str, dict[str, Foreign]] = {
    "mixtral": {"": SMALL | {"num_local_experts": 4, "sliding_window": None}},
    "qwen3_moe": {
        "": SMALL
        | {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "norm_topk_prob": True}
        | {"mlp_only_layers": [1]},
        "all": SMALL | {"num_experts": 4, "moe_intermediate_size": 32, "norm_topk_prob": True, "head_dim": 16},
        "unnormed": SMALL
        | {"num_experts": 4, "moe_intermediate_size": 32, "tie_word_embeddings": True, "head_dim": 16},
    },
}


PLACES = {
    "mixtral": Places("Mixtral"),
    "qwen3_moe": Places("Qwen3Moe", answer_base="transformer."),
}


def _family(name: str) -> Family:
    about: dict[str, Any] = {"keys": KEYS[name], "absent": ABSENT[name]}
    if name == "qwen3_moe":  # a Mixtral's file says that it is a Llama, with experts
        about |= {"also": {"num_local_experts": "num_experts"}, "gguf": GGUF}
    kind = Family(name, Mixture, lambda foreign: _read(foreign, name), _write, _entries, FORMS[name], **about)
    return headed(kind, PLACES[name])


MIXTRAL, QWEN3_MOE = (_family(name) for name in FORMS)
