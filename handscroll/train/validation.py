"""The loss of a model on rows that no update learns from."""

from collections.abc import Callable, Iterator, Sequence

import torch

from handscroll.data.batch import Batch
from handscroll.models.model import Model
from handscroll.nn.finite import finite
from handscroll.objectives.objective import Objective

Pulse = Callable[[float], None]  # is told the share that is done, and may raise `step.Abandoned`
Validate = Callable[[Model, Pulse], float]


def validator(objective: Objective, batches: Sequence[Batch], length: int = 0) -> Validate:
    """A function that computes the mean loss on `batches`.

    The model reads them as rows of `length` tokens (0: as wide as they are).
    """

    @torch.no_grad()
    def validate(model: Model, pulse: Pulse = lambda done: None) -> float:
        total, count = 0.0, 0
        for one in beating(batches, pulse):
            batch = one.to(model.device)
            marks, here = batch.marks(), model
            if batch.source is not None:
                here = model.under(model.encode(batch.source.tokens, batch.source.marks()))
            mask = objective.mask(here, marks)
            width = length or batch.tokens.shape[1]
            hidden = here.hidden(here.embed(batch.tokens, marks), marks, mask, length=width)
            loss = objective.loss(model, hidden, batch)
            total, count = total + float(finite(loss.total)), count + loss.count
        return total / count

    return validate


def beating(batches: Sequence[Batch], pulse: Pulse) -> Iterator[Batch]:
    """The batches, with a pulse after each."""
    for number, batch in enumerate(batches, start=1):
        yield batch
        pulse(number / len(batches))
