"""Where a new token of every row lies in a cache on a GPU, and whether its kernels (`step.py`, Triton) can run."""

import importlib.util
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

FEW = 8  # tokens up to which norms and rotations are asked here


@dataclass(frozen=True, eq=False)
class Slots:
    """The buffers (B, K, capacity, E) of a layer, filled up to and with `slot` (1,), which the GPU's memory holds.

    `window`: how many of the last keys are read; 0: all.
    """

    keys: Tensor
    values: Tensor
    slot: Tensor
    window: int = 0

    def attend(self, q: Float[Tensor, "B H 1 E"], scale: float) -> tuple[Tensor, Tensor]:
        """Attention over all tokens up to the slot: output and log-sum-exp."""
        from handscroll.kernels.gpu import step

        return step.attend(q, self.keys, self.values, self.slot, scale, self.window)

    def append(self, keys: Float[Tensor, "B K 1 E"], values: Float[Tensor, "B K 1 E"]) -> None:
        """Fill the slot."""
        from handscroll.kernels.gpu import step

        step.append(self.keys, self.values, keys, values, self.slot)


def can_turn(x: Tensor, cosine: Tensor) -> bool:
    """Whether `turn` takes them: few tokens (B, H, T, E) on a GPU in half precision, tables in float32."""
    if x.device.type != "cuda" or x.shape[-2] > FEW or cosine.dtype != torch.float32 or x.stride(-1) != 1:
        return False
    return x.dtype in (torch.bfloat16, torch.float16) and bool(x.numel()) and works(x.device)


def turn(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """`step.turn`: x with the first numbers of each head rotated."""
    from handscroll.kernels.gpu import step

    return step.turn(x, cosine, sine)


def can_norm(x: Tensor, weight: Tensor) -> bool:
    """Whether `norm` takes them: few tokens (..., T, D) without gaps on a GPU in half precision, as the weight is."""
    if x.device.type != "cuda" or x.dim() < 2 or x.shape[-2] > FEW or x.dtype != weight.dtype:
        return False
    half = x.dtype in (torch.bfloat16, torch.float16) and x.shape[-1] <= 1 << 14
    return half and x.is_contiguous() and bool(x.numel()) and works(x.device)


def norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """`step.norm`: the root-mean-square norm of a few rows."""
    from handscroll.kernels.gpu import step

    return step.norm(x, weight, epsilon)


@cache
def works(device: torch.device) -> bool:
    """Whether Triton is here and knows this GPU (Ampere or later)."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)
