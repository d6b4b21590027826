"""Optimisers: torch's AdamW, and Muon for hidden matrices with AdamW for the rest."""

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from handscroll.base.config import Config


class Optimizer(Config):
    """Which update rule, and its rates. Rates are peaks; the schedule multiplies them.

    muon (Jordan et al. 2024): orthogonalised momentum on the matrices of the layers at `matrix_lr`;
    embeddings, heads, norms and biases use AdamW at `lr`. adamw (Loshchilov & Hutter 2017) uses `lr` for all.
    Weight decay acts on matrices only.
    """

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = Field(default=3e-4, gt=0)
    matrix_lr: float = Field(default=0.02, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    momentum: float = Field(default=0.95, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    clip: float | None = Field(default=1.0, gt=0, description="largest global gradient norm; null: no clipping")

    def build(self, model: nn.Module) -> dict[str, torch.optim.Optimizer]:
        """The optimisers by name over the parameters that require gradients."""
        tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        head = id(getattr(model, "head", None))
        matrices, decayed, rest = [], [], []
        for parameter in model.parameters():
            if not parameter.requires_grad:
                continue
            if parameter.dim() < 2:
                rest.append(parameter)
            elif self.name == "muon" and id(parameter) not in tables and id(parameter) != head:
                matrices.append(parameter)
            else:
                decayed.append(parameter)
        groups = [
            {"params": decayed, "weight_decay": self.weight_decay},
            {"params": rest, "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        optimizers: dict[str, torch.optim.Optimizer] = {}
        if groups:
            optimizers["adamw"] = torch.optim.AdamW(groups, lr=self.lr, betas=self.betas)
        if matrices:
            optimizers["muon"] = torch.optim.Muon(
                matrices, lr=self.matrix_lr, momentum=self.momentum, weight_decay=self.weight_decay
            )
        for optimizer in optimizers.values():
            for group in optimizer.param_groups:
                group["peak"] = group["lr"]
        return optimizers
