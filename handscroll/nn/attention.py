"""Multi-head and grouped-query attention: projections, optional q/k norms and rotation around `attend`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from handscroll.base.errors import ConfigError
from handscroll.base.spec import LayerSpec
from handscroll.kernels.native import tables
from handscroll.kernels.native.calls import KINDS, LANES
from handscroll.nn.addresses import Addresses, Unfit, whole
from handscroll.nn.attend import Exchange, attend
from handscroll.nn.bands import attend_bands
from handscroll.nn.bias import Bias
from handscroll.nn.keeper import Keeper, Reads
from handscroll.nn.linear import Linear
from handscroll.nn.marks import Marks
from handscroll.nn.mask import Around, Everything, Mask, SameSegment, Window
from handscroll.nn.memory import Memory
from handscroll.nn.noise import Noise
from handscroll.nn.norm import RMSNorm
from handscroll.nn.rope import Rotation
from handscroll.nn.shapes import Embeddings
from handscroll.nn.span import Span


@dataclass(frozen=True)
class Heads:
    """Head counts and switches of the attention of one layer."""

    width: int
    heads: int
    kv_heads: int
    head_size: int
    bias: bool = False
    output_bias: bool = False
    norm_eps: float | None = None  # epsilon of the norm of each query and key head (Qwen3, Gemma 3); None: no norm
    norm: Callable[[int, float], nn.Module] = RMSNorm  # makes that norm from a size and an epsilon
    joint_norm: bool = False  # that norm is of all query heads together, and of all key heads (OLMo 2)
    scale: float | None = None  # multiplies q.k; None: 1/sqrt(E) (T5: 1)
    cap: float | None = None  # scaled scores s become cap * tanh(s / cap) (Gemma 2)
    window: int | None = None  # number of tokens seen, the query's own included; None: all that the mask shows
    ahead: bool = False  # the window reaches as far ahead as back
    positions: int = 0  # which of the model's rotations turns queries and keys (`Context.rotations`)

    @classmethod
    def of(cls, layer: LayerSpec, norm_eps: float) -> "Heads":
        """The heads that the spec of a layer describes; `norm_eps` counts if it has norms of queries and keys."""
        names = "width heads kv_heads head_size output_bias scale cap window ahead positions".split()
        same: dict[str, Any] = {name: getattr(layer, name) for name in names}
        normed = norm_eps if layer.head_norms or layer.joint_norms else None
        return cls(**same, bias=layer.attention_bias, joint_norm=layer.joint_norms, norm_eps=normed)


@dataclass(frozen=True, eq=False)
class Context:
    """What all layers of one forward share: marks, mask, rotations or bias, cache, dropout, and the MLP's tile size."""

    marks: Marks
    mask: Mask
    rotations: tuple[Rotation, ...] = ()  # a layer picks its own by `Heads.positions`; empty if nothing is rotated
    bias: Bias | None = None  # added to the scores of every layer (ALiBi, T5)
    cache: Keeper | None = None
    noise: Noise | None = None
    exchange: Exchange | None = None  # between the ranks that share the tokens of a row
    memory: Memory | None = None  # the source that the decoder of an encoder-decoder reads
    mlp_tile: int = 0  # tokens that the MLP reads at a time, recomputed in the backward; 0: all at once

    def rotation(self, positions: int) -> Rotation | None:
        """The rotation with this number (`Heads.positions`); None if the model rotates nothing."""
        return self.rotations[positions] if self.rotations else None

    def append(self, layer: int, keys: Tensor, values: Tensor) -> Reads:
        """Keep keys and values (B, K, T, E) of a layer; return what its queries may read."""
        if self.cache is None:
            return [Span(keys, values, self.marks)]
        return self.cache.append(layer, keys, values, self.marks)

    @property
    def complete(self) -> bool:
        """Whether the cache already holds all that queries may read, so that nothing is appended."""
        return self.cache is not None and self.cache.complete

    def dropped(self, x: Embeddings, site: int) -> Embeddings:
        """`x` with dropout at a numbered place of the model (0: embeddings; 2n + 1, 2n + 2: layer n's branches)."""
        return x if self.noise is None else self.noise.drop(x, self.marks, site)


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023) of layer `number`; kv_heads == heads is multi-head attention."""

    def __init__(self, heads: Heads, number: int):
        super().__init__()
        self.shape, self.number = heads, number
        self.window = None if heads.window is None else (Around if heads.ahead else Window)(heads.window)
        inner, shared = heads.heads * heads.head_size, heads.kv_heads * heads.head_size
        self.query = Linear(heads.width, inner, bias=heads.bias)
        self.key = Linear(heads.width, shared, bias=heads.bias)
        self.value = Linear(heads.width, shared, bias=heads.bias)
        self.output = Linear(inner, heads.width, bias=heads.output_bias)
        if heads.norm_eps is not None:
            self.query_norm = heads.norm(inner if heads.joint_norm else heads.head_size, heads.norm_eps)
            self.key_norm = heads.norm(shared if heads.joint_norm else heads.head_size, heads.norm_eps)

    def forward(self, x: Embeddings, context: Context) -> Embeddings:
        """Each token reads the tokens that mask and window show it, in its document and in the cache."""
        return self.output(self.read(self.queries(x, context), self.remember(x, context), context))

    def queries(self, x: Embeddings, context: Context) -> Float[Tensor, "B H T E"]:
        """The queries of `x`, rotated by their positions; with distance bands they are rotated later, in `read`."""
        q, rotation = self._normed(self.query(x), "query_norm"), context.rotation(self.shape.positions)
        return q if rotation is None or rotation.bands else rotation.queries(q)

    def read(self, q: Float[Tensor, "B H T E"], spans: Reads, context: Context) -> Float[Tensor, "B T HE"]:
        """Attention of queries over this layer's spans, before the output projection.

        With distance bands the queries are rotated here.
        """
        scale, cap, rotation = self.scale, self.shape.cap, context.rotation(self.shape.positions)
        mask = context.mask if self.window is None else context.mask & self.window
        bands = () if rotation is None else rotation.bands
        if rotation is not None:
            scale *= rotation.factor(self.shape.head_size)
        if context.cache is not None and context.cache.selects:
            if bands:
                raise ConfigError("this cache ranks keys by one rotation, but the scaling has several: use 'offload'")
            if cap is not None:
                raise ConfigError(
                    "this cache ranks keys by plain scores, but this model caps its scores: use 'offload'"
                )
            assert isinstance(spans, list), "a cache that selects returns spans"
            spans = context.cache.select(self.number, q, spans, mask, context.marks, scale)
        if bands:
            assert isinstance(spans, list), "pages are read with one rotation; the engine refuses distance bands"
            if any(span.observer is not None for span in spans):
                raise ConfigError("this cache scores keys under one rotation, but the scaling has several: use 'sinks'")
            out = attend_bands(q, spans, mask, context.marks, scale, bands, context.exchange, cap)
        else:
            shared = {"exchange": context.exchange, "bias": context.bias, "cap": cap}
            out, _ = attend(q, spans, mask, context.marks, scale, **shared)
        return out.transpose(1, 2).flatten(2)

    def remember(self, x: Embeddings, context: Context) -> Reads:
        """Append the keys and values of `x` to this layer's cache; returns what `Context.append` returns."""
        if context.complete:
            assert context.cache is not None
            return context.cache.known(self.number)
        return context.append(self.number, *self.made(x, context))

    def made(self, x: Embeddings, context: Context) -> tuple[Tensor, Tensor]:
        """Keys and values (B, K, T, E) of `x`, in the form that a cache keeps."""
        k, v = self._normed(self.key(x), "key_norm"), self._split(self.value(x))
        rotation = context.rotation(self.shape.positions)
        if rotation is not None:
            k = rotation.turn(k)
        return k, v

    def table(self, addresses: Addresses, dtype: torch.dtype) -> tuple[tables.Before, tables.Product]:
        """The tables for compiled layers in `dtype`: the half before the reading without its norm, and the output."""
        shape, kind = self.shape, KINDS[dtype]
        if shape.joint_norm:
            raise Unfit("queries and keys are normalised over all heads together")
        whole("head", shape.head_size, of=2 * LANES)
        sizes = (kind, shape.width, shape.heads, shape.kv_heads, shape.head_size)
        norms = [addresses.norm(self, name, dtype) for name in ("query_norm", "key_norm")]
        parts = [addresses.table(self, name, dtype) for name in ("query", "key", "value", "output")]
        return tables.Before(*sizes, tables.Norm(), *norms, *parts[:3]), parts[3]

    @property
    def scale(self) -> float:
        """The factor of q.k, without the part that a rotation adds."""
        return self.shape.head_size**-0.5 if self.shape.scale is None else self.shape.scale

    def _normed(self, x: Tensor, name: str) -> Tensor:
        """The heads of projected queries or keys, normalised if the layer has such a norm."""
        if self.shape.norm_eps is None:
            return self._split(x)
        norm = getattr(self, name)
        if self.shape.joint_norm:
            return self._split(norm(x).to(x.dtype))  # under autocast the norm returns float32
        heads = self._split(x)
        return norm(heads).to(heads.dtype)

    def _split(self, x: Tensor) -> Tensor:
        """(B, T, heads x E) -> (B, heads, T, E); the only place that converts."""
        return x.unflatten(-1, (-1, self.shape.head_size)).transpose(1, 2)


