"""BLOOM (BigScience 2022, arXiv:2211.05100): pre-norm decoder with ALiBi, a norm after the embedding and a GELU MLP."""

from dataclasses import replace

from pydantic import Field

from handscroll.base.errors import ConfigError
from handscroll.base.spec import ModelSpec
from handscroll.models.foreign import (
    Entry,
    Family,
    Foreign,
    end_tokens,
    original_length,
    required,
    written_ends,
)
from handscroll.models.gguf.side import GGUF_LAYER, GGUFSide, Header, Written, gguf_ends, gguf_layers
from handscroll.models.heads import Places, headed
from handscroll.models.model import Layered
from handscroll.models.sizes import DECODER_HEADS, WholeHeads
from handscroll.nn.bias import ALiBi
from handscroll.nn.marks import Marks
from handscroll.nn.norm import LayerNorm
from handscroll.nn.positions.slopes import Slopes
from handscroll.nn.shapes import Embeddings, Tokens


class BloomConfig(WholeHeads):
    """Sizes of a BLOOM.

    `context` is the number of tokens that it may be used with now, and `original` that before it was lengthened here.
    `factor` divides the slopes of ALiBi (`nn/bias.py`).
    """

    head_kinds = DECODER_HEADS
    head_pool = "last"
    family: str = "bloom"
    context: int
    original: int | None = None
    factor: float = Field(default=1.0, ge=1.0, allow_inf_nan=False)
    norm_eps: float = 1e-5
    tied: bool = True
    bos: int | None = None
    eos: tuple[int, ...] = ()

    @property
    def mlp_width(self) -> int:
        return 4 * self.width

    @property
    def trained(self) -> int:
        return self.original or self.context

    @property
    def spec(self) -> ModelSpec:
        positions = Slopes(context=self.context, trained=self.trained, factor=self.factor)
        return self.model_spec(positions, self.layer_spec(), extra=2 * self.width)  # a norm


class Bloom(Layered):
    """A BLOOM decoder; its layers are those of GPT-2."""

    def begin(self) -> None:
        self.embedding_norm = LayerNorm(self.config.width, eps=self.config.norm_eps)

    def embed(self, tokens: Tokens, marks: Marks) -> Embeddings:
        return self.embedding_norm(self.embedding(tokens))

    def bias(self) -> ALiBi:
        return ALiBi(self.config.heads, self.config.factor)


KEYS = frozenset(
    """
    vocab_size hidden_size n_embed n_layer num_hidden_layers n_head num_attention_heads layer_norm_epsilon seq_length
    apply_residual_connection_post_layernorm tie_word_embeddings bos_token_id eos_token_id alibi_factor alibi_heads
    original_max_position_embeddings n_inner
""".split()
)
TRAINED = 2048  # tokens, for every published BLOOM
# Other libraries refuse this model_type, because they would use the trained slopes. A class that loads the folder
# despite its type refuses it too: it does not find the number of heads, which is under `alibi_heads`.
INTERPOLATED = "bloom-interpolated"


def _read(foreign: Foreign, name: str) -> BloomConfig:
    if foreign.get("apply_residual_connection_post_layernorm", False):
        raise ConfigError(f"{name} with apply_residual_connection_post_layernorm: only false is known")
    if ("alibi_factor" in foreign) != (name == INTERPOLATED):
        raise ConfigError(f"config.json: 'alibi_factor' belongs to model_type '{INTERPOLATED}', which needs it")
    width = _either(foreign, ("hidden_size", "n_embed"), name)
    if foreign.get("n_inner") not in (None, 4 * width):
        raise ConfigError(f"{name} with n_inner {foreign['n_inner']}: only 4 x hidden_size ({4 * width}) is known")
    values = {
        "vocab": required(foreign, "vocab_size", name),
        "width": width,
        "layers": _either(foreign, ("n_layer", "num_hidden_layers"), name),
        "heads": _either(foreign, ("n_head", "num_attention_heads", "alibi_heads"), name),
        "context": foreign.get("seq_length") or TRAINED,
        "original": foreign.get("original_max_position_embeddings"),
        "factor": foreign.get("alibi_factor", 1.0),
        "norm_eps": foreign.get("layer_norm_epsilon", 1e-5),
        "tied": bool(foreign.get("tie_word_embeddings", True)),
        "bos": foreign.get("bos_token_id"),
        "eos": end_tokens(foreign.get("eos_token_id")),
    }
    return BloomConfig.parse(values, "config.json")


