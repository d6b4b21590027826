"""Rotary position embedding (Su et al. 2021, "RoFormer"), in the half-split form of the Llama family."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from handscroll.nn.marks import Marks
from handscroll.nn.scaling.base import Scaling

REFERENCE = 1 << 14  # positions; a float32 angle is off by at most 5e-4 rad below it


@dataclass(frozen=True, eq=False)
class Rotation:
    """Cosine and sine (1 or B, T, E / 2) in float32, and the factor that goes into the kernel's scale."""

    cosine: Tensor
    sine: Tensor
    attention_factor: float

    def turn(self, x: Float[Tensor, "B H T E"]) -> Float[Tensor, "B H T E"]:
        """Rotate queries or keys; computed in float32 (float64 stays), returned in the dtype of x."""
        cosine, sine = self.cosine.unsqueeze(1), self.sine.unsqueeze(1)
        first, second = x.to(torch.promote_types(x.dtype, cosine.dtype)).chunk(2, dim=-1)
        turned = torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
        return turned.to(x.dtype)


def rotation(marks: Marks, scaling: Scaling, base: float, head_size: int, length: int | None, like: Tensor) -> Rotation:
    """Tables for the positions of `marks`, for a request of the declared `length`.

    Below `REFERENCE` the angle is rounded as the reference library rounds it (a float32 product), because real
    models amplify the difference: with exact angles babyllama-256 lengthened to 1024 is 2e-4 off the reference's
    logits, so 4e-5. Beyond, angles are float64: a float32 product would be 0.06 rad off at a million tokens.
    """
    frequencies = scaling.inverse_frequencies(head_size, base, length).to(like.device, torch.float64)
    positions = marks.tensors(like.device)[2].unsqueeze(-1)
    angles = positions.to(torch.float64) * frequencies
    rounded = positions.to(torch.float32) * frequencies.to(torch.float32)
    angles = torch.where(positions < REFERENCE, rounded.to(torch.float64), angles)
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return Rotation(angles.cos().to(dtype), angles.sin().to(dtype), scaling.attention_factor(length))
