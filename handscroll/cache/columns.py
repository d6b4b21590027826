"""The form in which a cache keeps a layer: columns, which are tensors with tokens along dimension 2.

Plain keys and values (B, K, S, E) are two columns. In int8 there are two more, the scales (B, K, S). Buffers are longer
than their content, so that a new token is written without copying the others.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from handscroll.kernels.rounding import to_int8
from handscroll.nn.marks import Marks
from handscroll.nn.span import Span

Columns = tuple[Tensor, ...]


@dataclass(frozen=True)
class Form:
    """A form of keys and values: its columns' `names`, how they are made, and the bytes of one head of a token."""

    names: tuple[str, ...]
    made: Callable[[Tensor, Tensor], Columns]
    head_bytes: Callable[[int, int], float]  # from the numbers of a head and their original itemsize

    def span(self, columns: Columns, marks: Marks) -> Span:
        """The columns as a span for attention."""
        keys, values, *scales = columns
        return Span(keys, values, marks, scales=(scales[0], scales[1]) if scales else None)


def _rounded(keys: Tensor, values: Tensor) -> Columns:
    (keys, key_scales), (values, value_scales) = to_int8(keys), to_int8(values)
    return keys, values, key_scales, value_scales


PLAIN = Form(("keys", "values"), lambda keys, values: (keys, values), lambda size, itemsize: 2.0 * size * itemsize)
INT8 = Form(("keys", "values", "key_scales", "value_scales"), _rounded, lambda size, itemsize: 2.0 * (size + 4))


def part(columns: Columns, first: int, last: int) -> Columns:
    """Views of tokens first .. last - 1."""
    return tuple(x[:, :, first:last] for x in columns)


def copied(columns: Columns, first: int, last: int, rows: Tensor | None = None) -> Columns:
    """Copies of tokens first .. last - 1, for all rows or for the given ones."""
    return tuple(x[:, :, first:last].clone() if rows is None else x[rows, :, first:last] for x in columns)


def roomy(held: Columns | None, like: Columns, kept: int, room: int) -> Columns:
    """Buffers of `room` tokens, otherwise shaped as `like`, with the first `kept` tokens of `held`."""
    made = tuple(x.new_empty(*x.shape[:2], room, *x.shape[3:]) for x in like)
    for new, old in zip(made, held or (), strict=bool(held)):
        new[:, :, :kept] = old[:, :, :kept]
    return made


def put(held: Columns | None, new: Columns, start: int, room: Callable[[int, int], int]) -> Columns:
    """Buffers with `new` from token `start` on: those of `held`, or larger ones of `room(needed, had)` tokens."""
    end, had = start + new[0].shape[2], 0 if held is None else held[0].shape[2]
    if held is None or had < end:
        held = roomy(held, new, start, room(end, had))
    for buffer, x in zip(held, new, strict=True):
        buffer[:, :, start:end] = x
    return held


def gathered(columns: Columns, slots: Tensor) -> Columns:
    """Copies (B, K, n, ...) of the tokens in `slots` (B, n) of each row."""
    rows = torch.arange(slots.shape[0], device=slots.device)[:, None]
    return tuple(x[rows, :, slots].transpose(1, 2).contiguous() for x in columns)


def nbytes(columns: Columns | None) -> int:
    return sum(x.numel() * x.element_size() for x in columns or ())
