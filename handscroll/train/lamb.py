"""LAMB, for large batches: Adam's step of each tensor, scaled to the norm of its weights (You et al. 2019)."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class Lamb(torch.optim.Optimizer):
    """w -= lr * ratio * u, with u = m' / (sqrt(v') + eps) + weight_decay * w and ratio = |w| / |u|.

    m and v are Adam's moments, m' = m / (1 - beta1^t) and v' = v / (1 - beta2^t). Norms are taken over one tensor.
    The ratio is 1 where |w| or |u| is 0, and in groups with `adapt=False`.
    Source: You et al. 2019, arXiv:1904.00962, algorithm 2, with phi the identity. The authors' released code
    leaves norms and biases out of weight decay and of the ratio. `train/optim.py` does the same with `adapt`. Without
    `bias_correction` it is the variant of their version 3, which relies on the warm-up of the rate.
    Limits: dense real gradients only; it has no fused form and runs many small kernels. It does not divide by the norm
    of the whole gradient, as NVIDIA's variant does; use the loop's `clip` for that.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        bias_correction: bool = True,
    ):
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults | {"bias_correction": bias_correction, "adapt": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient. Returns the result of `closure`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.add_(self._direction(parameter, parameter.grad, group), alpha=-group["lr"])
        return loss

    def _direction(self, weight: Tensor, grad: Tensor, group: dict[str, Any]) -> Tensor:
        state, (beta1, beta2) = self.state[weight], group["betas"]
        if not state:
            # The counter is on the CPU, as in torch's optimisers, so that reading it never waits for the GPU.
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        state["step"] += 1
        state["exp_avg"].lerp_(grad, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        number = state["step"].item()
        first, second = (1 - beta1**number, 1 - beta2**number) if group["bias_correction"] else (1.0, 1.0)
        update = (state["exp_avg"] / first).div_((state["exp_avg_sq"] / second).sqrt_().add_(group["eps"]))
        if group["weight_decay"]:
            update.add_(weight, alpha=group["weight_decay"])
        if not group["adapt"]:
            return update
        size, length = torch.linalg.vector_norm(weight), torch.linalg.vector_norm(update)
        # Otherwise zero weights (new biases, LoRA's B) would never move, and 0 / 0 would give NaN.
        ratio = torch.where((size > 0) & (length > 0), size / length, torch.ones_like(size))
        return update.mul_(ratio)
