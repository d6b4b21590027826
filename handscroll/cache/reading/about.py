"""`About`: what stands beside the files of a part of a saved reading."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from handscroll.cache.buffered import Buffered
from handscroll.cache.reading.identity import Identity

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
ROUNDED = {"int8": torch.int8}  # with a scale a head


@dataclass(frozen=True)
class About:
    """The description of a part. It comes after `first` tokens, which are those of `parent` ("" if it begins a text).

    For a layer with a window it keeps the last window - 1 + `rewind` tokens before its end. `rewind` is below 0 where
    the part was cut further than it reached back: no text can end there, but others still continue its full layers.
    """

    number: str
    identity: Identity
    first: int
    length: int
    parent: str
    windows: tuple[int | None, ...]  # one per layer
    rewind: int
    kv_heads: int
    head_size: int
    source: str
    adapters: tuple[str, ...] = ()  # that the model had
    rounded: str = ""  # the dtype of keys and values that have scales

    @property
    def counts(self) -> tuple[int, ...]:
        """The number of tokens that it keeps of each layer."""
        own = self.length - self.first
        return tuple(own if w is None else max(0, min(self.length, w - 1 + self.rewind)) for w in self.windows)

    @property
    def nbytes(self) -> int:
        each = self.head_size * self.kept.itemsize + (4 if self.kept == torch.int8 else 0)
        return 2 * self.kv_heads * sum(self.counts) * each

    def reached(self, length: int) -> int | None:
        """How many of the first `length` tokens a text can continue from with this part's windows; None: none."""
        wanted = min(length, self.length)
        windowed = [(w, count) for w, count in zip(self.windows, self.counts, strict=True) if w is not None]
        able = all(self.length - count <= max(0, wanted - w + 1) for w, count in windowed)
        return wanted if able else None

    def cut(self, length: int) -> "About":
        """The description of its first `length` tokens; windowed layers keep what they have of them."""
        return replace(self, length=length, rewind=self.rewind - (self.length - length))

    @property
    def kept(self) -> torch.dtype:
        """The dtype in which keys and values are kept."""
        old = self.identity.policy if self.identity.policy in ROUNDED else ""  # readings before 2026-12 do not say it
        rounded = self.rounded or old
        return ROUNDED[rounded] if rounded else DTYPES[self.identity.kept or self.identity.dtype]


def described(number: str, identity: Identity, cache: Buffered, keys: Sequence[Tensor]) -> About:
    """The description of what a cache has read, of which `keys` (1, K, S, E) are kept, one a layer."""
    windows = tuple(cache.windows) or (None,) * cache.layers
    held = [(window, one.shape[2]) for window, one in zip(windows, keys, strict=True)]
    # A text that leaves another one before its end, and is short, has less than a window and `rewind` behind it.
    rounded = next((name for name, dtype in ROUNDED.items() if keys[0].dtype == dtype), "")
    back = (count - window + 1 for window, count in held if window is not None and count < cache.length)
    return About(
        number=number,
        identity=identity,
        first=cache.before,
        length=cache.length,
        parent="",
        windows=windows,
        rewind=min((cache.rewind, *back)),
        kv_heads=keys[0].shape[1],
        head_size=keys[0].shape[3],
        source="",
        rounded=rounded,
    )
