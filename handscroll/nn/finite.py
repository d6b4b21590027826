"""Refuses what is no number: NaN and infinity in what a model returns, and in its weights."""

import math

import torch
from torch import Tensor, nn

from handscroll.base.errors import CheckpointError

WHY = (
    "the weights are damaged, or overflow in this dtype (float16 does for some checkpoints); check the files or load "
    "with dtype bfloat16 or float32"
)


def finite(values: Tensor) -> Tensor:
    """Logits, losses or states of a model, or a CheckpointError where one of them is NaN or infinite."""
    if not _all_numbers(values):
        raise CheckpointError(f"the model returned logits that are not numbers: {WHY}")
    return values


def finite_weight(name: str, weight: Tensor) -> Tensor:
    """A tensor of weights, or a CheckpointError with its name."""
    if not _all_numbers(weight):
        raise CheckpointError(f"tensor '{name}' holds values that are not numbers: {WHY}")
    return weight


def check_weights(model: nn.Module) -> None:
    """Refuse (CheckpointError) weights that are NaN or infinite, by name, before work that ends in new weights.

    Every number is read once, so requests for text go without this check: they meet such a weight in their logits.
    """
    for name, weight in model.named_parameters():
        finite_weight(name, weight)


@torch.no_grad()
def _all_numbers(values: Tensor) -> bool:
    return not values.numel() or all(map(math.isfinite, torch.stack(values.aminmax()).tolist()))
