"""All layers of a decoder in one compiled call, for a few new tokens (one of every row, a draft) over a full cache.

Between the halves of a layer (`halves.py`) lie appending to the cache and attention, which for a full cache of which
every query sees all that is before it are again little work and many calls. What this cannot do goes layer by layer,
with the same numbers but for the order in which the attention of several tokens is summed.
"""

import ctypes
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from handscroll.nn.attention import Context
from handscroll.nn.cache import Cache
from handscroll.nn.mask import Mask, Window
from handscroll.nn.native.halves import Halves, LayerTable, halves_of
from handscroll.nn.native.library import library
from handscroll.nn.pieces import Piece, pieces
from handscroll.nn.shapes import Embeddings

_TABLES: "WeakKeyDictionary[nn.ModuleList, tuple[list[Halves], ctypes.Array]]" = WeakKeyDictionary()


def stack(layers: nn.ModuleList, windows: Sequence[Mask | None], x: Embeddings, context: Context) -> Embeddings | None:
    """The layers' output (B, T, D) for a few new tokens, their keys and values appended; None: not this way.

    `windows` narrow the shared mask of each layer.
    """
    cache, rotation = context.cache, context.rotation
    if (
        not isinstance(cache, Cache)
        or "extend" not in vars(type(cache))
        or cache.past
        or rotation is None
        or context.bias is not None
    ):
        return None
    if (
        torch.is_grad_enabled()
        or x.device.type != "cpu"
        or torch.is_autocast_enabled("cpu")
        or context.noise is not None
    ):
        return None
    parts = [halves_of(layer) for layer in layers]
    like = parts[0]
    if not like.takes(x, rotation) or any(part.sizes != like.sizes or part.hooked() for part in parts):
        return None
    if any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers):
        return None
    firsts = first_keys(windows, context, cache, x.shape[0])
    if firsts is None:
        return None
    stores = cache.extend(x.new_empty(x.shape[0], like.kv, 0, like.size), context.marks)
    tables = _tables(layers, parts)
    for table, first, (keys, values, *scales) in zip(tables, firsts, stores, strict=True):
        table.keys, table.values, table.first = keys.data_ptr(), values.data_ptr(), first
        table.batch_stride, table.head_stride = keys.stride(0), keys.stride(1)
        table.key_scales, table.value_scales = (x.data_ptr() for x in scales) if scales else (None, None)
        table.scale_batch_stride, table.scale_head_stride = scales[0].stride()[:2] if scales else (0, 0)
    return _call(tables, x, context, cache.marks.length)


def _call(tables: ctypes.Array, x: Tensor, context: Context, slot: int) -> Tensor:
    found, rotation, out = library(), context.rotation, torch.empty_like(x)
    assert found is not None and rotation is not None
    cosine, sine = rotation.cosine.contiguous(), rotation.sine.contiguous()
    shape = (ctypes.c_int64 * 5)(x.shape[0], x.shape[1], cosine.shape[0], torch.get_num_threads(), slot)
    scale = tables[0].before.size ** -0.5 * rotation.attention_factor**2
    found.handscroll_step(
        tables, len(tables), x.data_ptr(), cosine.data_ptr(), sine.data_ptr(), shape, scale, out.data_ptr()
    )
    return out


def first_keys(windows: Sequence[Mask | None], context: Context, cache: Cache, batch: int) -> list[int] | None:
    """The first key that the queries of each layer see, and with it all before themselves; None where it is not so."""
    every, count = cache.marks.joined(context.marks, batch, torch.device("cpu")), context.marks.length
    square = Piece(every.length - count, every.length, square=True)
    before = [Piece(0, every.length - count)] if every.length > count else []
    if pieces(context.mask, context.marks, every) != ([Piece(0, every.length)] if count == 1 else [*before, square]):
        return None
    if not all(window is None or type(window) is Window for window in windows):
        return None
    if any(windows) and not (every.plain and context.marks.plain):
        return None
    firsts = [0 if window is None else max(0, every.length - window.size) for window in windows]  # type: ignore[attr-defined]
    return None if count > 1 and any(firsts) else firsts


def _tables(layers: nn.ModuleList, parts: list[Halves]) -> ctypes.Array:
    known = _TABLES.get(layers)
    if known is not None and all(a is b for a, b in zip(known[0], parts, strict=True)):
        return known[1]
    tables = (LayerTable * len(parts))()
    for table, part in zip(tables, parts, strict=True):
        table.before, table.after = part.first, part.second
    _TABLES[layers] = (parts, tables)
    return tables
