"""Phi-3 and Phi-4-mini (Microsoft 2024, arXiv:2404.14219; 2025, arXiv:2503.01743): a Llama with fused projections.

Longer models are scaled by LongRoPE. Phi-4-mini rotates three quarters of each head.
"""

from typing import Annotated

from pydantic import Field, model_validator

from handscroll.base.errors import ConfigError
from handscroll.models import llama
from handscroll.models.foreign import Entry, Family, Foreign, Part, layer_entries, only
from handscroll.models.gguf.rope import read_rope, write_rope
from handscroll.models.gguf.side import BASE_KEYS, GGUFSide, Header, Written, gguf_ends
from handscroll.models.heads import Places, headed
from handscroll.models.positions import read_positions, rotated_size

NAME = "phi3"


class Phi3Config(llama.LlamaConfig):
    """Sizes and switches of a Phi-3. `rotated` is the number of rotated values of each head."""

    family: str = NAME
    rotated: Annotated[int, Field(ge=2, multiple_of=2)]

    @model_validator(mode="after")
    def _as_published(self):
        if self.rotated > self.head_size:
            raise ValueError(f"{self.rotated} numbers of a head of {self.head_size} cannot be rotated")
        if self.width != self.heads * self.head_size:
            raise ValueError(f"width {self.width} is not {self.heads} heads of {self.head_size}")
        if self.positions.scaling.name not in ("none", "longrope"):
            raise ValueError(
                f"family '{NAME}' knows no scaling of rotary positions but longrope, so other libraries would refuse "
                f"'{self.positions.scaling.name}': lengthen it with ntk, or with longrope and its factors"
            )
        return self

    @property
    def rotary_size(self) -> int:
        return self.rotated


# Phi-4-mini's files have these; the reference library reads none of them.
ONLY = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "lm_head_bias": False,
    "full_attn_mod": 1,
    "interpolate_factor": 1,
}


KEYS = llama.KEYS | ONLY.keys() | {"sliding_window"}
ABSENT: Foreign = {"max_position_embeddings": 4096, "bos_token_id": 1, "eos_token_id": 32_000}  # as published


def _read(foreign: Foreign) -> Phi3Config:
    only(foreign, NAME, ONLY)
    values, window = llama.read_form(foreign, NAME), foreign.get("sliding_window")
    rotated = rotated_size(foreign, values["head_size"])
    if not foreign.get("rope_scaling") and "long_factor" not in (foreign.get("rope_parameters") or {}):
        foreign = {
            **foreign,
            "original_max_position_embeddings": None,
        }  # a default that nobody reads
    values |= {
        "rotated": rotated,
        "norm_eps": foreign.get("rms_norm_eps", 1e-5),
        "windows": () if window is None else (window,) * values["layers"],
        "positions": read_positions(foreign, rotated, partial=True),
    }
    return Phi3Config.parse(values, "config.json")


def _write(config: Phi3Config) -> Foreign:
    written = llama.written_form(config, "Phi3ForCausalLM") | {
        "partial_rotary_factor": config.rotated / config.head_size,
        "sliding_window": next(iter(config.windows), None),
        "original_max_position_embeddings": config.trained,
        "pad_token_id": None,  # the reference's own default is a token that small vocabularies lack
    }
    scaling = written["rope_scaling"]
    if scaling is not None:  # the published form, which older readers insist on, leaves out what the lengths say
        scaling["type"] = scaling.pop("rope_type")
        del scaling["original_max_position_embeddings"]
        if scaling["factor"] == config.context / config.trained:
            del scaling["factor"]
    return written


def _entries(config: Phi3Config) -> list[Entry]:
    heads = ("attention.query", "attention.key", "attention.value")
    parts = {
        "self_attn.qkv_proj": Part(heads),
        "self_attn.o_proj": Part("attention.output"),
        "mlp.gate_up_proj": Part(("mlp.gate", "mlp.up")),
        "mlp.down_proj": Part("mlp.down"),
        "input_layernorm": Part("attention_norm"),
        "post_attention_layernorm": Part("mlp_norm"),
    }
    return llama.ends(config.tied) + layer_entries(config.layers, "model.layers", parts)


def _from_gguf(header: Header) -> Foreign:
    size = header.need("embedding_length") // header.need("attention.head_count")
    rotated = header.get("rope.dimension_count", size)
    return {
        "vocab_size": header.rows("token_embd.weight"),
        "tie_word_embeddings": not header.has("output.weight"),
        "sliding_window": header.get("attention.sliding_window") or None,
        "partial_rotary_factor": rotated / size,
        **read_rope(header, rotated, tensors=True),
    }


def _to_gguf(config: Phi3Config, foreign: Foreign) -> Written:
    window = next(iter(config.windows), None)
    if window is not None and window < config.context:
        raise ConfigError(
            f"llama.cpp reads all keys in every layer of a '{NAME}': a window of {window} is not exported"
        )
    rope = write_rope(config.positions, config.rotated, tensors=True)
    return Written(rope.keys if window is None else rope.keys | {"attention.sliding_window": window}, rope.tensors)


def _gguf_entries(config: Phi3Config) -> list[Entry]:
    parts = {
        "attn_qkv": Part(("attention.query", "attention.key", "attention.value")),
        "attn_output": Part("attention.output"),
        "ffn_up": Part(("mlp.gate", "mlp.up")),
        "ffn_down": Part("mlp.down"),
        "attn_norm": Part("attention_norm"),
        "ffn_norm": Part("mlp_norm"),
    }
    return gguf_ends(config.tied) + layer_entries(config.layers, "blk", parts)


GGUF_KEYS = {key: theirs for key, theirs in BASE_KEYS.items() if theirs != "head_dim"}
GGUF = GGUFSide(NAME, GGUF_KEYS, _from_gguf, _to_gguf, _gguf_entries)
SMALL = llama.SMALL | {"pad_token_id": None}
LONG = {
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "partial_rotary_factor": 0.75,
    "original_max_position_embeddings": 32,
    "tie_word_embeddings": True,
    "rope_scaling": {
        "type": "longrope",
        "short_factor": [1.0, 1.05, 1.1, 1.2, 1.3, 1.4],
        "long_factor": [1.1, 1.4, 1.9, 2.0, 2.6, 3.0],
    },
}
FORMS = {"": SMALL | {"sliding_window": 24}, "long": SMALL | LONG}
PLACES = Places("Phi3", answer="")
FAMILY = headed(Family(NAME, llama.Llama, _read, _write, _entries, FORMS, KEYS, absent=ABSENT, gguf=GGUF), PLACES)
