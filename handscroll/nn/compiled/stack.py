"""All layers of a decoder in one compiled call, for a few new tokens (one of every row, a draft) over a full cache.

Between the halves of a layer (`halves.py`) lie appending to the cache and attention, which for a full cache of which
every query sees all that is before it are again little work and many calls. What this cannot do goes layer by layer,
with the same numbers but for the order in which the attention of several tokens is summed.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from operator import call, is_
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from handscroll.kernels.native.calls import KINDS, refuses_decode
from handscroll.kernels.native.library import library
from handscroll.nn.attention import Context
from handscroll.nn.compiled.halves import Halves, Kept, LayerTable, PastTable, Places, halves_of
from handscroll.nn.mask import Mask, Window
from handscroll.nn.pieces import Piece, pieces
from handscroll.nn.shapes import Embeddings
from handscroll.nn.span import Span


@dataclass(eq=False)
class _Layers(Kept):
    """The halves of a model's layers; `alike`: all can be used and are of one shape."""

    parts: list[Halves]
    places: Places
    alike: bool


@dataclass(eq=False)
class _Tables:
    """What the compiled call is given of a cache, as long as neither layers nor buffers are replaced; it keeps none."""

    layers: "ref[_Layers]"
    buffers: "list[ref[Tensor]]"
    firsts: list[int]
    array: ctypes.Array


def stack(layers: nn.ModuleList, windows: Sequence[Mask | None], x: Embeddings, context: Context) -> Embeddings | None:
    """The layers' output (B, T, D) for a few new tokens, their keys and values appended; None: not this way.

    `windows` narrow the shared mask of each layer.
    """
    cache: Any = context.cache
    rotation = context.rotations[0] if len(context.rotations) == 1 else None
    if "extend" not in vars(type(cache)) or rotation is None or context.bias is not None:
        return None
    if (
        torch.is_grad_enabled()
        or x.device.type != "cpu"
        or torch.is_autocast_enabled("cpu")
        or context.noise is not None
    ):
        return None
    known = _layers(layers)
    like = known.parts[0]
    if not known.alike or known.places.hooked() or not like.takes(x, rotation):
        return None
    firsts = first_keys(windows, context, cache, x.shape[0])
    past = _past(cache, like) if firsts is not None else None
    if firsts is None or past is None:
        return None
    stores = cache.extend(x.new_empty(x.shape[0], like.kv, 0, like.size), context.marks)
    return _call(_tables(cache, known, stores, firsts, past), x, context, cache.marks.length)


def _layers(layers: nn.ModuleList) -> _Layers:
    """The layers as they are now."""
    known: _Layers | None = vars(layers).get("_stack")
    if known is None or len(known.parts) != len(layers) or not known.places.fresh():
        parts = [halves_of(layer) for layer in layers]
        own = Places()
        for name in layers._modules:
            own.module(layers, name)
        places = Places([own, *(part.places for part in parts)])
        alike = all(part.usable and part.sizes == parts[0].sizes for part in parts)
        known = vars(layers)["_stack"] = _Layers(parts, places, alike)
    return known


def _call(tables: ctypes.Array, x: Tensor, context: Context, slot: int) -> Tensor:
    found, rotation, out = library(), context.rotations[0], torch.empty_like(x)
    assert found is not None
    cosine, sine = rotation.cosine.contiguous(), rotation.sine.contiguous()
    shape = (ctypes.c_int64 * 5)(x.shape[0], x.shape[1], cosine.shape[0], torch.get_num_threads(), slot)
    scale = tables[0].before.size ** -0.5 * rotation.attention_factor**2
    found.handscroll_step(
        tables, len(tables), x.data_ptr(), cosine.data_ptr(), sine.data_ptr(), shape, scale, out.data_ptr()
    )
    return out


def first_keys(windows: Sequence[Mask | None], context: Context, cache: Any, batch: int) -> list[int] | None:
    """The first key that the queries of each layer see, and with it all before themselves; None where it is not so."""
    every, count = cache.marks.joined(context.marks, batch, torch.device("cpu")), context.marks.length
    square = Piece(every.length - count, every.length, square=True)
    before = [Piece(0, every.length - count)] if every.length > count else []
    if pieces(context.mask, context.marks, every) != ([Piece(0, every.length)] if count == 1 else [*before, square]):
        return None
    for span in cache.past[0] if cache.past else ():
        if any(windows) or pieces(context.mask, context.marks, span.marks) != [Piece(0, span.marks.length)]:
            return None
    if not all(window is None or type(window) is Window for window in windows):
        return None
    if any(windows) and not (every.plain and context.marks.plain):
        return None
    firsts = [0 if window is None else max(0, every.length - window.size) for window in windows]  # type: ignore[attr-defined]
    return None if count > 1 and any(firsts) else firsts


def _past(cache: Any, like: Halves) -> list[ctypes.Array] | None:
    """The tables of what comes before the cache's own tokens, by layer; None where the kernels do not take it."""
    if "native" not in cache.tables:
        cache.tables["native"] = [_tables_of(spans, like) for spans in cache.past or [()] * cache.layers]
    found: list[ctypes.Array | None] = cache.tables["native"]
    usable = [tables for tables in found if tables is not None]
    return usable if len(usable) == len(found) else None


def _tables_of(spans: Sequence[Span], like: Halves) -> ctypes.Array | None:
    tables = (PastTable * len(spans))()
    for table, span in zip(tables, spans, strict=True):
        plain = type(span) is Span and span.rotated and span.accumulate is None and span.observer is None
        probe = torch.empty((1, like.kv, 1, like.size), dtype=like.dtype)
        if not plain or span.keys.shape[0] != 1 or span.keys.dtype == torch.uint8 or refuses_decode(probe, span):
            return None
        scales = span.scales or (None, None)
        table.keys, table.values = span.keys.data_ptr(), span.values.data_ptr()
        table.kind, table.length = KINDS[span.keys.dtype], span.marks.length
        table.key_stride, table.value_stride = span.keys.stride(1), span.values.stride(1)
        if scales[0] is not None and scales[1] is not None:
            table.key_scales, table.value_scales = scales[0].data_ptr(), scales[1].data_ptr()
            table.key_scale_stride, table.value_scale_stride = scales[0].stride(1), scales[1].stride(1)
    return tables


def _tables(
    cache: Any, layers: _Layers, stores: list[tuple[Tensor, ...]], firsts: list[int], past: list[ctypes.Array]
) -> ctypes.Array:
    known: _Tables | None = cache.tables.get("layers")
    buffers = [tensor for store in stores for tensor in store]
    if known is None or known.layers() is not layers or not all(map(is_, buffers, map(call, known.buffers))):
        array = (LayerTable * len(stores))()
        for table, part, before, (keys, values, *scales) in zip(array, layers.parts, past, stores, strict=True):
            table.before, table.after = part.first, part.second
            table.past, table.pasts = before, len(before)
            table.keys, table.values = keys.data_ptr(), values.data_ptr()
            table.batch_stride, table.head_stride = keys.stride(0), keys.stride(1)
            table.key_scales, table.value_scales = (x.data_ptr() for x in scales) if scales else (None, None)
            table.scale_batch_stride, table.scale_head_stride = scales[0].stride()[:2] if scales else (0, 0)
        known = cache.tables["layers"] = _Tables(ref(layers), list(map(ref, buffers)), [], array)
    if known.firsts != firsts:
        known.firsts = firsts
        for table, first in zip(known.array, firsts, strict=True):
            table.first = first
    return known.array
