"""Regularisation: L1 and L2 penalties on the weights, dropout, label smoothing."""

import torch
from pydantic import Field
from torch import Tensor, nn

from handscroll.base.config import Config
from handscroll.train.optim import decays


class Regularise(Config):
    """The penalty l1 * sum |w| + (l2 / 2) * sum w^2, added to the mean loss in nats per token, and dropout.

    The penalty acts on the same parameters as weight decay (`optim.decays`): trainable matrices, including embeddings
    and head, but not norms and biases. Unlike weight decay it passes through clipping and through the optimiser's
    moments. The L2 part differs from Adam's coupled weight decay only in the clipping. With adamw, Adam or LAMB the L1
    part makes weights small. But the size of their steps does not depend on the gradient's, so the weights swing around
    0 and never become exactly 0.
    """

    l1: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    l2: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    dropout: float = Field(default=0.0, ge=0, lt=1, description="share dropped from embeddings and layer branches")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="share of a target spread over the vocabulary")


@torch.no_grad()
def add_penalty(model: nn.Module, settings: Regularise) -> float:
    """Add the penalty's gradient, l1 * sign(w) + l2 * w (0 at w = 0), to `.grad`. Returns the penalty.

    Call it once an update: before clipping, and after the gradients of all micro-batches and workers are summed and
    divided by the count of targets. A missing `.grad` is made. If both settings are 0, nothing changes. The gradient is
    elementwise, so sharded parameters (DTensor) stay sharded. Every rank must call it, because the penalty is a sum
    over all shards.
    """
    if not settings.l1 and not settings.l2:
        return 0.0
    parts = []
    for parameter in model.parameters():
        if not parameter.requires_grad or not decays(parameter):
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        wide = parameter.to(torch.promote_types(parameter.dtype, torch.float32))
        if settings.l1:
            parameter.grad.add_(parameter.sign(), alpha=settings.l1)
            parts.append(settings.l1 * wide.abs().sum())
        if settings.l2:
            parameter.grad.add_(parameter, alpha=settings.l2)
            parts.append(settings.l2 / 2 * wide.square().sum())
    return sum(scalar(part) for part in parts)  # at the end, so that the CPU waits for the GPU only once


def scalar(value: Tensor) -> float:
    """A reduced tensor as a Python number. A sharded tensor (DTensor) is gathered first, so every rank must call it."""
    # float() of a DTensor silently takes only this rank's part (torch 2.13).
    whole = getattr(value, "full_tensor", None)
    return float(value if whole is None else whole())
