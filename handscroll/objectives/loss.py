"""A loss is a sum and a count; division happens once, by the global count."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Loss:
    """`total` nats over `count` targets, and further sums that add up the same way (`name`: (sum, count))."""

    total: Tensor
    count: int
    metrics: dict[str, tuple[float, int]] = field(default_factory=dict)
