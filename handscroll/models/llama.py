"""The Llama form: Llama 2/3, Mistral, Qwen2, Qwen3 (Touvron et al. 2023 and successors).

Pre-norm decoder layers with rotary grouped-query attention and a gated MLP; the families differ in biases,
q/k norms, windows and tied heads, all of which are plain fields of the configuration.
"""

from pydantic import model_validator
from torch import Tensor, nn

from handscroll.base.config import Config
from handscroll.base.errors import ConfigError
from handscroll.models.model import Decoder, PreNormLayer
from handscroll.models.positions import Positions
from handscroll.nn.attention import Attention, Heads
from handscroll.nn.linear import Linear, TokenTable
from handscroll.nn.marks import Marks
from handscroll.nn.mask import Window
from handscroll.nn.mlp import GatedMLP
from handscroll.nn.norm import RMSNorm
from handscroll.nn.rope import Rotation, rotation
from handscroll.nn.shapes import Embeddings, Tokens


class LlamaConfig(Config):
    """Sizes and switches. `windows` has one entry a layer (None: full attention), or is empty."""

    family: str = "llama"
    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    mlp_width: int
    norm_eps: float = 1e-5
    tied: bool = False
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    query_key_norm: bool = False
    windows: tuple[int | None, ...] = ()
    positions: Positions
    bos: int | None = None
    eos: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _consistent(self):
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads cannot share {self.kv_heads} kv heads evenly")
        if self.head_size % 2:
            raise ValueError(f"rotary positions need an even head size, got {self.head_size}")
        if self.windows and len(self.windows) != self.layers:
            raise ValueError(f"{len(self.windows)} windows for {self.layers} layers")
        return self

    @property
    def context(self) -> int:
        return self.positions.context

    @property
    def trained(self) -> int:
        return self.positions.trained

    def cache_bytes_per_token(self, element_size: int) -> int:
        return 2 * self.layers * self.kv_heads * self.head_size * element_size


class Layer(PreNormLayer):
    """Grouped-query attention, windowed where the configuration says so, and a gated MLP."""

    mlp: GatedMLP

    def __init__(self, config: LlamaConfig, number: int):
        super().__init__()
        self.number = number
        window = config.windows[number] if config.windows else None
        self.window = None if window is None else Window(window)
        self.attention_norm = RMSNorm(config.width, config.norm_eps)
        self.attention = Attention(
            Heads(
                width=config.width,
                heads=config.heads,
                kv_heads=config.kv_heads,
                head_size=config.head_size,
                bias=config.attention_bias,
                output_bias=config.output_bias,
                norm_eps=config.norm_eps if config.query_key_norm else None,
            )
        )
        self.mlp_norm = RMSNorm(config.width, config.norm_eps)
        self.mlp = GatedMLP(config.width, config.mlp_width, config.mlp_bias)


class Llama(Decoder):
    """A decoder of the Llama form."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config
        self.embedding = TokenTable(config.vocab, config.width)
        self.layers = nn.ModuleList(Layer(config, number) for number in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.projection = None if config.tied else Linear(config.width, config.vocab, bias=False)

    def embed(self, tokens: Tokens, marks: Marks) -> Embeddings:
        return self.embedding(tokens)

    def rotation(self, marks: Marks, length: int | None, like: Tensor) -> Rotation:
        positions = self.config.positions
        if positions.scaling.depends_on_length and length is None:
            raise ConfigError(
                f"scaling '{positions.scaling.name}' depends on the length of the request: "
                "declare it (length = prompt + new tokens) so that cached keys stay valid"
            )
        return rotation(marks, positions.scaling, positions.base, self.config.head_size, length, like)
