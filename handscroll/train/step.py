"""The `Step` seam: loss and accumulated gradients of one update's micro-batches."""

from collections.abc import Callable, Sequence

import torch

from handscroll.data.batch import Batch
from handscroll.models.model import Model
from handscroll.objectives.loss import Loss

Objective = Callable[[Model, Batch], Loss]


def plain(model: Model, batches: Sequence[Batch], objective: Objective, autocast: torch.dtype | None) -> Loss:
    """Forward and backward of each micro-batch; gradients are of the sum over the global count.

    Every micro-batch is divided by the count of all of them, so that one step of 8 rows and two of 4 give
    the same gradient whatever their padding.
    """
    count = sum(batch.counted for batch in batches)
    total = torch.zeros((), dtype=torch.float64)
    metrics: dict[str, tuple[float, int]] = {}
    for batch in batches:
        with torch.autocast(model.device.type, dtype=autocast, enabled=autocast is not None):
            loss = objective(model, batch.to(model.device))
        (loss.total / max(1, count)).backward()
        total += loss.total.detach().double().cpu()
        for name, (value, number) in loss.metrics.items():
            before = metrics.get(name, (0.0, 0))
            metrics[name] = (before[0] + value, before[1] + number)
    return Loss(total, count, metrics)
