"""Names of the same weights on both sides: ours and the Hugging Face layout's."""

from dataclasses import dataclass

from handscroll.models.bloom import BloomConfig
from handscroll.models.gpt2 import GPT2Config
from handscroll.models.llama import LlamaConfig


@dataclass(frozen=True)
class Entry:
    """One foreign tensor. Several of ours: stacked along their output dimension (a fused projection).

    `transposed`: stored (in, out), as GPT-2's Conv1D does. `heads`: ours are interleaved head by head, so many.
    """

    theirs: str
    ours: tuple[str, ...]
    transposed: bool = False
    heads: int = 0


def llama_entries(config: LlamaConfig) -> list[Entry]:
    entries = [Entry("model.embed_tokens.weight", ("embedding.weight",)), Entry("model.norm.weight", ("norm.weight",))]
    if not config.tied:
        entries.append(Entry("lm_head.weight", ("projection.weight",)))
    modules = {
        "self_attn.q_proj": ("attention.query", config.attention_bias),
        "self_attn.k_proj": ("attention.key", config.attention_bias),
        "self_attn.v_proj": ("attention.value", config.attention_bias),
        "self_attn.o_proj": ("attention.output", config.output_bias),
        "mlp.gate_proj": ("mlp.gate", config.mlp_bias),
        "mlp.up_proj": ("mlp.up", config.mlp_bias),
        "mlp.down_proj": ("mlp.down", config.mlp_bias),
        "input_layernorm": ("attention_norm", False),
        "post_attention_layernorm": ("mlp_norm", False),
    }
    if config.query_key_norm:
        modules |= {
            "self_attn.q_norm": ("attention.query_norm", False),
            "self_attn.k_norm": ("attention.key_norm", False),
        }
    for number in range(config.layers):
        for theirs, (ours, bias) in modules.items():
            for part in ("weight", "bias") if bias else ("weight",):
                entries.append(Entry(f"model.layers.{number}.{theirs}.{part}", (f"layers.{number}.{ours}.{part}",)))
    return entries


def gpt2_entries(config: GPT2Config) -> list[Entry]:
    entries = [
        Entry("transformer.wte.weight", ("embedding.weight",)),
        Entry("transformer.wpe.weight", ("position_embedding.weight",)),
        Entry("transformer.ln_f.weight", ("norm.weight",)),
        Entry("transformer.ln_f.bias", ("norm.bias",)),
    ]
    if not config.tied:
        entries.append(Entry("lm_head.weight", ("projection.weight",)))
    fused = ("attention.query", "attention.key", "attention.value")
    modules = {
        "ln_1": (("attention_norm",), False),
        "attn.c_attn": (fused, True),
        "attn.c_proj": (("attention.output",), True),
        "ln_2": (("mlp_norm",), False),
        "mlp.c_fc": (("mlp.up",), True),
        "mlp.c_proj": (("mlp.down",), True),
    }
    for number in range(config.layers):
        for theirs, (ours, convolution) in modules.items():
            for part in ("weight", "bias"):
                names = tuple(f"layers.{number}.{name}.{part}" for name in ours)
                transposed = convolution and part == "weight"
                entries.append(Entry(f"transformer.h.{number}.{theirs}.{part}", names, transposed))
    return entries


def bloom_entries(config: BloomConfig) -> list[Entry]:
    entries = [Entry("transformer.word_embeddings.weight", ("embedding.weight",))]
    outside = {"word_embeddings_layernorm": "embedding_norm", "ln_f": "norm"}
    entries += [Entry(f"transformer.{t}.{p}", (f"{o}.{p}",)) for t, o in outside.items() for p in ("weight", "bias")]
    if not config.tied:
        entries.append(Entry("lm_head.weight", ("projection.weight",)))
    modules = {
        "input_layernorm": ("attention_norm",),
        "self_attention.query_key_value": ("attention.query", "attention.key", "attention.value"),
        "self_attention.dense": ("attention.output",),
        "post_attention_layernorm": ("mlp_norm",),
        "mlp.dense_h_to_4h": ("mlp.up",),
        "mlp.dense_4h_to_h": ("mlp.down",),
    }
    for number in range(config.layers):
        for theirs, ours in modules.items():
            for part in ("weight", "bias"):
                names = tuple(f"layers.{number}.{name}.{part}" for name in ours)
                heads = config.heads if len(names) > 1 else 0
                entries.append(Entry(f"transformer.h.{number}.{theirs}.{part}", names, heads=heads))
    return entries
