"""`About`: what stands beside the files of a part of a saved reading."""

from dataclasses import dataclass, replace

import torch

from handscroll.cache.reading.identity import Identity

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@dataclass(frozen=True)
class About:
    """The description of a part. It comes after `first` tokens, which are those of `parent` ("" if it begins a text).

    For a layer with a window it keeps the last window - 1 + `rewind` tokens before its end.
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

    @property
    def counts(self) -> tuple[int, ...]:
        """The number of tokens that it keeps of each layer."""
        own = self.length - self.first
        return tuple(own if w is None else min(self.length, w - 1 + self.rewind) for w in self.windows)

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

    def cut(self, number: str, length: int) -> "About":
        """The description of its first `length` tokens; windowed layers keep what they have of them."""
        return replace(self, number=number, length=length, rewind=max(0, self.rewind - (self.length - length)))

    @property
    def kept(self) -> torch.dtype:
        """The dtype in which keys and values are kept."""
        return torch.int8 if self.identity.policy == "int8" else DTYPES[self.identity.kept or self.identity.dtype]
