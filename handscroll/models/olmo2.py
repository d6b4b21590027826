"""OLMo 2 (OLMo Team 2024, arXiv:2501.00656): a Llama that normalises what its branches give, not what they read.

The queries of all heads are normalised together, and so are the keys.
"""

from functools import partial
from typing import Any

from handscroll.base.errors import ConfigError
from handscroll.base.spec import LayerSpec
from handscroll.models import llama
from handscroll.models.foreign import Entry, Family, Foreign, Part, layer_entries, only
from handscroll.models.gguf.side import BASE_KEYS, GGUFSide, Written, gguf_ends
from handscroll.models.heads import Places, headed
from handscroll.models.positions import read_positions
from handscroll.nn.attention import Attention
from handscroll.nn.block import Block, Norms

NAME = "olmo2"


class Olmo2Config(llama.LlamaConfig):
    """Sizes and switches of an OLMo 2."""

    family: str = NAME
    query_key_norm: bool = True

    @property
    def layer_form(self) -> dict[str, Any]:
        return super().layer_form | {"head_norms": False, "joint_norms": self.query_key_norm}


class Olmo2(llama.Llama):
    """A decoder of OLMo 2."""

    def block(self, layer: LayerSpec, number: int) -> Block:
        norms = Norms(partial(self.new_norm, layer), before=False, branch=True)
        return Block(Attention(self.heads(layer), number), self.mlp(layer), norms)


def _read(foreign: Foreign) -> Olmo2Config:
    only(foreign, NAME, llama.SILU)
    values = llama.read_form(foreign, NAME)
    bias = bool(foreign.get("attention_bias", False))
    values |= {
        "norm_eps": foreign.get("rms_norm_eps", 1e-5),
        "attention_bias": bias,
        "output_bias": bias,
        "positions": read_positions(foreign, values["head_size"]),
    }
    return Olmo2Config.parse(values, "config.json")


def _write(config: Olmo2Config) -> Foreign:
    written = llama.written_form(config, "Olmo2ForCausalLM") | {"attention_bias": config.attention_bias}
    return written | {"pad_token_id": None}  # the reference's own default would be a token of the vocabulary


def _entries(config: Olmo2Config) -> list[Entry]:
    parts = llama.parts(config)
    del parts["input_layernorm"]
    parts["post_attention_layernorm"] = Part("attention_branch_norm")
    parts["post_feedforward_layernorm"] = Part("mlp_branch_norm")
    return llama.ends(config.tied) + layer_entries(config.layers, "model.layers", parts)


def _to_gguf(config: Olmo2Config, foreign: Foreign) -> Written:
    if config.attention_bias or config.tied:
        raise ConfigError("llama.cpp reads an OLMo 2 without biases and with a head of its own only")
    return llama.to_gguf(config)


def _gguf_entries(config: Olmo2Config) -> list[Entry]:
    parts = llama.parts(config, llama.GGUF_NAMES)
    parts["post_attention_norm"], parts["post_ffw_norm"] = Part("attention_branch_norm"), Part("mlp_branch_norm")
    del parts["attn_norm"], parts["ffn_norm"]
    return gguf_ends(config.tied) + layer_entries(config.layers, "blk", parts)


GGUF = GGUFSide(NAME, BASE_KEYS, llama.from_gguf, _to_gguf, _gguf_entries)
KEYS = llama.KEYS - {"mlp_bias"}
ABSENT: Foreign = {"max_position_embeddings": 2048, "eos_token_id": 50279}  # what a file leaves out, as published
SMALL = llama.SMALL | {"pad_token_id": None}
FORMS = {"": SMALL, "biased": SMALL | {"attention_bias": True, "tie_word_embeddings": True, "head_dim": 12}}
PLACES = Places("Olmo2", tokens="", answer="")
FAMILY = headed(Family(NAME, Olmo2, _read, _write, _entries, FORMS, KEYS, absent=ABSENT, gguf=GGUF), PLACES)
