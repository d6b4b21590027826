"""The place of a new token of every row in a cache on a GPU, and whether its kernels (`step.py`, Triton) can run."""

import importlib.util
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

FEW = 8  # most tokens for which norms and rotations use these kernels


@dataclass(frozen=True, eq=False)
class Slots:
    """The buffers (B, K, capacity, E) of a layer, filled up to and including `slot` (1,), a number in the GPU's memory.

    `window` is the number of last keys that are read; 0: all.
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
        """Write keys and values into the slot."""
        from handscroll.kernels.gpu import step

        step.append(self.keys, self.values, keys, values, self.slot)


def refuses_turn(x: Tensor, cosine: Tensor) -> str:
    """Why `turn` does not take them, or "".

    It needs few tokens (B, H, T, E) on a GPU in half precision, and float32 tables.
    """
    if refused := _refuses_few(x):
        return refused
    return "" if cosine.dtype == torch.float32 and x.stride(-1) == 1 else "tables are not float32, or there are gaps"


def turn(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """`step.turn`: x with the first numbers of each head rotated."""
    from handscroll.kernels.gpu import step

    return step.turn(x, cosine, sine)


def refuses_norm(x: Tensor, weight: Tensor) -> str:
    """Why `norm` does not take them; it needs few contiguous tokens (..., T, D) on a GPU, in the weight's dtype."""
    if refused := _refuses_few(x):
        return refused
    fits = x.dtype == weight.dtype and x.shape[-1] <= 1 << 14 and x.is_contiguous()
    return "" if fits else "the weight is in another dtype, or rows are too long or have gaps"


def norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """`step.norm`: the root-mean-square norm of a few rows."""
    from handscroll.kernels.gpu import step

    return step.norm(x, weight, epsilon)


def _refuses_few(x: Tensor) -> str:
    if x.device.type != "cuda":
        return "the tensors are not on a GPU"
    if x.dim() < 2 or x.shape[-2] > FEW or not x.numel():
        return f"more than {FEW} tokens"
    if x.dtype not in (torch.bfloat16, torch.float16):
        return "it computes in half precision only"
    return "" if works(x.device) else "Triton is not here, or does not know this GPU"


@cache
def works(device: torch.device) -> bool:
    """Whether Triton is installed and supports this GPU (Ampere or later)."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)
