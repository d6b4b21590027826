"""Gemma 2 and the text models of Gemma 3 (Gemma Team 2024, arXiv:2408.00118; 2025, arXiv:2503.19786).

They have the Llama form with these changes: norms before and after each branch, norms that multiply by 1 + weight, a
GELU gate, token vectors multiplied by sqrt(width), and windows in most layers. Gemma 2 caps scores and logits. Gemma 3
has norms of queries and keys instead, and two rope bases: a small one in its windowed layers, and a large one in the
full layers. Only the large one is lengthened.
"""

from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field

from handscroll.base.errors import ConfigError
from handscroll.base.spec import LayerSpec
from handscroll.models import llama
from handscroll.models.foreign import Entry, Family, Foreign, end_tokens, layer_entries, required
from handscroll.models.gguf.gemma import GEMMA_2 as GGUF_2
from handscroll.models.gguf.gemma import GEMMA_3 as GGUF_3
from handscroll.models.heads import Places, headed
from handscroll.models.new import SIZES, About
from handscroll.models.positions import of_layer_type, read_positions, unscaled
from handscroll.models.sizes import FULL, SLIDING, RotaryHeads, unlengthened, windows_by_type
from handscroll.nn.attention import Heads
from handscroll.nn.marks import Marks
from handscroll.nn.norm import OffsetRMSNorm
from handscroll.nn.positions.rotary import Rotary
from handscroll.nn.shapes import Embeddings, Tokens

Name = Literal["gemma2", "gemma3_text"]


class GemmaConfig(RotaryHeads):
    """Sizes and switches. `windows` is empty, or has one entry for each layer (None: full attention).

    Scores are q.k / sqrt(`query_scalar`). `score_cap` and `logit_cap` bound scores and logits (None: unbounded).
    `local_base` is the rope base of the windowed layers, whose positions are never scaled (None: the same positions as
    in full layers).
    """

    family: Name = "gemma3_text"
    norm_eps: float = 1e-6
    tied: bool = True
    attention_bias: bool = False
    query_key_norm: bool = True
    query_scalar: int = Field(gt=0)
    score_cap: float | None = Field(default=None, gt=0)
    logit_cap: float | None = Field(default=None, gt=0)
    windows: tuple[int | None, ...] = ()
    local_base: float | None = Field(default=None, gt=1)
    bos: int | None = None
    eos: tuple[int, ...] = ()

    @property
    def every_positions(self) -> tuple[Rotary, ...]:
        if self.local_base is None:
            return (self.positions,)
        return self.positions, unlengthened(self.local_base, self.context, self.trained)

    @property
    def layer_form(self) -> dict[str, Any]:
        biases = {"attention_bias": self.attention_bias, "output_bias": self.attention_bias}
        scores = {"head_norms": self.query_key_norm, "scale": self.query_scalar**-0.5, "cap": self.score_cap}
        return {"norms": 4, "activation": "gelu-tanh"} | biases | scores


class Gemma(llama.Llama):
    """A decoder of the Gemma form."""

    config: GemmaConfig

    def __init__(self, config: GemmaConfig):
        super().__init__(config)
        self.logit_cap = config.logit_cap

    def new_norm(self, layer: LayerSpec) -> OffsetRMSNorm:
        return OffsetRMSNorm(layer.width, self.config.norm_eps)

    def heads(self, layer: LayerSpec) -> Heads:
        return replace(super().heads(layer), norm=OffsetRMSNorm)

    def embed(self, tokens: Tokens, marks: Marks) -> Embeddings:
        """Token vectors times sqrt(width), which is first rounded to their dtype, as in the reference library."""
        x = self.embedding(tokens)
        return x * float(torch.tensor(self.config.width**0.5).to(x.dtype))


