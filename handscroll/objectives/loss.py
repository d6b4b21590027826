"""A loss is a sum and a count. It is divided only once, by the global count."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Loss:
    """`total` nats over `count` targets, and `metrics` that add up in the same way (name: (sum, count))."""

    total: Tensor
    count: int
    metrics: dict[str, tuple[float, int]] = field(default_factory=dict)

    def detached(self) -> "Loss":
        """The same numbers without the graph, so that a list of losses does not keep graphs in memory."""
        return replace(self, total=self.total.detach())


def summed(losses: Iterable[Loss]) -> Loss:
    """The sum of several losses and their metrics, in float64 on the CPU, without a graph."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    metrics: dict[str, tuple[float, int]] = {}
    for loss in losses:
        total, count = total + loss.total.detach().double().cpu(), count + loss.count
        for name, (value, number) in loss.metrics.items():
            before = metrics.get(name, (0.0, 0))
            metrics[name] = (before[0] + value, before[1] + number)
    return Loss(total, count, metrics)