def _either(foreign: Foreign, keys: tuple[str, ...], name: str) -> int:
    found = {foreign[key] for key in keys if foreign.get(key) is not None}
    if len(found) > 1:
        raise ConfigError(f"config.json: {' and '.join(keys)} mean the same and differ: {sorted(found)}")
    return found.pop() if found else required(foreign, keys[0], name)


def _write(config: BloomConfig) -> Foreign:
    foreign: Foreign = {
        "architectures": ["BloomForCausalLM"],
        "model_type": "bloom",
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "n_layer": config.layers,
        "n_head": config.heads,
        "layer_norm_epsilon": config.norm_eps,
        "seq_length": config.context,
        "tie_word_embeddings": config.tied,
        "bos_token_id": config.bos,
        "eos_token_id": written_ends(config.eos),
    }
    if config.factor != 1.0:
        foreign |= {"model_type": INTERPOLATED, "architectures": ["BloomInterpolatedForCausalLM"]}
        foreign |= {"alibi_factor": config.factor, "n_head": None, "alibi_heads": config.heads}
    return foreign | original_length(config)


def _entries(config: BloomConfig) -> list[Entry]:
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


GGUF_KEYS = {
    "context_length": "seq_length",
    "embedding_length": "hidden_size",
    "block_count": "n_layer",
    "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}


def _from_gguf(header: Header) -> Foreign:
    header.only("attention.head_count_kv", header.need("attention.head_count"))
    header.only("feed_forward_length", 4 * header.need("embedding_length"))
    tied = not header.has("output.weight")
    return {"vocab_size": header.rows("token_embd.weight"), "tie_word_embeddings": tied}


def _to_gguf(config: BloomConfig, foreign: Foreign) -> Written:
    return Written({"attention.head_count_kv": config.heads, "feed_forward_length": 4 * config.width}, {})


def _gguf_entries(config: BloomConfig) -> list[Entry]:
    entries = [*gguf_ends(config.tied), Entry("output_norm.bias", ("norm.bias",))]
    entries += [Entry(f"token_embd_norm.{part}", (f"embedding_norm.{part}",)) for part in ("weight", "bias")]
    return entries + gguf_layers(config.layers, GGUF_LAYER)


GGUF = GGUFSide("bloom", GGUF_KEYS, _from_gguf, _to_gguf, _gguf_entries)
SMALL: Foreign = {
    "vocab_size": 97,
    "hidden_size": 48,
    "n_layer": 3,
    "n_head": 6,  # a number of heads that is not a power of two
    "seq_length": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FORMS: dict[str, dict[str, Foreign]] = {
    "bloom": {"": SMALL, "untied": SMALL | {"tie_word_embeddings": False}},
    INTERPOLATED: {"": SMALL | {"alibi_factor": 1.5, "n_head": None, "alibi_heads": 6}},
}
PLACES = Places("Bloom", tokens="classifier", base="transformer.", answer_base="transformer.")
BLOOM, BLOOM_INTERPOLATED = (
    headed(
        Family(
            name,
            Bloom,
            lambda foreign, name=name: _read(foreign, name),
            _write,
            _entries,
            forms,
            KEYS,
            absent={"bos_token_id": 1, "eos_token_id": 2},
            own=name == INTERPOLATED,
            gguf=None if name == INTERPOLATED else GGUF,
        ),
        PLACES if name == "bloom" else replace(PLACES, prefix="BloomInterpolated"),
    )
    for name, forms in FORMS.items()
)
