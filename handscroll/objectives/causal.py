"""Causal language modelling: predict the next token of the same document."""

from handscroll.data.batch import Batch
from handscroll.models.model import Model
from handscroll.nn.mask import SameSegment
from handscroll.objectives.head import cross_entropy
from handscroll.objectives.loss import Loss


def causal(model: Model, batch: Batch) -> Loss:
    """Loss over the batch's targets; packed rows neither attend nor predict across documents.

    The loss adds up over positions, so chunked steps may split it anywhere.
    """
    marks = batch.marks()
    mask = model.mask() if marks.plain else model.mask() & SameSegment()
    hidden = model.hidden(model.embed(batch.tokens, marks), marks, mask, length=batch.tokens.shape[1])
    total, count = cross_entropy(hidden.flatten(0, 1), model.head, batch.targets.flatten())
    return Loss(total, int(count))
