"""Causal language modelling: predict the next token of the same document."""

from dataclasses import dataclass

from handscroll.data.batch import Batch
from handscroll.models.model import Model
from handscroll.nn.marks import Marks
from handscroll.nn.mask import Mask, SameSegment
from handscroll.nn.shapes import Embeddings
from handscroll.objectives.head import cross_entropy
from handscroll.objectives.loss import Loss


@dataclass(frozen=True)
class Causal:
    """Cross-entropy of the batch's targets; packed rows neither attend nor predict across documents.

    With `smoothing` s each target keeps 1 - s of its weight and the rest is spread over the vocabulary (Szegedy et
    al. 2016); the loss is then no log-likelihood.
    """

    smoothing: float = 0.0
    additive: bool = True

    def mask(self, model: Model, marks: Marks) -> Mask:
        return model.mask() if marks.plain else model.mask() & SameSegment()

    def loss(self, model: Model, hidden: Embeddings, batch: Batch) -> Loss:
        total, count = cross_entropy(hidden.flatten(0, 1), model.head, batch.targets.flatten(), self.smoothing)
        return Loss(total, int(count))
