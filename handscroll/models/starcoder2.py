"""StarCoder2 (Lozhkov et al. 2024, arXiv:2402.19173): a Llama with layer norms, biases and a plain GELU MLP."""

from typing import Any

from handscroll.base.errors import ConfigError
from handscroll.models import llama
from handscroll.models.foreign import Entry, Family, Foreign, Part, layer_entries, only
from handscroll.models.gguf.side import BASE_KEYS, GGUFSide, Header, Written, gguf_ends
from handscroll.models.heads import Places, headed
from handscroll.models.positions import read_positions

NAME = "starcoder2"


class StarCoder2Config(llama.LlamaConfig):
    """Sizes and switches of a StarCoder2."""

    family: str = NAME

    @property
    def layer_form(self) -> dict[str, Any]:
        return super().layer_form | {"norm": "layer", "gated": False, "activation": "gelu-tanh"}


KEYS = (llama.KEYS - {"rms_norm_eps", "attention_bias", "mlp_bias"}) | frozenset(
    "norm_epsilon norm_type use_bias mlp_type activation_function sliding_window".split()
)
ABSENT: Foreign = {
    "max_position_embeddings": 4096,
    "num_key_value_heads": 2,
    "bos_token_id": 50_256,
    "eos_token_id": 50_256,
}
ONLY = {
    "hidden_act": "gelu_pytorch_tanh",
    "activation_function": "gelu",  # in the published files; the reference library reads `hidden_act` alone
    "norm_type": "layer_norm",
    "mlp_type": "default",
}


def _read(foreign: Foreign) -> StarCoder2Config:
    only(foreign, NAME, ONLY)
    values = llama.read_form(foreign, NAME)
    window, bias = foreign.get("sliding_window"), bool(foreign.get("use_bias", True))
    values |= {
        "tied": bool(foreign.get("tie_word_embeddings", True)),
        "norm_eps": foreign.get("norm_epsilon", 1e-5),
        "attention_bias": bias,
        "output_bias": bias,
        "mlp_bias": bias,
        "windows": () if window is None else (window,) * values["layers"],
        "positions": read_positions(foreign, values["head_size"]),
    }
    return StarCoder2Config.parse(values, "config.json")


def _write(config: StarCoder2Config) -> Foreign:
    written = llama.written_form(config, "Starcoder2ForCausalLM") | {
        "hidden_act": ONLY["hidden_act"],
        "norm_epsilon": config.norm_eps,
        "use_bias": config.mlp_bias,
        "sliding_window": next(iter(config.windows), None),
    }
    del written["rms_norm_eps"]
    return written


def _entries(config: StarCoder2Config) -> list[Entry]:
    parts = llama.parts(config)
    for gated in ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"):
        del parts[gated]
    parts |= {
        "mlp.c_fc": Part("mlp.up", config.mlp_bias),
        "mlp.c_proj": Part("mlp.down", config.mlp_bias),
    }
    last = Entry("model.norm.bias", ("norm.bias",))
    return [*llama.ends(config.tied), last, *layer_entries(config.layers, "model.layers", parts)]


def _from_gguf(header: Header) -> Foreign:
    found = llama.from_gguf(header)
    return found | {"use_bias": found.pop("attention_bias")}


def _to_gguf(config: StarCoder2Config, foreign: Foreign) -> Written:
    if not config.mlp_bias:
        raise ConfigError("llama.cpp reads a StarCoder2 with biases only")
    return llama.to_gguf(config)


def _gguf_entries(config: StarCoder2Config) -> list[Entry]:
    parts = llama.parts(config, llama.GGUF_NAMES)
    del parts["ffn_gate"]
    last = Entry("output_norm.bias", ("norm.bias",))
    return [*gguf_ends(config.tied), last, *layer_entries(config.layers, "blk", parts)]


GGUF_KEYS = {key: theirs for key, theirs in BASE_KEYS.items() if theirs != "rms_norm_eps"} | {
    "attention.layer_norm_epsilon": "norm_epsilon"
}
GGUF = GGUFSide(NAME, GGUF_KEYS, _from_gguf, _to_gguf, _gguf_entries)
FORMS = {
    "": llama.SMALL | {"tie_word_embeddings": True},
    "window": llama.SMALL | {"sliding_window": 16, "use_bias": False, "tie_word_embeddings": False},
}
PLACES = Places("Starcoder2", answer="")
FAMILY = headed(Family(NAME, llama.Llama, _read, _write, _entries, FORMS, KEYS, absent=ABSENT, gguf=GGUF), PLACES)
