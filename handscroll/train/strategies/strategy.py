"""The interface of a memory strategy, which computes the loss and the gradients of a micro-batch.

All exact strategies give the same result.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch

from handscroll.data.batch import Batch
from handscroll.models.model import Decoder
from handscroll.nn.noise import Noise
from handscroll.objectives.loss import Loss
from handscroll.objectives.objective import Objective
from handscroll.train.parallel.world import ALONE, World


def _nothing(done: float) -> None:
    """The default pulse, which does nothing."""


@dataclass(frozen=True, eq=False)
class Pass:
    """One forward and backward pass of a strategy over a micro-batch.

    The gradients are those of the summed loss divided by `divisor`. `length` is the declared length of the rows.
    `first_row` is the number of the first row within the update. `pulse(done)` is called between chunks with the share
    of the work that is done. It may raise to abandon the step; the gradients are then invalid.
    """

    objective: Objective
    divisor: int
    length: int
    autocast: torch.dtype | None = None
    noise: Noise | None = None
    world: World = ALONE
    first_row: int = 0
    pulse: Callable[[float], None] = _nothing

    def precision(self, model: Decoder) -> AbstractContextManager:
        """The context of mixed precision; it is entered nowhere else.

        Weights are cast again in each block. Otherwise a pass that needs gradients could find in autocast's cache a
        cast that was made without them.
        """
        return torch.autocast(model.device.type, dtype=self.autocast, enabled=self.autocast is not None)


class Strategy(Protocol):
    """Adds the gradients of a micro-batch to the parameters and returns its loss."""

    def __call__(self, model: Decoder, batch: Batch, request: Pass) -> Loss: ...
