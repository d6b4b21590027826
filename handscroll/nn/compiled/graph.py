"""All layers of a decoder as one CUDA graph: for one new token of every row over a full cache on a GPU.

For a new token, a layer is about twenty kernels of microseconds, and Python cannot start them as fast as they end. The
graph is the layers' own code, recorded once per cache and replayed for every token. Its input, rotation and slot lie in
its own buffers, and its attention (`step.py`) reads the cache's length from the slot. It is recorded at the third
token, so that short answers do not pay for the recording. Passes that it refuses run layer by layer, with the same
numbers up to the order of additions.

Limits: the weights must stay at their addresses while a cache is used.
"""

from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from handscroll.kernels import gradient
from handscroll.kernels.gpu.slots import Slots, works
from handscroll.nn.attention import Context
from handscroll.nn.compiled.stack import first_keys
from handscroll.nn.keeper import Keeper, Room
from handscroll.nn.marks import Marks
from handscroll.nn.rope import Rotation
from handscroll.nn.shapes import Embeddings

EAGER = 2  # tokens of a cache that are read layer by layer before a graph is recorded


@dataclass(eq=False)
class _Known:
    """The state kept for a cache: how many tokens were read here, and the graph once it is recorded."""

    tokens: int = 0
    graph: "_Graph | None" = None


_KNOWN: "WeakKeyDictionary[Any, _Known]" = WeakKeyDictionary()


def refuses(layers: nn.ModuleList, x: Embeddings, context: Context) -> str:
    """The reason why a pass (B, 1, D) cannot be a graph, "" if it can: one new token of every row over a full cache."""
    if x.device.type != "cuda":
        return "the tensors are not on a GPU"
    cache: Any = context.cache
    if x.shape[1] != 1 or cache is None or not cache.recordable or cache.past or not cache.fits(1):
        return "a graph is recorded only for one new token over a full cache"
    if gradient.possible() or torch.is_autocast_enabled("cuda") or context.noise is not None:
        return "a gradient, several precisions (autocast) or dropout are wanted"
    if context.bias is not None or context.memory is not None or any(turn.bands for turn in context.rotations):
        return "there is a bias or a source, or there are distance bands"
    if x.dtype not in (torch.bfloat16, torch.float16) or not works(x.device):
        return "its kernels need half precision, and Triton for this GPU"
    if any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers):
        return "a module has a hook"
    if not all(getattr(layer.mlp, "recordable", True) for layer in layers):
        return "the layers choose experts by the numbers that they read"
    if any(attention.shape.cap is not None for attention in _attentions(layers)):
        return "the scores are capped"
    if first_keys(_windows(layers), context, cache, x.shape[0]) is None:
        return "a new token does not see all keys before itself, or all of a window"
    known = _KNOWN.setdefault(cache, _Known())
    known.tokens += 1
    return "" if known.tokens > EAGER else f"the first {EAGER} tokens of a cache are read layer by layer"


def run(layers: nn.ModuleList, x: Embeddings, context: Context) -> Embeddings:
    """The layers' output (B, 1, D) for one new token of every row; appends its keys and values."""
    cache: Any = context.cache
    known, shape = _KNOWN[cache], _attentions(layers)[0].shape
    rooms = cache.room(x.new_empty(x.shape[0], shape.kv_heads, 0, shape.head_size), context.marks)
    if known.graph is None or not known.graph.fits(layers, x, context.rotations, rooms):
        known.graph = _Graph.of(layers, x, context, rooms)
    return known.graph.replay(x, context.rotations, [room.end for room in rooms])


def _attentions(layers: nn.ModuleList) -> list[Any]:
    return [layer.attention for layer in layers]


def _windows(layers: nn.ModuleList) -> list[int | None]:
    return [attention.shape.window for attention in _attentions(layers)]


@dataclass(eq=False)
class _Graph:
    """A recorded pass through all layers, and the buffers that it reads and writes."""

    layers: nn.ModuleList
    stores: list[tuple[Tensor, ...]]
    x: Tensor
    rotations: tuple[Rotation, ...]
    ends: Tensor  # the slot of the new token in each layer
    graph: torch.cuda.CUDAGraph = field(default_factory=torch.cuda.CUDAGraph)
    out: Tensor | None = None

    @classmethod
    def of(cls, layers: nn.ModuleList, x: Tensor, context: Context, rooms: list[Room]) -> "_Graph":
        turns = context.rotations
        turned = tuple(Rotation(turn.cosine.clone(), turn.sine.clone(), turn.attention_factor) for turn in turns)
        stores, ends = [room.columns for room in rooms], torch.tensor([room.end for room in rooms], device=x.device)
        made = cls(layers, stores, x.clone(), turned, ends)
        sizes = [window or 0 for window in _windows(layers)]
        places = zip(stores, ends.split(1), sizes, strict=True)
        slots = [Slots(store[0], store[1], place, size) for store, place, size in places]
        inner = Context(context.marks, context.mask, turned, cache=_Filled(slots))
        side = torch.cuda.Stream(x.device)
        side.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(side):  # compiles the kernels and makes workspaces before the recording
            made._run(inner)
        torch.cuda.current_stream(x.device).wait_stream(side)
        with torch.cuda.graph(made.graph):
            made.out = made._run(inner)
        return made

    def fits(self, layers: nn.ModuleList, x: Tensor, rotations: tuple[Rotation, ...], rooms: list[Room]) -> bool:
        """Whether it was recorded for these layers, rows and buffers."""
        if layers is not self.layers or x.shape != self.x.shape or len(rotations) != len(self.rotations):
            return False
        for new, old in zip(rotations, self.rotations, strict=True):
            if new.cosine.shape != old.cosine.shape or new.attention_factor != old.attention_factor:
                return False
        held = (tensor for store in self.stores for tensor in store)
        return all(a is b for a, b in zip(held, (x for room in rooms for x in room.columns), strict=True))

    def replay(self, x: Tensor, rotations: tuple[Rotation, ...], ends: list[int]) -> Tensor:
        self.x.copy_(x)
        for old, new in zip(self.rotations, rotations, strict=True):
            old.cosine.copy_(new.cosine)
            old.sine.copy_(new.sine)
        self.ends.copy_(torch.tensor(ends))
        self.graph.replay()
        assert self.out is not None
        return self.out.clone()

    def _run(self, context: Context) -> Tensor:
        x = self.x
        for layer in self.layers:
            x = layer(x, context)
        return x


@dataclass(eq=False)
class _Filled(Keeper):
    """The cache of a recorded pass: it writes every layer's new keys and values into the layer's slot."""

    slots: list[Slots]

    def append(self, layer: int, keys: Tensor, values: Tensor, marks: Marks) -> Slots:
        self.slots[layer].append(keys, values)
        return self.slots[layer]
