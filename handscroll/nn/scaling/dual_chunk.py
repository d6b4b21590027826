"""Dual chunk attention: exact distances inside a chunk and to the chunk before, one far distance for the rest."""

from typing import ClassVar, Self

from pydantic import model_validator
from torch import Tensor

from handscroll.base.errors import ConfigError
from handscroll.nn.mask import ChunksBack
from handscroll.nn.scaling.base import Band, Factor, Scaling, Tokens, plain_frequencies


class DualChunk(Scaling):
    """Keys stand at j mod s. Queries stand at i mod s for keys of their own chunk, at min(i mod s + s, L0 - 1) for the
    chunk before, and at L0 - 1 for all earlier chunks.

    With chunks of s < L0 tokens, no distance is longer than a trained one in a text of any length. The last L0 - s
    tokens are always at their exact distance. A text of at most s tokens is read as before. Source: An et al. 2024,
    "Training-Free Long-Context Scaling of Large Language Models", arXiv:2402.17463, section 3. Limits: a distance of
    more than one chunk says only that the key is far.
    """

    name: ClassVar[str] = "dual-chunk"
    factor: Factor
    original: Tokens
    chunk: Tokens

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.chunk >= self.original:
            raise ConfigError(f"chunk {self.chunk} must be shorter than the trained {self.original} tokens")
        return self

    def inverse_frequencies(self, head_size: int, base: float, length: int | None) -> Tensor:
        """Float64 (head_size / 2,), as trained; see `plain_frequencies` for the errors."""
        return plain_frequencies(head_size, base)

    def stored(self, positions: Tensor) -> Tensor:
        return positions % self.chunk

    def bands(self) -> tuple[Band, ...]:
        size, last = self.chunk, self.original - 1
        return (
            Band(ChunksBack(size, 0, 0), self.stored, self.stored),
            Band(ChunksBack(size, 1, 1), lambda at: (at % size + size).clamp_max(last), self.stored),
            Band(ChunksBack(size, 2, None), lambda at: (at * 0) + last, self.stored),
        )
