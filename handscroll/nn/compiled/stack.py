"""All layers of a decoder in one compiled call, for a few new tokens (one of every row, or a draft) over a full cache.

Between the halves of a layer (`layer.py`) its keys are appended and attention runs. With a full cache of which every
query sees all that is before it, this is again little work in many calls. Passes that this file refuses run layer by
layer, with the same numbers up to the order in which the attention of several tokens is summed.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import call, is_
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from handscroll.kernels.formats import FORMATS
from handscroll.kernels.native.calls import KINDS, refuses_decode
from handscroll.kernels.native.library import library
from handscroll.kernels.native.tables import Layer, Run
from handscroll.nn.addresses import Addresses
from handscroll.nn.attention import Context
from handscroll.nn.compiled.layer import Compiled, Kept, compiled, refuses_pass
from handscroll.nn.keeper import Keeper, Room
from handscroll.nn.pieces import Piece, pieces
from handscroll.nn.shapes import Embeddings
from handscroll.nn.span import Span


@dataclass(eq=False)
class _Layers(Kept):
    """The halves of a model's layers; `unfit` says why one call cannot compute them together, "" if it can."""

    parts: list[Compiled]
    addresses: Addresses
    unfit: str


@dataclass(eq=False)
class _Tables:
    """The tables of a cache for the compiled call, valid while neither layers nor buffers are replaced; it keeps
    neither.

    `array` holds a table per layer. In every layer, slots are counted from the cache's first token: if `gone` tokens
    are no longer in the buffers, the addresses are those that slot 0 would have. `past` are, by layer, the tables of
    the spans before the cache's own tokens; None if the kernels do not take these spans. `runs` are these and the
    spans of tokens that the cache holds elsewhere.
    """

    past: list[list[Run]] | None
    layers: "ref[_Layers] | None" = None
    buffers: "list[ref[Tensor | Span]]" = field(default_factory=list)
    runs: list[ctypes.Array] = field(default_factory=list)
    gone: list[int] = field(default_factory=list)
    firsts: list[int] = field(default_factory=list)
    scales: list[float] = field(default_factory=list)
    array: ctypes.Array | None = None


_KNOWN: "WeakKeyDictionary[Keeper, _Tables]" = WeakKeyDictionary()


def refuses(layers: nn.ModuleList, x: Embeddings, context: Context) -> str:
    """The reason why the layers do not take these hidden states (B, T, D) in one call; "" if they do."""
    if refused := refuses_pass(x, context):
        return refused
    cache: Any = context.cache
    if cache is None or not cache.fillable or context.bias is not None or not context.rotations:
        return "the cache has no buffers that a compiled call may fill, or positions are no rotation"
    if not cache.fits(x.shape[1]):
        return "the buffers of a windowed layer have too few slots to spare"
    known = _layers(layers)
    if known.unfit:
        return known.unfit
    for part in {part.form.positions: part for part in known.parts}.values():
        if refused := part.refuses(x, context.rotation(part.form.positions)):
            return refused
    if known.addresses.hooked():
        return "a module has a hook"
    if first_keys([part.form.window for part in known.parts], context, cache, x.shape[0]) is None:
        return "not every query sees all keys before itself, or all of a window"
    return "the keys of the past have no compiled form" if _known(cache, known.parts[0]).past is None else ""


def run(layers: nn.ModuleList, x: Embeddings, context: Context) -> Embeddings:
    """The layers' output (B, T, D) for a few new tokens; appends their keys and values."""
    known: _Layers = vars(layers)["_stack"]
    cache: Any = context.cache
    like = known.parts[0]
    firsts = first_keys([part.form.window for part in known.parts], context, cache, x.shape[0])
    assert firsts is not None
    rooms = cache.room(x.new_empty(x.shape[0], like.kv, 0, like.size), context.marks)
    array = _filled(_known(cache, like), known, rooms, firsts, cache.own)
    _scale(_known(cache, like), known, context)
    return _call(array, x, context, cache.own)


def inside(layers: nn.ModuleList) -> str:
    """What the one call does for a single token of a single row, in words; the registry sees the call alone."""
    parts = _layers(layers).parts
    before, after = [part.form.before for part in parts], [part.form.after for part in parts]
    matrices = [x for half in before for x in (half.query, half.key, half.value)]
    matrices += [x for half in after for x in (half.output, half.gate, half.up, half.down)]
    kinds = {matrix.kind for matrix in matrices if matrix.weight}
    formats = [name for name, one in FORMATS.items() if one.number in kinds]
    return (
        f"{sum(bool(matrix.weight) for matrix in matrices)} products with matrices in {' and '.join(formats)}, each "
        "read once as it lies (the product of a few rows); attention reads each key once, for the "
        f"{before[0].heads // before[0].kv} queries of a kv head (the attention of a few queries)"
    )