ARCHITECTURES = {"gemma2": "Gemma2ForCausalLM", "gemma3_text": "Gemma3ForCausalLM"}
ACTIVATION = "gelu_pytorch_tanh"
EVERY = {"gemma2": 2, "gemma3_text": 6}  # without layer types, one layer in so many has full attention
BASES = {"gemma2": 10_000.0, "gemma3_text": 1_000_000.0}  # default if the file has none
LOCAL_BASE = 10_000.0
CAPS = {"gemma2": (50.0, 30.0), "gemma3_text": (None, None)}  # of scores and logits, if the file has none
ABSENT: dict[str, Foreign] = {
    name: {"max_position_embeddings": length, "bos_token_id": 2, "eos_token_id": 1}
    for name, length in (("gemma2", 8192), ("gemma3_text", 131_072))
}
# Older files have `hidden_act` beside `hidden_activation`; the reference library reads only the latter.
KEYS = (llama.KEYS - {"mlp_bias"}) | frozenset(
    """
    hidden_activation query_pre_attn_scalar sliding_window layer_types attn_logit_softcapping final_logit_softcapping
    use_bidirectional_attention
""".split()
)
KEYS_3 = KEYS | frozenset(["rope_local_base_freq", "sliding_window_pattern", "_sliding_window_pattern"])


def new(sizes: dict[str, Any], about: About, name: Name = "gemma2") -> GemmaConfig:
    """A configuration from the sizes of a recipe; by default no layer is windowed, and the head size scales the scores.

    `context` (with `base`) is short for unscaled positions of that many tokens.
    """
    form: dict[str, Any] = {"family": name, "query_key_norm": name == "gemma3_text"}
    form["score_cap"], form["logit_cap"] = CAPS[name]
    if "head_size" in sizes:
        form["query_scalar"] = sizes["head_size"]
    if "layers" in sizes:
        form["windows"] = (None,) * sizes["layers"]
    return GemmaConfig.parse(form | unscaled(sizes), SIZES)


def new_3(sizes: dict[str, Any], about: About) -> GemmaConfig:
    """The same as `new`, for Gemma 3."""
    return new(sizes, about, "gemma3_text")


def _read(foreign: Foreign, name: Name) -> GemmaConfig:
    third = name == "gemma3_text"
    for key in ("hidden_activation", "hidden_act"):
        if foreign.get(key) not in (None, ACTIVATION):
            raise ConfigError(f"family '{name}' with {key} '{foreign[key]}': only '{ACTIVATION}' is known for it")
    if foreign.get("use_bidirectional_attention"):
        raise ConfigError(
            f"family '{name}' with use_bidirectional_attention: only models that read from left to right are known"
        )
    head_size = foreign.get("head_dim") or 256
    caps = [foreign.get(key, default) for key, default in zip(CAP_KEYS, CAPS[name], strict=True)]
    if third and caps[0] is not None:
        raise ConfigError(f"family '{name}' with {CAP_KEYS[0]} {caps[0]}: the reference library does not read it")
    layers = required(foreign, "num_hidden_layers", name)
    values = {
        "family": name,
        "vocab": required(foreign, "vocab_size", name),
        "width": required(foreign, "hidden_size", name),
        "layers": layers,
        "heads": required(foreign, "num_attention_heads", name),
        "kv_heads": required(foreign, "num_key_value_heads", name),
        "head_size": head_size,
        "mlp_width": required(foreign, "intermediate_size", name),
        "norm_eps": foreign.get("rms_norm_eps", 1e-6),
        "tied": bool(foreign.get("tie_word_embeddings", True)),
        "attention_bias": bool(foreign.get("attention_bias", False)),
        "query_key_norm": third,
        "query_scalar": foreign.get("query_pre_attn_scalar", 256),
        "score_cap": caps[0],
        "logit_cap": caps[1],
        "windows": _windows(foreign, name, layers),
        "positions": read_positions(of_layer_type(foreign, FULL, (FULL, SLIDING)), head_size, BASES[name]),
        "local_base": _local_base(foreign, head_size) if third else None,
        "bos": foreign.get("bos_token_id"),
        "eos": end_tokens(foreign.get("eos_token_id")),
    }
    return GemmaConfig.parse(values, "config.json")


CAP_KEYS = ("attn_logit_softcapping", "final_logit_softcapping")


