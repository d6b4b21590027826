"""The `Objective` contract: the methods that a training step calls, the same for every memory strategy."""

from typing import Protocol

from handscroll.data.batch import Batch
from handscroll.models.model import Model
from handscroll.nn.marks import Marks
from handscroll.nn.mask import Mask
from handscroll.nn.shapes import Embeddings
from handscroll.objectives.loss import Loss


class Objective(Protocol):
    """A loss on hidden states.

    `additive` means that a row may be cut into any pieces: the losses of the pieces add up to the loss of the row.
    Memory strategies that work in chunks refuse objectives that are not additive.
    """

    @property
    def additive(self) -> bool:
        """Whether the loss of a row is the sum of the losses of its pieces."""
        ...

    def mask(self, model: Model, marks: Marks) -> Mask:
        """The attention mask for rows with these marks."""
        ...

    def loss(self, model: Model, hidden: Embeddings, batch: Batch) -> Loss:
        """Sum and count over the targets of `batch`, whose final hidden states are `hidden` (B, T, D)."""
        ...
