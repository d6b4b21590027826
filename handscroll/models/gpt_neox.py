"""GPT-NeoX and Pythia (Black et al. 2022, arXiv:2204.06745; Biderman et al. 2023, arXiv:2304.01373).

Attention and MLP read the same hidden states, side by side. A part of each head is rotated (a quarter in the published
models). Norms are layer norms, and the projections have biases.
"""

from typing import Annotated, Any

from pydantic import Field, model_validator

from handscroll.base.errors import ConfigError
from handscroll.base.spec import LayerSpec
from handscroll.models import llama
from handscroll.models.foreign import Entry, Family, Foreign, Part, layer_entries
from handscroll.models.gguf.rope import read_rope, write_rope
from handscroll.models.gguf.side import GGUF_LAYER, GGUFSide, Header, Written, gguf_ends
from handscroll.models.heads import Places, headed
from handscroll.models.positions import POSITION_KEYS, read_positions, rotated_size
from handscroll.nn.block import Block

NAME = "gpt_neox"
# `gelu_fast` and `gelu_new` are the same function written in two ways.
ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu-tanh", "gelu_fast": "gelu-tanh", "gelu_pytorch_tanh": "gelu-tanh"}


class GPTNeoXConfig(llama.LlamaConfig):
    """Sizes and switches of a GPT-NeoX. `rotated` is the number of rotated values of each head.

    Without `parallel` the MLP reads the hidden states after attention.
    """

    family: str = NAME
    rotated: Annotated[int, Field(ge=2, multiple_of=2)]
    parallel: bool = True
    activation: str = "gelu"

    @model_validator(mode="after")
    def _whole(self):
        if self.rotated > self.head_size:
            raise ValueError(f"{self.rotated} numbers of a head of {self.head_size} cannot be rotated")
        if self.width != self.heads * self.head_size:
            raise ValueError(f"width {self.width} is not {self.heads} heads of {self.head_size}")
        return self

    @property
    def rotary_size(self) -> int:
        return self.rotated

    @property
    def layer_form(self) -> dict[str, Any]:
        activation = {"activation": ACTIVATIONS[self.activation]}
        return super().layer_form | {"norm": "layer", "gated": False} | activation


class GPTNeoX(llama.Llama):
    """A decoder of the GPT-NeoX form."""

    config: GPTNeoXConfig

    def block(self, layer: LayerSpec, number: int) -> Block:
        made = super().block(layer, number)
        made.parallel = self.config.parallel
        return made


KEYS = frozenset(
    """
    vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads hidden_act layer_norm_eps
    tie_word_embeddings bos_token_id eos_token_id attention_bias use_parallel_residual
""".split()
) | set(POSITION_KEYS)
ALSO = {"rotary_pct": "partial_rotary_factor", "rotary_emb_base": "rope_theta"}
ABSENT: Foreign = {"max_position_embeddings": 2048, "bos_token_id": 0, "eos_token_id": 2}  # as published
PART = 0.25  # of each head that is rotated by default


def _read(foreign: Foreign) -> GPTNeoXConfig:
    activation = foreign.get("hidden_act", "gelu")
    if activation not in ACTIVATIONS:
        raise ConfigError(f"family '{NAME}' with hidden_act '{activation}': known are {', '.join(ACTIVATIONS)}")
    values = llama.read_form(foreign, NAME)
    rotated = rotated_size(foreign, values["head_size"], PART)
    bias = bool(foreign.get("attention_bias", True))
    values |= {
        "rotated": rotated,
        "parallel": bool(foreign.get("use_parallel_residual", True)),
        "activation": activation,
        "norm_eps": foreign.get("layer_norm_eps", 1e-5),
        "attention_bias": bias,
        "output_bias": bias,
        "mlp_bias": True,
        "positions": read_positions(foreign, rotated, partial=True),
    }
    return GPTNeoXConfig.parse(values, "config.json")


def _write(config: GPTNeoXConfig) -> Foreign:
    written = llama.written_form(config, "GPTNeoXForCausalLM") | {
        "hidden_act": config.activation,
        "layer_norm_eps": config.norm_eps,
        "attention_bias": config.attention_bias,
        "use_parallel_residual": config.parallel,
        "rotary_pct": config.rotated / config.head_size,
        "rotary_emb_base": config.positions.base,
    }
    for key in ("num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta"):
        del written[key]
    return written


def _entries(config: GPTNeoXConfig) -> list[Entry]:
    bias = config.attention_bias
    heads = ("attention.query", "attention.key", "attention.value")
    parts = {
        "attention.query_key_value": Part(heads, bias, heads=config.heads),
        "attention.dense": Part("attention.output", bias),
        "mlp.dense_h_to_4h": Part("mlp.up", True),
        "mlp.dense_4h_to_h": Part("mlp.down", True),
        "input_layernorm": Part("attention_norm", True),
        "post_attention_layernorm": Part("mlp_norm", True),
    }
    ends = {"embed_in.weight": "embedding.weight", "final_layer_norm.weight": "norm.weight"}
    ends |= {"final_layer_norm.bias": "norm.bias"}
    entries = [Entry(f"gpt_neox.{theirs}", (ours,)) for theirs, ours in ends.items()]
    if not config.tied:
        entries.append(Entry("embed_out.weight", ("projection.weight",)))
    return entries + layer_entries(config.layers, "gpt_neox.layers", parts)


def _copies(config: GPTNeoXConfig) -> dict[str, str | None]:
    """The head that files of a tied model may repeat."""
    return {"embed_out.weight": "embedding.weight"} if config.tied else {}


def _from_gguf(header: Header) -> Foreign:
    size = header.need("embedding_length") // header.need("attention.head_count")
    rotated = header.need("rope.dimension_count")
    return {
        "vocab_size": header.rows("token_embd.weight"),
        "tie_word_embeddings": not header.has("output.weight"),
        "attention_bias": header.has("blk.0.attn_qkv.bias"),
        "partial_rotary_factor": rotated / size,
        **read_rope(header, rotated),
    }


def _to_gguf(config: GPTNeoXConfig, foreign: Foreign) -> Written:
    if config.tied or not config.attention_bias or config.activation != "gelu":
        raise ConfigError("llama.cpp reads a GPT-NeoX with biases, hidden_act 'gelu' and a head of its own only")
    return write_rope(config.positions, config.rotated)


def _gguf_entries(config: GPTNeoXConfig) -> list[Entry]:
    parts = {theirs: Part(ours, True) for theirs, ours in GGUF_LAYER.items()}
    last = Entry("output_norm.bias", ("norm.bias",))
    return [*gguf_ends(config.tied), last, *layer_entries(config.layers, "blk", parts)]


GGUF_KEYS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_epsilon": "layer_norm_eps",
    "use_parallel_residual": "use_parallel_residual",
}
GGUF = GGUFSide("gptneox", GGUF_KEYS, _from_gguf, _to_gguf, _gguf_entries)
SMALL: Foreign = {key: value for key, value in llama.SMALL.items() if key not in ("num_key_value_heads", "head_dim")}
FORMS = {
    "": SMALL | {"num_attention_heads": 3},
    "serial": SMALL
    | {"rotary_pct": 1.0, "use_parallel_residual": False, "hidden_act": "gelu_new", "tie_word_embeddings": True},
}
PLACES = Places("GPTNeoX", tokens="classifier", base="gpt_neox.", answer_base="gpt_neox.")
KIND = Family(NAME, GPTNeoX, _read, _write, _entries, FORMS, KEYS, copies=_copies, also=ALSO, absent=ABSENT, gguf=GGUF)
FAMILY = headed(KIND, PLACES)
