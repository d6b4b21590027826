"""Policy `int8`: every key and value in int8 with one scale a token and head; half of bfloat16's bytes.

Approximate: a number is off by at most 1/254 of its head's largest. Tokens are rounded when they are kept and read
rounded ever after, by the very forward that made them too, so that the size of prefill chunks does not matter. On a
processor with AVX-512 VNNI decoding rounds queries and softmax weights too, to 16 bits: some hundredths of that error.
Limits: no gradients. Keys are rounded after their rotation.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from handscroll.base.workload import Footprint
from handscroll.cache.full import Cache
from handscroll.kernels.rounding import to_int8
from handscroll.nn.marks import Marks
from handscroll.nn.span import Span


@dataclass
class Int8Cache(Cache):
    """A full cache in int8."""

    recordable: ClassVar[bool] = False

    _scales: list[tuple[Tensor | None, Tensor | None]] = field(default_factory=list)

    def __post_init__(self):
        super().__post_init__()
        self._scales = self._scales or [(None, None) for _ in range(self.layers)]

    @property
    def nbytes(self) -> int:
        return super().nbytes + sum(
            s.numel() * s.element_size() for pair in self._scales for s in pair if s is not None
        )

    def footprint(self, kv_heads: int, head_size: int, itemsize: int) -> Footprint:
        return Footprint(each=2 * self.layers * kv_heads * (head_size + 4))  # a float32 scale a token and head

    def append(self, layer: int, keys: Tensor, values: Tensor, marks: Marks) -> list[Span]:
        before, end = self.marks.length, self.marks.length + keys.shape[2]
        (keys, key_scales), (values, value_scales) = to_int8(keys), to_int8(values)
        *past, span = super().append(layer, keys, values, marks)
        room = self._store[layer].keys
        assert room is not None
        pair = self._room_for_scales(layer, room)
        for held, new in zip(pair, (key_scales, value_scales), strict=True):
            held[:, :, before:end] = new
        return [*past, Span(span.keys, span.values, span.marks, scales=(pair[0][:, :, :end], pair[1][:, :, :end]))]

    def extend(self, like: Tensor, marks: Marks) -> list[tuple[Tensor, ...]]:
        buffers = super().extend(like.to(torch.int8), marks)
        return [(*pair, *self._room_for_scales(layer, pair[0])) for layer, pair in enumerate(buffers)]

    def clone(self) -> "Int8Cache":
        whole, end = super().clone(), self.marks.length
        scales = [(_until(keys, end), _until(values, end)) for keys, values in self._scales]
        return Int8Cache(self.layers, marks=whole.marks, past=whole.past, _store=whole._store, _scales=scales)

    def take_rows(self, rows: Tensor) -> "Int8Cache":
        whole = super().take_rows(rows)
        end = self.marks.length
        scales = [(_until(keys, end, rows), _until(values, end, rows)) for keys, values in self._scales]
        return Int8Cache(self.layers, marks=whole.marks, past=whole.past, _store=whole._store, _scales=scales)

    def state_dict(self) -> dict[str, Tensor]:
        state = super().state_dict()
        for layer, pair in enumerate(self._scales):
            for name, scales in zip(("key_scales", "value_scales"), pair, strict=True):
                if scales is not None:
                    state[f"{layer}.{name}"] = scales[:, :, : self.marks.length].contiguous()
        return state

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> "Int8Cache":
        whole = Cache.from_state(state)
        pairs = [(state.get(f"{n}.key_scales"), state.get(f"{n}.value_scales")) for n in range(whole.layers)]
        return cls(whole.layers, marks=whole.marks, _store=whole._store, _scales=pairs)

    def _held(self, layer: int) -> Span:
        keys, values = self._scales[layer]
        assert keys is not None and values is not None, "nothing was appended"
        end = self.marks.length
        return replace(super()._held(layer), scales=(keys[:, :, :end], values[:, :, :end]))

    def _room_for_scales(self, layer: int, keys: Tensor) -> tuple[Tensor, Tensor]:
        """The buffers of a layer's scales, as long as that of its keys: larger ones where they were not."""
        first, second = self._scales[layer]
        if first is None or second is None or first.shape[2] < keys.shape[2]:
            first, second = self._scales[layer] = self._longer(first, keys), self._longer(second, keys)
        return first, second

    def _longer(self, old: Tensor | None, keys: Tensor) -> Tensor:
        """Room for the scales of all `keys`, with those of committed tokens."""
        grown = keys.new_empty(keys.shape[:3], dtype=torch.float32)
        if old is not None:
            grown[:, :, : self.marks.length] = old[:, :, : self.marks.length]
        return grown


def _until(scales: Tensor | None, end: int, rows: Tensor | None = None) -> Tensor | None:
    """A copy of the first `end` scales, of all rows or of some."""
    if scales is None:
        return None
    return scales[:, :, :end].clone() if rows is None else scales[rows, :, :end]
