"""Policy `int4`: keeps keys and values in four bits (five with their scales), a third of bfloat16's bytes.

Approximate. Keys are rounded channel by channel over 32 tokens, values token by token in groups of 32 channels (KIVI,
Liu et al. 2024, arXiv:2402.02750). The newest tokens, up to 31, are kept unrounded, and so is a chunk of a prompt while
it is read. Keys are rounded after their rotation.
Decoding reads these spans in the same compiled call as the other layers' work, and on a processor with AVX-512 VNNI
rounds queries and softmax weights to 16 bits: the additional error is about a thousandth of the other.
Limits: no gradients; the head size must be even. The size of prefill chunks changes the results a little, since a
chunk reads itself exactly.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Self

from torch import Tensor

from handscroll.base.errors import ConfigError
from handscroll.base.workload import Footprint
from handscroll.cache.blocked import Blocked
from handscroll.kernels.rounding import GROUP, to_int4, to_int4_columns
from handscroll.nn.marks import Marks
from handscroll.nn.span import Span

# The tensors of `_Packed`, per row and head: uint8 (S, E / 2) twice, bfloat16 (S / 32, 2, E), bfloat16 (S, 2, G).
NAMES = ("packed_keys", "packed_values", "key_scales", "value_scales")
_Packed = list[Tensor]


@dataclass(eq=False)
class Int4Cache(Blocked):
    """A full cache in int4."""

    policy: ClassVar[str] = "int4"
    rounds: ClassVar[bool] = True
    fillable: ClassVar[bool] = True

    _packed: dict[int, _Packed] = field(init=False, default_factory=dict)

    def __post_init__(self):
        self.block, self.recent = GROUP, 0
        super().__post_init__()

    @classmethod
    def takes(cls, head_size: int) -> bool:
        return head_size % 2 == 0

    def append(self, layer: int, keys: Tensor, values: Tensor, marks: Marks) -> list[Span]:
        if not self.takes(keys.shape[3]):
            raise ConfigError(f"int4 keeps two numbers a byte, and a head of {keys.shape[3]} numbers is odd; use int8")
        return super().append(layer, keys, values, marks)

    def _nbytes(self) -> int:
        return super()._nbytes() + sum(t.nbytes for packed in self._packed.values() for t in packed)

    def _footprint(self, kv_heads: int, head_size: int, itemsize: int) -> Footprint:
        made = super()._footprint(kv_heads, head_size, itemsize)
        groups = head_size // GROUP if head_size % GROUP == 0 else 1
        scales = 4 * head_size / GROUP + 4 * groups  # of keys and of values: two bfloat16 per group
        return made.model_copy(update={"each": len(self.full) * kv_heads * (head_size + scales)})

    def _put(self, layer: int, keys: Tensor, values: Tensor) -> None:
        (keys, key_scales), (values, value_scales) = to_int4_columns(keys), to_int4(values)
        new, starts = (keys, values, key_scales, value_scales), self._lengths(self._stored)
        held = self._packed.get(layer) or [None] * len(NAMES)
        # The capacity is that of a whole request; incomplete groups of tokens are never stored here.
        room = self._lengths(self.capacity // GROUP * GROUP)
        parts = zip(held, new, starts, room, strict=True)
        self._packed[layer] = [_written(old, part, start, least) for old, part, start, least in parts]

    def _away(self, layer: int) -> list[Span]:
        lengths = self._lengths(self._stored)
        keys, values, *scales = (t[:, :, :n] for t, n in zip(self._packed[layer], lengths, strict=True))
        return [Span(keys, values, self._part(0, self._stored), scales=(scales[0], scales[1]))]

    def _copy_away(self, other: Self, rows: Tensor | None) -> None:
        for layer, packed in self._packed.items():
            kept = [t[:, :, :n] for t, n in zip(packed, self._lengths(self._stored), strict=True)]
            other._packed[layer] = [t.clone() if rows is None else t[rows] for t in kept]

    def _lengths(self, tokens: int) -> tuple[int, int, int, int]:
        """The length of each packed tensor along dimension 2."""
        return tokens, tokens, tokens // GROUP, tokens


def _written(old: Tensor | None, new: Tensor, start: int, least: int) -> Tensor:
    """A buffer with `new` from `start` on along dimension 2; it grows by doubling, and to at least `least`."""
    end = start + new.shape[2]
    if old is None or old.shape[2] < end:
        size = max(end, least, 0 if old is None else 2 * old.shape[2])
        grown = new.new_empty(*new.shape[:2], size, *new.shape[3:])
        if old is not None:
            grown[:, :, :start] = old[:, :, :start]
        old = grown
    old[:, :, start:end] = new
    return old
