"""Rotary position embedding (Su et al. 2021, "RoFormer"), in the half-split form of the Llama family."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from handscroll.kernels.rows import TURN
from handscroll.nn.marks import Marks
from handscroll.nn.mask import Mask
from handscroll.nn.scaling.base import Band, Scaling

AHEAD = 64  # positions whose tables are made together
REFERENCE = 1 << 14  # positions; a float32 angle is off by at most 5e-4 rad below it


@dataclass(frozen=True, eq=False)
class Rotation:
    """Cosine and sine (1 or B, T, R / 2) in float32 for the R <= E rotated numbers of a head, and the attention factor.

    With `bands` (distance bands), these tables rotate the keys as they are kept, and each band has tables for its
    queries.
    """

    cosine: Tensor
    sine: Tensor
    attention_factor: float = 1.0
    bands: tuple["BandRotation", ...] = ()

    def queries(self, q: Float[Tensor, "B H T E"]) -> Float[Tensor, "B H T E"]:
        """Rotate queries, and apply the attention factor if only a part of each head is rotated.

        The factor then belongs to the rotated part only, so it is folded (squared) into these queries. Otherwise it is
        in the scale of the scores (`factor`).
        """
        factor = self.attention_factor**2
        if factor != 1.0 and self._partial(q.shape[-1]):
            return Rotation(self.cosine * factor, self.sine * factor).turn(q)
        return self.turn(q)

    def factor(self, head_size: int) -> float:
        """The factor of the scores' scale, for queries that `queries` or a distance band rotated."""
        assert not (self.bands and self._partial(head_size)) or self.attention_factor == 1.0, "bands of parts of heads"
        return 1.0 if self._partial(head_size) else self.attention_factor**2

    def _partial(self, head_size: int) -> bool:
        return 2 * self.cosine.shape[-1] < head_size

    def turn(self, x: Float[Tensor, "B H T E"], back: bool = False) -> Float[Tensor, "B H T E"]:
        """Rotate queries or keys; the computation is in float32 (or float64), the result in the dtype of x.

        Tables of fewer than E / 2 pairs rotate the first part of each head and leave the rest unchanged.
        """
        return TURN(x, self.cosine, -self.sine if back else self.sine)

    def part(self, first: int, last: int) -> "Rotation":
        """The tables of tokens first .. last - 1."""
        return Rotation(self.cosine[:, first:last], self.sine[:, first:last])


@dataclass(frozen=True, eq=False)
class BandRotation:
    """How queries meet the keys of one distance band (`Scaling.bands`): their rotation, and a further one of kept keys.

    `further(marks)` gives the tables that rotate the keys with these marks further; None: keys are read as they are
    kept.
    """

    mask: Mask
    queries: Rotation
    further: Callable[[Marks], Rotation] | None
    known: dict[Any, Any] = field(default_factory=dict)  # what `nn/bands.py` remembers for the layers of a forward


def rotation(marks: Marks, scaling: Scaling, base: float, head_size: int, length: int | None, like: Tensor) -> Rotation:
    """Tables for the positions of `marks`, for a request of the declared `length`.

    `head_size` counts the rotated numbers of a head. Below `REFERENCE` the angle is rounded as the reference library
    rounds it (a float32 product), because real models amplify the difference: with exact angles, the logits of
    babyllama-256 lengthened to 1024 differ from the reference's by 2e-4; with rounded angles, by 4e-5. Beyond
    `REFERENCE`, angles are float64: a float32 product would be 0.06 rad off at a million tokens.
    """
    if marks.start is not None and marks.length == 1 and not scaling.bands():
        begin, at = divmod(marks.start, AHEAD)
        wanted: Any = (begin * AHEAD, scaling, base, head_size, length)  # frozen, so hashable
        cosine, sine = _ahead(*wanted, (like.dtype, like.device))
        here = slice(at, at + 1)
        return Rotation(cosine[:, here], sine[:, here], scaling.attention_factor(length))
    positions = marks.tensors(like.device)[2]
    frequencies = scaling.inverse_frequencies(head_size, base, length).to(like.device, torch.float64)
    stored = _tables(_angles(scaling.stored(positions), frequencies), like)
    bands = tuple(_band(band, scaling, positions, frequencies, like) for band in scaling.bands())
    return Rotation(*stored, scaling.attention_factor(length), bands)


@lru_cache(maxsize=8)
def _ahead(
    start: int,
    scaling: Scaling,
    base: float,
    head_size: int,
    length: int | None,
    like: tuple[torch.dtype, torch.device],
) -> tuple[Tensor, Tensor]:
    """The tables of `AHEAD` positions from `start` on, since decoding asks for one position after the other."""
    with torch.inference_mode(False):
        found = rotation(
            Marks.run(start, AHEAD), scaling, base, head_size, length, torch.empty(0, dtype=like[0], device=like[1])
        )
        return found.cosine, found.sine


def _band(band: Band, scaling: Scaling, positions: Tensor, frequencies: Tensor, like: Tensor) -> BandRotation:
    def further(marks: Marks) -> Rotation:
        at = marks.tensors(like.device)[2]
        return Rotation(*_tables(_angles(band.key(at), frequencies) - _angles(scaling.stored(at), frequencies), like))

    queries = Rotation(*_tables(_angles(band.query(positions), frequencies), like))
    return BandRotation(band.mask, queries, None if band.key == scaling.stored else further)


def _angles(positions: Tensor, frequencies: Tensor) -> Tensor:
    """Float64 angles (1 or B, T, E / 2); below `REFERENCE` they are rounded as the reference library rounds them."""
    positions = positions.unsqueeze(-1)
    rounded = positions.to(torch.float32) * frequencies.to(torch.float32)
    angles = positions.to(torch.float64) * frequencies
    return torch.where(positions < REFERENCE, rounded.to(torch.float64), angles)


def _tables(angles: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return angles.cos().to(dtype), angles.sin().to(dtype)