def _layers(layers: nn.ModuleList) -> _Layers:
    """The layers as they are now."""
    known: _Layers | None = vars(layers).get("_stack")
    if known is None or len(known.parts) != len(layers) or not known.addresses.fresh():
        parts = [compiled(layer) for layer in layers]
        own = Addresses()
        for name in layers._modules:
            own.module(layers, name)
        addresses = Addresses([own, *(part.addresses for part in parts)])
        unfit = next((part.unfit for part in parts if part.unfit), "")
        if not unfit and any(part.sizes != parts[0].sizes for part in parts):
            unfit = "the layers are of several sizes"
        if not unfit and any(part.form.cap is not None for part in parts):
            unfit = "the scores are capped"
        known = vars(layers)["_stack"] = _Layers(parts, addresses, unfit)
    return known


def _call(array: ctypes.Array, x: Tensor, context: Context, slot: int) -> Tensor:
    found, out = library(), torch.empty_like(x)
    assert found is not None
    tables = [table.contiguous() for turn in context.rotations for table in (turn.cosine, turn.sine)]
    turns = (ctypes.c_void_p * len(tables))(*(table.data_ptr() for table in tables))
    shape = (ctypes.c_int64 * 5)(x.shape[0], x.shape[1], tables[0].shape[0], torch.get_num_threads(), slot)
    found.handscroll_step(array, len(array), x.data_ptr(), turns, shape, out.data_ptr())
    return out


def first_keys(windows: Sequence[int | None], context: Context, cache: Any, batch: int) -> list[int] | None:
    """The first key that each layer's queries see; None unless they also see all keys from there to themselves."""
    every, count = cache.marks.joined(context.marks, batch, torch.device("cpu")), context.marks.length
    square = Piece(every.length - count, every.length, square=True)
    before = [Piece(0, every.length - count)] if every.length > count else []
    if pieces(context.mask, context.marks, every) != ([Piece(0, every.length)] if count == 1 else [*before, square]):
        return None
    for span in cache.past[0] if cache.past else ():
        if any(windows) or pieces(context.mask, context.marks, span.marks) != [Piece(0, span.marks.length)]:
            return None
    if any(windows) and not (every.plain and context.marks.plain):
        return None
    firsts = [0 if window is None else max(0, every.length - window) for window in windows]
    return None if count > 1 and any(firsts) else firsts


def _known(cache: Any, like: Compiled) -> _Tables:
    """The tables of a cache; at first only those of the past."""
    if cache not in _KNOWN:
        found = [_tables_of(spans, like) for spans in cache.past or [()] * cache.layers]
        usable = [tables for tables in found if tables is not None]
        _KNOWN[cache] = _Tables(usable if len(usable) == len(found) else None)
    return _KNOWN[cache]


def _tables_of(spans: Sequence[Span], like: Compiled) -> list[Run] | None:
    found = []
    for span in spans:
        plain = type(span) is Span and span.rotated and span.accumulate is None and span.observer is None
        probe = torch.empty((1, like.kv, 1, like.size), dtype=like.dtype)
        if not plain or refuses_decode(probe, span):
            return None
        found.append(Run.of(KINDS[span.keys.dtype], span.keys, span.values, span.scales))
    return found


def _filled(known: _Tables, layers: _Layers, rooms: list[Room], firsts: list[int], own: int) -> ctypes.Array:
    """The table of every layer, for a cache of `own` tokens."""
    buffers, gone = [x for room in rooms for x in (*room.columns, *room.before)], [own - room.end for room in rooms]
    same = known.layers is not None and known.layers() is layers and known.gone == gone
    if known.array is None or not same or not all(map(is_, buffers, map(call, known.buffers))):
        known.array, known.runs = (Layer * len(rooms))(), []
        assert known.past is not None
        for table, part, past, (columns, end, before) in zip(known.array, layers.parts, known.past, rooms, strict=True):
            keys, values, *scales = columns
            table.before, table.after, table.rotation = part.form.before, part.form.after, part.form.positions
            table.kind = KINDS[keys.dtype]
            held = _tables_of(before, part)
            assert held is not None
            known.runs.append((Run * len([*past, *held]))(*past, *held))
            table.past, table.pasts = known.runs[-1], len(known.runs[-1])
            table.keys, table.values = (_slot_0(x, own - end) for x in (keys, values))
            table.batch_stride, table.head_stride = keys.stride(0), keys.stride(1)
            table.key_scales, table.value_scales = (_slot_0(x, own - end) for x in scales) if scales else (None, None)
            table.scale_batch_stride, table.scale_head_stride = scales[0].stride()[:2] if scales else (0, 0)
        known.layers, known.buffers, known.gone = ref(layers), list(map(ref, buffers)), gone
        known.firsts, known.scales = [], []
    if known.firsts != firsts:
        known.firsts = firsts
        for table, first, dropped in zip(known.array, firsts, gone, strict=True):
            table.first = max(first, dropped)
    return known.array


def _slot_0(buffer: Tensor, gone: int) -> int:
    """The address that slot 0 of the cache would have, from a buffer whose first slot is number `gone`."""
    return buffer.data_ptr() - gone * buffer.stride(2) * buffer.element_size()


def _scale(known: _Tables, layers: _Layers, context: Context) -> None:
    """Set the factor of q.k in each layer."""
    factors = [turn.attention_factor**2 for turn in context.rotations]
    if known.scales != factors:
        known.scales = factors
        assert known.array is not None
        for table, part in zip(known.array, layers.parts, strict=True):
            table.scale = part.form.scale * factors[part.form.positions]