class CrossAttention(Attention):
    """Attention of a decoder to a source, without positions and cache; a packed row's document reads its own source
    only.

    `site` is its number for dropout (`Context.dropped`).
    """

    def __init__(self, heads: Heads, number: int, site: int):
        super().__init__(heads, number)
        self.site = site

    def forward(self, x: Embeddings, context: Context) -> Embeddings:
        """Attention of `x` to `context.memory`.

        Raises:
            ConfigError: the context has no source.
        """
        memory = context.memory
        if memory is None:
            raise ConfigError(
                "an encoder-decoder needs a source to read besides its text, and none was given; this call is for "
                "models of one text (in Python, give one: model.hidden(..., memory=model.encode(source)))"
            )
        spans = [self.keep(memory)] if memory.known is None else memory.known(self.number)
        mask = Everything() if memory.marks.plain and context.marks.plain else SameSegment()
        spans = [span.rows(x.shape[0]) for span in spans]
        out, _ = attend(self._split(self.query(x)), spans, mask, context.marks, self.scale)
        return self.output(out.transpose(1, 2).flatten(2))

    def keep(self, memory: Memory) -> Span:
        """This layer's keys and values of the source's states."""
        assert memory.states is not None, "the memory holds keys and values already"
        return Span(self._split(self.key(memory.states)), self._split(self.value(memory.states)), memory.marks)
