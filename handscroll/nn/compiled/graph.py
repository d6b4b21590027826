"""All layers of a decoder as one CUDA graph: for one new token of every row over a full cache on a GPU.

A layer of a new token is some twenty kernels of microseconds, which Python cannot start as fast as they end. The graph
is the layers' own code, recorded once for a cache and replayed for every token: its input, rotation and slot lie in
buffers of its own, and its attention (`step.py`) reads the cache's length from the slot. Recorded at the third token,
so that a short answer does not pay for it. What this cannot do goes layer by layer, with the same numbers up to the
order of additions.

Limits: the weights must stay where they are while a cache is used.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from handscroll.kernels.gpu.slots import Slots, works
from handscroll.nn.attention import Context
from handscroll.nn.compiled.stack import first_keys
from handscroll.nn.marks import Marks
from handscroll.nn.mask import Mask
from handscroll.nn.rope import Rotation
from handscroll.nn.shapes import Embeddings

EAGER = 2  # tokens of a cache that are read layer by layer before a graph is recorded


@dataclass(eq=False)
class _Known:
    """What there is of a cache: tokens seen here, and the graph once it is recorded."""

    tokens: int = 0
    graph: "_Graph | None" = None


_KNOWN: "WeakKeyDictionary[Any, _Known]" = WeakKeyDictionary()


def stack(layers: nn.ModuleList, windows: Sequence[Mask | None], x: Embeddings, context: Context) -> Embeddings | None:
    """The layers' output (B, 1, D) for one new token of every row, its keys and values appended; None: not this way.

    `windows` narrow the shared mask of each layer.
    """
    cache: Any = context.cache
    rotation = context.rotation(0)
    if x.device.type != "cuda" or not getattr(cache, "recordable", False) or cache.past or x.shape[1] != 1:
        return None
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cuda") or context.noise is not None:
        return None
    if len(context.rotations) > 1 or any(layer.attention.shape.cap is not None for layer in layers):  # type: ignore
        return None
    if context.bias is not None or context.memory is not None or (rotation is not None and rotation.bands):
        return None
    if x.dtype not in (torch.bfloat16, torch.float16) or not works(x.device):
        return None
    if any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers):
        return None
    if first_keys(windows, context, cache, x.shape[0]) is None:
        return None
    known = _KNOWN.setdefault(cache, _Known())
    known.tokens += 1
    if known.tokens <= EAGER:
        return None
    attention: Any = layers[0].attention
    shape = attention.shape
    stores = cache.extend(x.new_empty(x.shape[0], shape.kv_heads, 0, shape.head_size), context.marks)
    slot = cache.marks.length
    if known.graph is None or not known.graph.fits(layers, x, rotation, stores):
        known.graph = _Graph.of(layers, windows, x, context, stores, slot)
    return known.graph.replay(x, rotation, slot)


@dataclass(eq=False)
class _Graph:
    """A recorded pass through all layers, and the buffers that it reads and writes."""

    layers: nn.ModuleList
    stores: list[tuple[Tensor, ...]]
    x: Tensor
    rotation: Rotation | None
    slot: Tensor
    graph: torch.cuda.CUDAGraph = field(default_factory=torch.cuda.CUDAGraph)
    out: Tensor | None = None

    @classmethod
    def of(
        cls,
        layers: nn.ModuleList,
        windows: Sequence[Mask | None],
        x: Tensor,
        context: Context,
        stores: list[tuple[Tensor, ...]],
        slot: int,
    ) -> "_Graph":
        turned = context.rotation(0)
        if turned is not None:
            turned = Rotation(turned.cosine.clone(), turned.sine.clone(), turned.attention_factor)
        place = torch.full((1,), slot, dtype=torch.int64, device=x.device)
        made = cls(layers, stores, x.clone(), turned, place)
        sizes = [0 if window is None else window.size for window in windows]  # type: ignore[attr-defined]
        slots = [Slots(store[0], store[1], place, size) for store, size in zip(stores, sizes, strict=True)]
        inner = Context(context.marks, context.mask, () if turned is None else (turned,), cache=_Filled(slots))
        side = torch.cuda.Stream(x.device)
        side.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(side):  # kernels are compiled and workspaces made before anything is recorded
            made._run(inner)
        torch.cuda.current_stream(x.device).wait_stream(side)
        with torch.cuda.graph(made.graph):
            made.out = made._run(inner)
        return made

    def fits(
        self, layers: nn.ModuleList, x: Tensor, rotation: Rotation | None, stores: list[tuple[Tensor, ...]]
    ) -> bool:
        """Whether it was recorded for these layers, rows and buffers."""
        if layers is not self.layers or x.shape != self.x.shape or (rotation is None) != (self.rotation is None):
            return False
        if rotation is not None and self.rotation is not None:
            alike = rotation.cosine.shape == self.rotation.cosine.shape
            if not alike or rotation.attention_factor != self.rotation.attention_factor:
                return False
        return all(a is b for old, new in zip(self.stores, stores, strict=True) for a, b in zip(old, new, strict=True))

    def replay(self, x: Tensor, rotation: Rotation | None, slot: int) -> Tensor:
        self.x.copy_(x)
        if rotation is not None and self.rotation is not None:
            self.rotation.cosine.copy_(rotation.cosine)
            self.rotation.sine.copy_(rotation.sine)
        self.slot.fill_(slot)
        self.graph.replay()
        assert self.out is not None
        return self.out.clone()

    def _run(self, context: Context) -> Tensor:
        x = self.x
        for layer in self.layers:
            x = layer(x, context)
        return x


@dataclass(eq=False)
class _Filled:
    """The cache of a recorded pass: every layer's new keys and values go into its slot."""

    slots: list[Slots]

    def append(self, layer: int, keys: Tensor, values: Tensor, marks: Marks) -> Slots:
        self.slots[layer].append(keys, values)
        return self.slots[layer]

    def commit(self) -> None:
        """The real cache commits."""
