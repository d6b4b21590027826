"""GPT-2 (Radford et al. 2019): pre-norm decoder with learned positions, biases and a GELU MLP."""

from typing import Any

from pydantic import model_validator
from torch import nn

from handscroll.base.config import Config
from handscroll.base.errors import CapacityError
from handscroll.models.model import Decoder, PreNormLayer
from handscroll.nn.attention import Attention, Heads
from handscroll.nn.linear import Linear, TokenTable
from handscroll.nn.marks import Marks
from handscroll.nn.mlp import MLP
from handscroll.nn.norm import LayerNorm
from handscroll.nn.shapes import Embeddings, Tokens


class GPT2Config(Config):
    """Sizes of a GPT-2; `context` is the number of rows of the learned position table."""

    family: str = "gpt2"
    vocab: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    context: int
    original: int | None = None  # rows before interpolation, when the table was lengthened here
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
    def trained(self) -> int:
        return self.original or self.context

    def cache_bytes_per_token(self, element_size: int) -> int:
        return 2 * self.layers * self.width * element_size


class Layer(PreNormLayer):
    """Multi-head attention and a GELU MLP, with layer norms and biases; also the layer of BLOOM."""

    def __init__(self, config: Any, number: int):
        super().__init__()
        self.number, self.window = number, None
        self.attention_norm = LayerNorm(config.width, eps=config.norm_eps)
        self.attention = Attention(
            Heads(config.width, config.heads, config.heads, config.head_size, bias=True, output_bias=True)
        )
        self.mlp_norm = LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = MLP(config.width, config.mlp_width)


class GPT2(Decoder):
    """A GPT-2 decoder. Positions past the learned table are refused, never clamped."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.config = config
        self.embedding = TokenTable(config.vocab, config.width)
        self.position_embedding = nn.Embedding(config.context, config.width)
        self.layers = nn.ModuleList(Layer(config, number) for number in range(config.layers))
        self.norm = LayerNorm(config.width, eps=config.norm_eps)
        self.projection = None if config.tied else Linear(config.width, config.vocab, bias=False)

    def embed(self, tokens: Tokens, marks: Marks) -> Embeddings:
        positions = marks.tensors(tokens.device)[2]
        last = int(positions.max())
        if last >= self.config.context:
            raise CapacityError(
                f"position {last} is past the learned position table of {self.config.context}; lengthen the "
                f"checkpoint first (handscroll extend ... --to {last + 1}) or read with a window"
            )
        return self.embedding(tokens) + self.position_embedding(positions)
