"""Regularisation: L1 and L2 penalties on the weights, dropout, label smoothing."""

import torch
from pydantic import Field
from torch import Tensor, nn

from handscroll.base.config import Config
from handscroll.train.optim import decays


class Regularise(Config):
    """Penalty l1 * sum |w| + (l2 / 2) * sum w^2, added to the mean loss in nats per token.

    It acts on the trainable matrices, embeddings and head included, norms and biases not: the set that weight decay
    acts on (`optim.decays`). Unlike weight decay it passes through clipping and through the optimiser's moments; the
    L2 part and Adam's coupled weight decay differ only in the clipping. With adamw, Adam or LAMB the L1 part makes
    weights small but, since their steps have a size of their own, leaves them swinging around 0, never exactly 0.
    """

    l1: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    l2: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    dropout: float = Field(default=0.0, ge=0, lt=1, description="of embeddings and of each layer's two branches")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="share of a target spread over the vocabulary")


@torch.no_grad()
def add_penalty(model: nn.Module, settings: Regularise) -> float:
    """Add the penalty's gradient, l1 * sign(w) + l2 * w (0 at w = 0), to `.grad`; returns the penalty.

    Call it once an update: after the gradients of all micro-batches and workers are together and divided by the
    count of targets, before clipping. A missing `.grad` is made. With both settings 0 nothing is touched.
    Elementwise, so sharded parameters (DTensor) stay sharded; every rank must call it, for the sum is of all shards.
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
    return sum(scalar(part) for part in parts)  # last, so that a GPU is waited for once all work is queued


def scalar(value: Tensor) -> float:
    """A reduced tensor as a Python number. That of a sharded one (DTensor) is put together first, by every rank."""
    # float() of a DTensor takes the part of this rank without a word (torch 2.13).
    whole = getattr(value, "full_tensor", None)
    return float(value if whole is None else whole())
