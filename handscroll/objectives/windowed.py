"""Losses of a text of any length in constant memory, from overlapping windows that are read separately."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from handscroll.models.model import Model
from handscroll.nn.marks import Marks
from handscroll.objectives.head import token_losses

TOKENS = 4096  # per batch of windows


@torch.no_grad()
def windowed_losses(model: Model, ids: Int[Tensor, "T"], window: int) -> Float[Tensor, "T-1"]:
    """Cross-entropy in nats of tokens 1 .. T-1, in float32 on the CPU. T must exceed `window`; `window` is at least 2.

    All windows have the same length and overlap by half; a batch holds several. Each window scores its second half,
    and the first window scores all of its tokens.
    """
    stride = max(1, window // 2)
    losses = torch.empty(len(ids) - 1)
    done = 0
    starts = [*range(0, len(ids) - window, stride), len(ids) - window]
    rows = max(1, TOKENS // window)
    for group in (starts[i : i + rows] for i in range(0, len(starts), rows)):
        tokens = torch.stack([ids[s : s + window] for s in group]).to(model.device)
        marks = Marks.run(0, window - 1)
        hidden = model.hidden(model.embed(tokens[:, :-1], marks), marks, model.mask(), length=window)
        targets, vocab, made = tokens[:, 1:].flatten(), model.config.vocab, model.prepared(hidden.flatten(0, 1))
        scores = token_losses(made, model.project, vocab, targets, cap=model.logit_cap)
        for start, row in zip(group, scores.view(len(group), -1).float().cpu(), strict=True):
            losses[done : start + window - 1] = row[done - start :]
            done = start + window - 1
    return losses
