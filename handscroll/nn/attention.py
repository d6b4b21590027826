"""Multi-head and grouped-query attention: projections, optional q/k norms and rotation around `attend`."""

from dataclasses import dataclass

from torch import Tensor, nn

from handscroll.base.errors import ConfigError
from handscroll.nn.bands import attend_bands
from handscroll.nn.bias import Bias
from handscroll.nn.cache import Keeper, Span
from handscroll.nn.kernels import Exchange, attend
from handscroll.nn.linear import Linear
from handscroll.nn.marks import Marks
from handscroll.nn.mask import Mask
from handscroll.nn.noise import Noise
from handscroll.nn.norm import RMSNorm
from handscroll.nn.pages import Pages
from handscroll.nn.rope import Rotation
from handscroll.nn.shapes import Embeddings


@dataclass(frozen=True)
class Heads:
    """Head counts and switches of one attention block."""

    width: int
    heads: int
    kv_heads: int
    head_size: int
    bias: bool = False
    output_bias: bool = False
    norm_eps: float | None = None  # Qwen3: RMS norm of each query and key head


@dataclass(frozen=True, eq=False)
class Context:
    """What every layer of one forward shares: marks, mask, rotation or bias, cache, dropout, tiling of the MLP."""

    marks: Marks
    mask: Mask
    rotation: Rotation | None = None
    bias: Bias | None = None  # added to the scores of every layer (ALiBi)
    cache: Keeper | None = None
    noise: Noise | None = None
    exchange: Exchange | None = None  # of the ranks that hold the tokens together
    mlp_tile: int = 0  # tokens the MLP sees at a time, recomputed in the backward; 0: all at once

    def dropped(self, x: Embeddings, site: int) -> Embeddings:
        """`x` with dropout at a numbered place of the model (0: embeddings; 2n + 1, 2n + 2: layer n's branches)."""
        return x if self.noise is None else self.noise.drop(x, self.marks, site)


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023); kv_heads == heads is multi-head attention."""

    def __init__(self, heads: Heads):
        super().__init__()
        self.shape = heads
        inner, shared = heads.heads * heads.head_size, heads.kv_heads * heads.head_size
        self.query = Linear(heads.width, inner, bias=heads.bias)
        self.key = Linear(heads.width, shared, bias=heads.bias)
        self.value = Linear(heads.width, shared, bias=heads.bias)
        self.output = Linear(inner, heads.width, bias=heads.output_bias)
        if heads.norm_eps is not None:
            self.query_norm = RMSNorm(heads.head_size, heads.norm_eps)
            self.key_norm = RMSNorm(heads.head_size, heads.norm_eps)

    def forward(self, x: Embeddings, context: Context, mask: Mask, layer: int) -> Embeddings:
        """Attention of `layer` under `mask` (the shared mask, narrowed by the layer's own window)."""
        q = self._split(self.query(x))
        if self.shape.norm_eps is not None:
            q = self.query_norm(q).to(q.dtype)  # under autocast the norm gives float32
        scale = self.shape.head_size**-0.5
        rotation, bands = context.rotation, () if context.rotation is None else context.rotation.bands
        if rotation is not None:
            q = q if bands else rotation.turn(q)
            scale *= rotation.attention_factor**2
        spans = self.remember(x, context, layer)
        select = getattr(context.cache, "select", None)  # asked by name: a protocol's check takes longer than the call
        if select is not None:
            if bands:
                raise ConfigError("this cache ranks keys by one rotation, the scaling has several: use 'offload'")
            spans = select(layer, q, spans, mask, context.marks, scale)
        if bands:
            assert not isinstance(spans, Pages), "blocks are read with one rotation; the engine refuses bands"
            if any(span.observer is not None for span in spans):
                raise ConfigError("this cache scores keys under one rotation, the scaling has several: use 'sinks'")
            out = attend_bands(q, spans, mask, context.marks, scale, bands, context.exchange)
        else:
            out, _ = attend(q, spans, mask, context.marks, scale, exchange=context.exchange, bias=context.bias)
        return self.output(out.transpose(1, 2).flatten(2))

    def remember(self, x: Embeddings, context: Context, layer: int) -> list[Span] | Pages:
        """Keys and values of `x`, appended to the cache of `layer`; returns what its queries may read.

        A cache with `known` holds those of `x` already: they are not made again.
        """
        known = getattr(context.cache, "known", None)
        if known is not None:
            return known(layer)
        k, v = self._split(self.key(x)), self._split(self.value(x))
        if self.shape.norm_eps is not None:
            k = self.key_norm(k).to(k.dtype)
        if context.rotation is not None:
            k = context.rotation.turn(k)
        if context.cache is None:
            return [Span(k, v, context.marks)]
        return context.cache.append(layer, k, v, context.marks)

    def _split(self, x: Tensor) -> Tensor:
        """(B, T, heads x E) -> (B, heads, T, E): the one place that converts."""
        return x.unflatten(-1, (-1, self.shape.head_size)).transpose(1, 2)
