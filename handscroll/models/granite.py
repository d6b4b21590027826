"""Granite 3 (IBM 2024): a Llama with four multipliers: of token vectors, scores, branches and logits."""

from typing import Any

from pydantic import Field
from torch import Tensor

from handscroll.base.spec import LayerSpec
from handscroll.models import llama
from handscroll.models.foreign import Family, Foreign, only
from handscroll.models.gguf.side import BASE_KEYS, GGUFSide
from handscroll.models.heads import Places, headed
from handscroll.models.positions import read_positions
from handscroll.nn.block import Block
from handscroll.nn.marks import Marks
from handscroll.nn.norm import Times
from handscroll.nn.shapes import Embeddings, Tokens

NAME = "granite"


class GraniteConfig(llama.LlamaConfig):
    """Sizes and switches of a Granite; logits are divided by `logits_divisor`."""

    family: str = NAME
    embedding_multiplier: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    score_multiplier: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    branch_multiplier: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    logits_divisor: float = Field(default=1.0, gt=0, allow_inf_nan=False)

    @property
    def layer_form(self) -> dict[str, Any]:
        return super().layer_form | {"scale": self.score_multiplier}


class Granite(llama.Llama):
    """A decoder of the Granite form."""

    config: GraniteConfig

    def block(self, layer: LayerSpec, number: int) -> Block:
        made = super().block(layer, number)
        made.attention_branch_norm = made.mlp_branch_norm = Times(self.config.branch_multiplier)
        return made

    def embed(self, tokens: Tokens, marks: Marks) -> Embeddings:
        return self.embedding(tokens) * self.config.embedding_multiplier

    def prepared(self, hidden: Tensor) -> Tensor:
        """Hidden states divided by the divisor of the logits, for `head`."""
        return hidden / self.config.logits_divisor


MULTIPLIERS = {
    "embedding_multiplier": "embedding_multiplier",
    "attention_multiplier": "score_multiplier",
    "residual_multiplier": "branch_multiplier",
    "logits_scaling": "logits_divisor",
}


def _read(foreign: Foreign) -> GraniteConfig:
    only(foreign, NAME, llama.SILU)
    values = llama.read_form(foreign, NAME)
    bias = bool(foreign.get("attention_bias", False))
    values |= {
        "norm_eps": foreign.get("rms_norm_eps", 1e-6),
        "attention_bias": bias,
        "output_bias": bias,
        "mlp_bias": bool(foreign.get("mlp_bias", False)),
        "positions": read_positions(foreign, values["head_size"]),
        **{ours: foreign.get(theirs, 1.0) for theirs, ours in MULTIPLIERS.items()},
    }
    return GraniteConfig.parse(values, "config.json")


def _write(config: GraniteConfig) -> Foreign:
    multipliers = {theirs: getattr(config, ours) for theirs, ours in MULTIPLIERS.items()}
    biases = {"attention_bias": config.attention_bias, "mlp_bias": config.mlp_bias}
    return llama.written_form(config, "GraniteForCausalLM") | biases | multipliers


GGUF_KEYS = BASE_KEYS | {
    "embedding_scale": "embedding_multiplier",
    "attention.scale": "attention_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}
GGUF = GGUFSide(
    NAME,
    GGUF_KEYS,
    lambda header: llama.from_gguf(header, mlp_bias=True, tensors=True),
    lambda config, foreign: llama.to_gguf(config, tensors=True),
    lambda config: llama.gguf_entries(config, paired=True),
)
KEYS = llama.KEYS | MULTIPLIERS.keys()
ABSENT: Foreign = {"max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2}  # as published
SMALL = llama.SMALL | {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.25,
    "residual_multiplier": 0.5,
    "logits_scaling": 2.0,
}
FORMS = {
    "": SMALL,
    "biased": llama.SMALL | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
}
PLACES = Places("Granite", text="", tokens="", answer="")
FAMILY = headed(Family(NAME, Granite, _read, _write, llama.entries, FORMS, KEYS, absent=ABSENT, gguf=GGUF), PLACES)
