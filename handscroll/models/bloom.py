"""BLOOM (BigScience 2022, arXiv:2211.05100): pre-norm decoder with ALiBi, a norm after the embedding and a GELU MLP."""

from pydantic import Field, model_validator
from torch import nn

from handscroll.base.config import Config
from handscroll.models.gpt2 import Layer
from handscroll.models.model import Decoder
from handscroll.nn.bias import ALiBi
from handscroll.nn.linear import Linear, TokenTable
from handscroll.nn.marks import Marks
from handscroll.nn.norm import LayerNorm
from handscroll.nn.shapes import Embeddings, Tokens


class BloomConfig(Config):
    """Sizes of a BLOOM. `context` is the tokens that it may be used to, `original` those before it was lengthened here.

    `factor` divides the slopes of ALiBi (`nn/bias.py`).
    """

    family: str = "bloom"
    vocab: int
    width: int
    layers: int
    heads: int
    context: int
    original: int | None = None
    factor: float = Field(default=1.0, ge=1.0, allow_inf_nan=False)
    norm_eps: float = 1e-5
    tied: bool = True
    bos: int | None = None
    eos: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _consistent(self):
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of {self.heads} heads")
        return self

    @property
    def head_size(self) -> int:
        return self.width // self.heads

    @property
    def kv_heads(self) -> int:
        return self.heads

    @property
    def mlp_width(self) -> int:
        return 4 * self.width

    @property
    def trained(self) -> int:
        return self.original or self.context

    def cache_bytes_per_token(self, element_size: int) -> int:
        return 2 * self.layers * self.width * element_size


class Bloom(Decoder):
    """A BLOOM decoder; its layers are those of GPT-2."""

    def __init__(self, config: BloomConfig):
        super().__init__()
        self.config = config
        self.embedding = TokenTable(config.vocab, config.width)
        self.embedding_norm = LayerNorm(config.width, eps=config.norm_eps)
        self.layers = nn.ModuleList(Layer(config, number) for number in range(config.layers))
        self.norm = LayerNorm(config.width, eps=config.norm_eps)
        self.projection = None if config.tied else Linear(config.width, config.vocab, bias=False)

    def embed(self, tokens: Tokens, marks: Marks) -> Embeddings:
        return self.embedding_norm(self.embedding(tokens))

    def bias(self) -> ALiBi:
        return ALiBi(self.config.heads, self.config.factor)
