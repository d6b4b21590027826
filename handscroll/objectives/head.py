"""Chunked projection + cross-entropy: the loss of T tokens without T x V logits.

The forward pass forms the gradient chunk by chunk (as in Hsu et al. 2024, "Liger Kernel"). So each chunk's logits are
computed once and freed at once. This takes three matrix products per chunk, as many as without chunks.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from handscroll.base.errors import ConfigError
from handscroll.base.portions import LOGITS
from handscroll.kernels.runs import capped
from handscroll.nn.finite import finite

IGNORE = -100


def chunk_rows(vocab: int, count: int = 0, device: str = "cpu") -> int:
    """Tokens per chunk, such that their float32 logits take about `LOGITS` of the device.

    Given the `count` of all tokens, the chunks get nearly equal sizes, because each chunk reads the whole head once.
    """
    rows = max(16, LOGITS["cpu" if device == "cpu" else "cuda"] // (4 * vocab))
    return rows if not count else -(-count // max(1, round(count / rows)))


def cross_entropy(
    hidden: Float[Tensor, "N D"],
    head: Float[Tensor, "V D"],
    targets: Int[Tensor, "N"],
    smoothing: float = 0.0,
    bias: Float[Tensor, "V"] | None = None,
    cap: float | None = None,
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """Sum of the cross-entropy in nats over targets that are not -100, and their count.

    The logits are z = hidden @ head.T + bias; with a cap they are cap * tanh(z / cap). The sum is differentiable in
    hidden, head and bias. Softmax and sum use float32 (float64 for float64 input); the products use autocast's dtype
    when autocast is on. When no target counts, the result is a differentiable zero.

    With label smoothing s the loss of a target y is -(1 - s) log p(y) - s / V sum_v log p(v) (Szegedy et al. 2015,
    arXiv:1512.00567, section 7), as in torch. A smoothed loss does not measure the text: its exponential is not a
    perplexity, and it cannot be compared with an unsmoothed loss. `token_losses` never smooths.

    Raises:
        ConfigError: smoothing is not in [0, 1).
    """
    total, _, counted = cross_entropy_by_token(hidden, head, targets, smoothing, bias, cap)
    return total, counted.sum()


def cross_entropy_by_token(
    hidden: Float[Tensor, "N D"],
    head: Float[Tensor, "V D"],
    targets: Int[Tensor, "N"],
    smoothing: float = 0.0,
    bias: Float[Tensor, "V"] | None = None,
    cap: float | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, "M"], Bool[Tensor, "N"]]:
    """`cross_entropy`, and the loss of each counted target.

    Returns the sum, the M losses (not differentiable, never smoothed) and the mask of the counted targets.
    """
    if not 0 <= smoothing < 1:
        raise ConfigError(
            f"label smoothing is {smoothing}: give a share of at least 0 (none) and below 1, for example 0.1"
        )
    counted = targets != IGNORE
    if not torch.is_grad_enabled():  # otherwise the gradients would be computed without any use
        hidden, head, bias = hidden.detach(), head.detach(), None if bias is None else bias.detach()
    if not bool(counted.all()):  # tokens that do not count need no logits
        hidden, targets = hidden[counted], targets[counted]
    total, losses = _ChunkedCrossEntropy.apply(hidden, head, targets, smoothing, bias, cap)
    return total, losses, counted


@torch.no_grad()
def token_losses(
    hidden: Float[Tensor, "N D"],
    project: Callable[[Tensor], Tensor],
    vocab: int,
    targets: Int[Tensor, "N"],
    bias: Float[Tensor, "V"] | None = None,
    cap: float | None = None,
) -> Tensor:
    """Cross-entropy in nats of each target (N,), without gradients; 0 where the target is -100.

    `project` is hidden (n, D) -> (n, `vocab`), such as `Model.project`: a quantised head is never dequantised.

    Raises:
        CheckpointError: a loss is NaN or infinite.
    """
    losses = []
    rows = chunk_rows(vocab, hidden.shape[0], hidden.device.type)
    for first in range(0, hidden.shape[0], rows):
        logits = capped(_biased(_wide(project(hidden[first : first + rows])), bias), cap)
        chosen = targets[first : first + rows]
        picked = logits.gather(1, chosen.clamp_min(0).unsqueeze(1)).squeeze(1)
        losses.append(torch.where(chosen == IGNORE, 0.0, logits.logsumexp(dim=1) - picked))
    return finite(torch.cat(losses)) if losses else hidden.new_zeros(0)


def _project(hidden: Tensor, head: Tensor) -> Tensor:
    return _wide(hidden @ head.T)


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _biased(logits: Tensor, bias: Tensor | None) -> Tensor:
    """`logits` with the bias added in place; no other code may hold these logits."""
    return logits if bias is None else logits.add_(bias)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        hidden: Tensor,
        head: Tensor,
        targets: Tensor,
        smoothing: float,
        bias: Tensor | None,
        cap: float | None,
    ) -> tuple[Tensor, Tensor]:
        if torch.is_autocast_enabled(hidden.device.type):
            working = torch.get_autocast_dtype(hidden.device.type)
            hidden_work, head_work = hidden.to(working), head.to(working)
        else:
            hidden_work, head_work = hidden, head
        wide = torch.promote_types(hidden_work.dtype, torch.float32)
        need_hidden, need_head, _, _, need_bias, _ = ctx.needs_input_grad
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_head = torch.zeros(head.shape, dtype=wide, device=head.device) if need_head else None
        grad_bias = torch.zeros(head.shape[0], dtype=wide, device=head.device) if need_bias else None
        total = torch.zeros((), dtype=wide, device=hidden.device)
        losses = torch.empty(hidden.shape[0], dtype=wide, device=hidden.device)
        rows = chunk_rows(head.shape[0], hidden.shape[0], hidden.device.type)
        with torch.autocast(hidden.device.type, enabled=False):
            for first in range(0, hidden.shape[0], rows):
                part, chosen = hidden_work[first : first + rows], targets[first : first + rows].unsqueeze(1)
                logits = capped(_biased(_project(part, head_work), bias), cap)
                bend = None if cap is None or not any(ctx.needs_input_grad) else 1.0 - (logits / cap).square()
                logits.sub_(logits.amax(dim=1, keepdim=True))
                picked = logits.gather(1, chosen)
                if smoothing:
                    total += smoothing * (picked.sum() - logits.mean(dim=1).sum())
                weight = logits.exp_().sum(dim=1, keepdim=True)
                losses[first : first + rows] = (weight.log() - picked).squeeze(1)
                total += losses[first : first + rows].sum()
                if not (need_hidden or need_head or need_bias):
                    continue
                logits.div_(weight)  # now probabilities
                if smoothing:
                    logits.sub_(smoothing / logits.shape[1])
                logits.scatter_add_(1, chosen, torch.full_like(weight, smoothing - 1))  # now d loss / d logits
                if bend is not None:
                    logits.mul_(bend)  # the derivative of cap * tanh(z / cap)
                if grad_bias is not None:
                    grad_bias += logits.sum(dim=0)
                slope = logits.to(hidden_work.dtype)
                if grad_hidden is not None:
                    grad_hidden[first : first + rows] = slope @ head_work
                if grad_head is not None:
                    if slope.dtype == wide:
                        grad_head.addmm_(slope.T, part)
                    else:
                        grad_head += (slope.T @ part).to(wide)
                del logits, slope, bend  # free them before the next chunk allocates its own
        ctx.save_for_backward(grad_hidden, grad_head, grad_bias)
        ctx.head_dtype = head.dtype
        ctx.mark_non_differentiable(losses)
        return total, losses

    @staticmethod
    def backward(ctx, grad_total: Tensor, _: Tensor):
        grad_hidden, grad_head, grad_bias = ctx.saved_tensors
        if grad_hidden is not None:
            grad_hidden = grad_hidden * grad_total.to(grad_hidden.dtype)
        if grad_head is not None:
            grad_head = (grad_head * grad_total.to(grad_head.dtype)).to(ctx.head_dtype)
        if grad_bias is not None:
            grad_bias = (grad_bias * grad_total.to(grad_bias.dtype)).to(ctx.head_dtype)
        return grad_hidden, grad_head, None, None, grad_bias, None
