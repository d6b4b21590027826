"""A memory strategy: one way to get the loss and the gradients of a micro-batch. All exact ones agree."""

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
    """No one is waiting."""


@dataclass(frozen=True, eq=False)
class Pass:
    """One forward and backward pass of a strategy over a micro-batch.

    Gradients are of the summed loss over `divisor`; `length` is the declared length of the rows;
    `first_row` numbers the first row within the update. `pulse(done)` is
    called between chunks with the share of the work that is done; it may raise to abandon the step, and the gradients
    are then worthless.
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
        """The one place where mixed precision is entered. Weights are cast anew in each block: a cast made without
        gradient must not be found in autocast's cache by a pass that needs one."""
        return torch.autocast(model.device.type, dtype=self.autocast, enabled=self.autocast is not None)


class Strategy(Protocol):
    """Adds the gradients of a micro-batch to the parameters and returns its loss."""

    def __call__(self, model: Decoder, batch: Batch, request: Pass) -> Loss: ...
