"""The GLM-4 form: `glm` (GLM-4, 2024) and `glm4` (GLM-4-0414, two more norms a layer; GLM Team 2024, arXiv:2406.12793).

It is a Llama that rotates half of each head, in adjacent pairs. Reading reorders the weight rows into halves and
writing reorders them into pairs, which changes no number. The original GLM of blank infilling is another family.
"""

from typing import Annotated, Any

from pydantic import Field, model_validator

from handscroll.base.errors import ConfigError
from handscroll.models import llama
from handscroll.models.foreign import Entry, Family, Foreign, Part, end_tokens, layer_entries, required
from handscroll.models.gguf.rope import read_rope, write_rope
from handscroll.models.gguf.side import BASE_KEYS, GGUFSide, Header, Written, gguf_ends
from handscroll.models.heads import Places, headed
from handscroll.models.new import SIZES, About
from handscroll.models.positions import read_positions, rotated_size, unscaled
from handscroll.models.sizes import RotaryHeads


class GLMConfig(RotaryHeads):
    """Sizes and switches. `rotated_size` is the number of rotated values of each head; the rest has no position."""

    family: str = "glm"
    rotated_size: Annotated[int, Field(ge=2, multiple_of=2)]
    norm_eps: float = 1.5625e-7
    attention_bias: bool = True
    bos: int | None = None
    eos: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _consistent(self):
        if self.rotated_size > self.head_size:
            raise ValueError(f"{self.rotated_size} numbers of a head of {self.head_size} cannot be rotated")
        return self

    @property
    def branch_norms(self) -> bool:
        """Whether the outputs of attention and MLP are normalised before they are added."""
        return self.family == "glm4"

    @property
    def rotary_size(self) -> int:
        return self.rotated_size

    @property
    def layer_form(self) -> dict[str, Any]:
        return {"norms": 4 if self.branch_norms else 2, "attention_bias": self.attention_bias}


ARCHITECTURES = {"glm": "GlmForCausalLM", "glm4": "Glm4ForCausalLM"}
KEYS = llama.KEYS - {"mlp_bias"}
ENDS = (151329, 151336, 151338)  # end tokens of every published GLM-4, if the file names none
ABSENT = {"max_position_embeddings": 131_072}
HALF = 0.5  # fraction of each head that is rotated by default


def new(sizes: dict[str, Any], about: About) -> GLMConfig:
    """A configuration from the sizes of a recipe, as for a Llama; half of each head is rotated by default."""
    values = {"context": about.longest, **sizes} if "positions" not in sizes else sizes
    half = {} if "head_size" not in sizes else {"rotated_size": int(HALF * sizes["head_size"])}
    return GLMConfig.parse(half | unscaled(values), SIZES)


def _read(foreign: Foreign, name: str) -> GLMConfig:
    if foreign.get("hidden_act", "silu") != "silu":
        raise ConfigError(f"family '{name}' with hidden_act '{foreign['hidden_act']}': only 'silu' is known for it")
    vocab, head_size = required(foreign, "vocab_size", name), foreign.get("head_dim") or 128
    rotated = rotated_size(foreign, head_size, HALF)
    ends = end_tokens(foreign.get("eos_token_id")) or tuple(end for end in ENDS if end < vocab)
    values = {
        "family": name,
        "vocab": vocab,
        "width": required(foreign, "hidden_size", name),
        "layers": required(foreign, "num_hidden_layers", name),
        "heads": required(foreign, "num_attention_heads", name),
        "kv_heads": required(foreign, "num_key_value_heads", name),
        "head_size": head_size,
        "rotated_size": rotated,
        "mlp_width": required(foreign, "intermediate_size", name),
        "norm_eps": foreign.get("rms_norm_eps", 1.5625e-7),
        "tied": bool(foreign.get("tie_word_embeddings", False)),
        "attention_bias": bool(foreign.get("attention_bias", True)),
        "positions": read_positions(foreign, rotated, partial=True),
        "bos": foreign.get("bos_token_id"),
        "eos": ends,
    }
    return GLMConfig.parse(values, "config.json")


def _write(config: GLMConfig) -> Foreign:
    return llama.written_form(config, ARCHITECTURES[config.family]) | {
        "partial_rotary_factor": config.rotated_size / config.head_size,
        "attention_bias": config.attention_bias,
        "pad_token_id": None,
    }


def _entries(config: GLMConfig) -> list[Entry]:
    parts = llama.parts(config, pairs=(config.head_size, config.rotated_size))
    del parts["mlp.gate_proj"], parts["mlp.up_proj"]
    parts["mlp.gate_up_proj"] = Part(("mlp.gate", "mlp.up"))
    if config.branch_norms:
        parts["post_self_attn_layernorm"] = Part("attention_branch_norm")
        parts["post_mlp_layernorm"] = Part("mlp_branch_norm")
    return llama.ends(config.tied) + layer_entries(config.layers, "model.layers", parts)


def _from_gguf(header: Header) -> Foreign:
    head_size = header.get(
        "attention.key_length", header.need("embedding_length") // header.need("attention.head_count")
    )
    header.only("attention.value_length", head_size)
    header.only("expert_count", 0)
    rotated = header.get("rope.dimension_count", int(HALF * head_size))
    return {
        "head_dim": head_size,
        "partial_rotary_factor": rotated / head_size,
        "vocab_size": header.rows("token_embd.weight"),
        "tie_word_embeddings": not header.has("output.weight"),
        "attention_bias": header.has("blk.0.attn_q.bias"),
        **read_rope(header, rotated),
    }


def _to_gguf(config: GLMConfig, foreign: Foreign) -> Written:
    rope = write_rope(config.positions, config.rotated_size)
    return Written({"attention.value_length": config.head_size} | rope.keys, rope.tensors)


def _gguf_entries(config: GLMConfig) -> list[Entry]:
    parts = llama.parts(config, llama.GGUF_NAMES, (config.head_size, config.rotated_size))
    del parts["ffn_gate"]
    parts["ffn_up"] = Part(("mlp.gate", "mlp.up"))
    parts["post_attention_norm"], parts["post_ffw_norm"] = Part("attention_branch_norm"), Part("mlp_branch_norm")
    return gguf_ends(config.tied) + layer_entries(config.layers, "blk", parts)


GGUF = GGUFSide("glm4", BASE_KEYS, _from_gguf, _to_gguf, _gguf_entries)
SMALL = llama.SMALL | {"head_dim": 16, "pad_token_id": None}
FORMS: dict[str, dict[str, Foreign]] = {
    "glm": {"": SMALL, "unbiased": SMALL | {"attention_bias": False, "tie_word_embeddings": True}},
    "glm4": {"": SMALL | {"eos_token_id": [2, 5, 7]}},
}


def _family(name: str) -> Family:
    side = GGUF if name == "glm4" else None  # llama.cpp stores the older form as 'chatglm'; such files are not read
    about = {"keys": KEYS, "gguf": side, "absent": ABSENT}
    kind = Family(name, llama.Llama, lambda foreign: _read(foreign, name), _write, _entries, FORMS[name], **about)
    return headed(kind, Places({"glm": "Glm", "glm4": "Glm4"}[name], answer=""))


GLM_4, GLM_4_0414 = (_family(name) for name in FORMS)
