"""The `Objective` contract: what a training step asks of a task, whichever memory strategy runs it."""

from typing import Protocol

from handscroll.data.batch import Batch
from handscroll.models.model import Model
from handscroll.nn.marks import Marks
from handscroll.nn.mask import Mask
from handscroll.nn.shapes import Embeddings
from handscroll.objectives.loss import Loss


class Objective(Protocol):
    """A loss on hidden states.

    `additive` says that the loss of a row is the sum of the losses of any pieces of it; strategies that work in chunks
    refuse objectives without it.
    """

    @property
    def additive(self) -> bool:
        """Whether pieces of a row may be scored apart."""
        ...

    def mask(self, model: Model, marks: Marks) -> Mask:
        """Who sees whom, for rows with these marks."""
        ...

    def loss(self, model: Model, hidden: Embeddings, batch: Batch) -> Loss:
        """Sum and count over the targets of `batch`, whose final hidden states are `hidden` (B, T, D)."""
        ...
