"""Runs a token-wise module on one tile of tokens at a time, so that its inner activations exist for one tile only.

The forward builds no graph; the backward recomputes tile by tile (the tiled MLP of Bekman et al. 2025, "Arctic Long
Sequence Training"). This costs one more forward of the module.
"""

from typing import Any

import torch
from torch import Tensor, nn

from handscroll.kernels import gradient


def tiled(module: nn.Module, x: Tensor, size: int) -> Tensor:
    """`module(x)` for `x` (B, T, D), `size` tokens at a time; with `size` 0 or a single tile it is the plain call."""
    if not size or x.shape[1] <= size:
        return module(x)
    if not torch.is_grad_enabled():
        return torch.cat([module(part) for part in x.split(size, dim=1)], dim=1)
    return _Tiled.apply(x, module, size, *(p for p in module.parameters() if p.requires_grad))


class _Tiled(torch.autograd.Function):
    """The parameters are inputs, so that a graph is built even if `x` needs no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: nn.Module, size: int, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.module, ctx.size, ctx.parameters = module, size, parameters
        ctx.autocast = (
            x.device.type,
            torch.get_autocast_dtype(x.device.type),
            torch.is_autocast_enabled(x.device.type),
        )
        with gradient.repeated():
            return torch.cat([module(part) for part in x.split(size, dim=1)], dim=1)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        grad = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        totals: list[Tensor | None] = [None] * len(ctx.parameters)
        device, dtype, enabled = ctx.autocast
        for first in range(0, x.shape[1], ctx.size):
            rows = slice(first, first + ctx.size)
            part = x[:, rows].detach().requires_grad_(grad is not None)
            with torch.enable_grad(), torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=False):
                out = ctx.module(part)
            inputs = [*([part] if grad is not None else []), *ctx.parameters]
            found = list(torch.autograd.grad(out, inputs, slopes[0][:, rows]))
            if grad is not None:
                grad[:, rows] = found.pop(0)
            for number, change in enumerate(found):
                total = totals[number]
                totals[number] = change if total is None else total.add_(change)
        return (grad, None, None, *totals)
