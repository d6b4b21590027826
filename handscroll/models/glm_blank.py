"""The original GLM (Du et al. 2022, arXiv:2103.10360): blank infilling with two-dimensional learned positions.

The text around the blanks is read in both directions. The fillings are written from left to right and see all of it.
`model_type` "glm-blank" exists only here: the published checkpoints of this model are pickles with remote code under
the name "glm", which belongs to GLM-4 in `transformers`; they are not read.
"""

from typing import Any

from pydantic import Field, model_validator
from torch import nn

from handscroll.base.errors import CapacityError
from handscroll.base.spec import ModelSpec
from handscroll.models.foreign import Entry, Family, Foreign, end_tokens, required
from handscroll.models.model import Layered
from handscroll.models.new import SIZES, About
from handscroll.models.sizes import WholeHeads
from handscroll.nn.blanks import SeesText, parted
from handscroll.nn.marks import Marks
from handscroll.nn.mask import Causal, Mask
from handscroll.nn.positions.pairs import Pairs
from handscroll.nn.shapes import Embeddings, Tokens
from handscroll.text.blanks import BlankTokens


class BlankGLMConfig(WholeHeads):
    """Sizes. `context` counts the positions of a text with its blanks, `inside` those in one blank, with its start
    token.

    `blank` and `rest` are the tokens of a span ([MASK]) and of all that follows ([gMASK]). `start` ([sop]) begins the
    filling of a blank, and `end` ([eop]) ends it.
    """

    family: str = "glm-blank"
    mlp_width: int
    context: int = Field(ge=1)
    inside: int = Field(ge=2)
    blank: int
    rest: int
    start: int
    end: int
    norm_eps: float = 1e-5
    tied: bool = True
    bos: int | None = None
    eos: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _consistent(self):
        if len({self.blank, self.rest, self.start, self.end}) < 4:
            raise ValueError("blank, rest, start and end must be four different tokens")
        return self

    @property
    def trained(self) -> int:
        return self.context

    @property
    def spec(self) -> ModelSpec:
        positions = Pairs(context=self.context, trained=self.trained, inside=self.inside)
        return self.model_spec(positions, self.layer_spec(), reads="blanks")


class BlankGLM(Layered):
    """A GLM of 2022 with the layers of GPT-2. Positions are pairs (`nn/blanks.py`); those past a table are refused."""

    def begin(self) -> None:
        self.position_embedding = nn.Embedding(self.config.context, self.config.width)
        self.inside_embedding = nn.Embedding(self.config.inside, self.config.width)

    def embed(self, tokens: Tokens, marks: Marks) -> Embeddings:
        place, inside = parted(marks.tensors(tokens.device)[2])
        for name, last, rows in (
            ("place", int(place.max()), self.config.context),
            ("place in a blank", int(inside.max()), self.config.inside),
        ):
            if last >= rows:
                raise CapacityError(
                    f"{name} {last} is past the learned table of {rows}: shorten the text or the filling"
                )
        return self.embedding(tokens) + self.position_embedding(place) + self.inside_embedding(inside)

    def mask(self) -> Mask:
        return SeesText() | Causal()


KEYS = frozenset(
    """
    vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size max_position_embeddings
    max_block_positions mask_token_id gmask_token_id sop_token_id eop_token_id layer_norm_epsilon tie_word_embeddings
    bos_token_id eos_token_id
""".split()
)
NAMES = {
    "vocab": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp_width": "intermediate_size",
    "context": "max_position_embeddings",
    "inside": "max_block_positions",
    "blank": "mask_token_id",
    "rest": "gmask_token_id",
    "start": "sop_token_id",
    "end": "eop_token_id",
    "norm_eps": "layer_norm_epsilon",
    "tied": "tie_word_embeddings",
}


def new(sizes: dict[str, Any], about: About) -> BlankGLMConfig:
    """A configuration from the sizes of a recipe; by default its tables hold the longest rows."""
    context = sizes.get("context", about.longest)
    tables = {"context": context, "inside": context} | vars(BlankTokens.of(about.tokenizer))
    return BlankGLMConfig.parse(tables | sizes, SIZES)


def _read(foreign: Foreign) -> BlankGLMConfig:
    values = {ours: required(foreign, theirs, "glm-blank") for ours, theirs in NAMES.items()}
    values |= {"bos": foreign.get("bos_token_id"), "eos": end_tokens(foreign.get("eos_token_id"))}
    return BlankGLMConfig.parse(values, "config.json")


def _write(config: BlankGLMConfig) -> Foreign:
    foreign: Foreign = {"architectures": ["BlankGLM"], "model_type": "glm-blank"}
    foreign |= {theirs: getattr(config, ours) for ours, theirs in NAMES.items()}
    return foreign | {"bos_token_id": config.bos, "eos_token_id": list(config.eos)}


def _entries(config: BlankGLMConfig) -> list[Entry]:
    names = ["embedding.weight", "position_embedding.weight", "inside_embedding.weight", "norm.weight", "norm.bias"]
    names += [] if config.tied else ["projection.weight"]
    inner = [f"attention.{name}" for name in ("query", "key", "value", "output")]
    modules = ["attention_norm", "mlp_norm", "mlp.up", "mlp.down", *inner]
    for number in range(config.layers):
        names += [f"layers.{number}.{module}.{part}" for module in modules for part in ("weight", "bias")]
    return [Entry(name, (name,)) for name in names]


SMALL: Foreign = {
    "vocab_size": 97,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "intermediate_size": 80,
    "max_position_embeddings": 64,
    "max_block_positions": 48,
    "mask_token_id": 6,
    "gmask_token_id": 7,
    "sop_token_id": 8,
    "eop_token_id": 9,
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
    "eos_token_id": [2],
}
FORMS = {"": SMALL, "untied": SMALL | {"tie_word_embeddings": False}}
FAMILY = Family("glm-blank", BlankGLM, _read, _write, _entries, FORMS, KEYS, own=True)
