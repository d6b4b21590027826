"""Symbolic attention biases: small frozen descriptions of what is added to the scores, made on tiles as masks are.

A bias is a number per head and pair of positions; kernels ask for it piece by piece and never hold it whole.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from handscroll.nn.marks import Marks


class Bias:
    """What is added to the scaled scores of every head. Subclasses implement `values`; nothing in it is learned."""

    def values(self, query: Marks, key: Marks, device: torch.device) -> Float[Tensor, "rows H T S"]:
        """Float32 (B or 1, H, T, S) from the positions of queries and keys. Called on tiles only."""
        raise NotImplementedError


@dataclass(frozen=True)
class ALiBi(Bias):
    """m_h * (key position - query position): further back counts less, at a rate of its own in every head.

    Slopes: m_h = 2^(-8 h / n), h = 1 .. n, for n a power of two; of another number of heads the first ones are those
    of the power of two below it, the rest every other one of the power of two above it.
    `factor` divides all slopes, which is position interpolation for such models.
    Source: Press et al. 2022, "Train Short, Test Long", arXiv:2108.12409, section 3 and its released code;
    Al-Khateeb et al. 2023, "Position Interpolation Improves ALiBi Extrapolation", arXiv:2310.13017.
    """

    heads: int
    factor: float = 1.0

    @property
    def slopes(self) -> tuple[float, ...]:
        """One positive number a head."""
        whole = 1 << (self.heads.bit_length() - 1)  # the power of two that is not above the number of heads
        rest = _slopes(2 * whole)[::2][: self.heads - whole]
        return tuple(slope / self.factor for slope in (*_slopes(whole), *rest))

    def values(self, query: Marks, key: Marks, device: torch.device) -> Float[Tensor, "rows H T S"]:
        q, k = query.tensors(device)[2], key.tensors(device)[2]
        distances = (k[:, None, None, :] - q[:, None, :, None]).to(torch.float32)
        return distances * torch.tensor(self.slopes, dtype=torch.float32, device=device)[:, None, None]


def _slopes(heads: int) -> list[float]:
    return [math.pow(2.0, -8.0 * (head + 1) / heads) for head in range(heads)]