def _windows(foreign: Foreign, name: Name, layers: int) -> tuple[int | None, ...]:
    """One window for each layer, from `layer_types` or from the pattern in older files."""
    found = [foreign[key] for key in ("sliding_window_pattern", "_sliding_window_pattern") if foreign.get(key)]
    every = found[0] if found else EVERY[name]
    types = foreign.get("layer_types") or [SLIDING if (number + 1) % every else FULL for number in range(layers)]
    window = foreign.get("sliding_window", 4096)
    if SLIDING in types and window is None:
        raise ConfigError("layer_types names sliding_attention but no sliding_window is in force")
    return windows_by_type(types, window, layers) or (None,) * layers  # as saved readings know such a model


def _local_base(foreign: Foreign, head_size: int) -> float:
    """The rope base of the windowed layers, from a separate table or from a key beside the other base."""
    beside = foreign.get("rope_local_base_freq")
    table = (of_layer_type(foreign, SLIDING, (FULL, SLIDING)).get("rope_parameters") or {}) if _nested(foreign) else {}
    own = {"max_position_embeddings": foreign.get("max_position_embeddings"), "rope_parameters": table}
    positions = read_positions(own, head_size, LOCAL_BASE if beside is None else float(beside))
    if positions.scaling.name != "none":
        raise ConfigError(
            f"config.json: the rope of {SLIDING} is scaled ({table}); layers that see a window never need it, so only "
            f"that of {FULL} may be"
        )
    if beside is not None and positions.base != float(beside):
        raise ConfigError(
            f"config.json: rope_local_base_freq {beside} contradicts rope_theta {positions.base:g} of {SLIDING}"
        )
    return positions.base


def _nested(foreign: Foreign) -> bool:
    """Whether `rope_parameters` has a table for each kind of layer."""
    return any(isinstance(value, dict) for value in (foreign.get("rope_parameters") or {}).values())


def _write(config: GemmaConfig) -> Foreign:
    foreign = llama.written_form(config, ARCHITECTURES[config.family])
    del foreign["hidden_act"]
    foreign |= {
        "hidden_activation": ACTIVATION,
        "attention_bias": config.attention_bias,
        "query_pre_attn_scalar": config.query_scalar,
        "sliding_window": next((window for window in config.windows if window is not None), 4096),
        "layer_types": config.layer_types,
        "attn_logit_softcapping": config.score_cap,
        "final_logit_softcapping": config.logit_cap,
    }
    return foreign if config.local_base is None else foreign | {"rope_local_base_freq": config.local_base}


NAMES = llama.NAMES | {
    "post_attention_layernorm": "attention_branch_norm",
    "pre_feedforward_layernorm": "mlp_norm",
    "post_feedforward_layernorm": "mlp_branch_norm",
}


def _entries(config: GemmaConfig) -> list[Entry]:
    return llama.ends(config.tied) + layer_entries(config.layers, "model.layers", llama.parts(config, NAMES))


SMALL = llama.SMALL | {"query_pre_attn_scalar": 12, "sliding_window": 16, "pad_token_id": None}
FORMS: dict[str, dict[str, Foreign]] = {
    "gemma2": {
        "": SMALL | {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 4.0, "query_pre_attn_scalar": 8},
        "uncapped": SMALL | {"attn_logit_softcapping": None, "final_logit_softcapping": None, "attention_bias": True},
    },
    "gemma3_text": {
        "": SMALL | {"layer_types": [SLIDING, SLIDING, FULL], "rope_local_base_freq": 200.0, "head_dim": 16},
        "untied": SMALL | {"num_hidden_layers": 6, "query_pre_attn_scalar": 8, "tie_word_embeddings": False},
    },
}


GGUF = {"gemma2": GGUF_2, "gemma3_text": GGUF_3}


PLACES = {
    "gemma2": Places("Gemma2", answer=""),
    "gemma3_text": Places("Gemma3Text", tokens="", answer=""),
}


def _family(name: Name) -> Family:
    about = {"keys": KEYS_3 if name == "gemma3_text" else KEYS, "absent": ABSENT[name], "gguf": GGUF[name]}
    kind = Family(name, Gemma, lambda foreign: _read(foreign, name), _write, _entries, FORMS[name], **about)
    return headed(kind, PLACES[name])


GEMMA_2, GEMMA_3 = (_family(name) for name in ("gemma2", "gemma3_text"))
