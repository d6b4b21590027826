"""Causal language modelling: predict the next token of the same document."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from handscroll.base.errors import ConfigError
from handscroll.data.batch import Batch
from handscroll.data.row import IGNORED
from handscroll.models.model import Model
from handscroll.nn.marks import Marks
from handscroll.nn.mask import Mask, SameSegment
from handscroll.nn.quantised import quantised
from handscroll.nn.shapes import Embeddings
from handscroll.objectives.head import cross_entropy_by_token
from handscroll.objectives.loss import Loss
from handscroll.objectives.settings import ObjectiveSettings

QUARTERS = tuple(f"loss_quarter_{number}" for number in (1, 2, 3, 4))


@dataclass(frozen=True)
class Causal:
    """Cross-entropy of the batch's targets; packed rows neither attend nor predict across documents.

    With `smoothing` s each target keeps 1 - s of its weight and the rest is spread over the vocabulary (Szegedy et
    al. 2016); the loss is then not a log-likelihood. With `by_position` the metrics hold four losses: targets are
    grouped by the quarter of the row's length in which their position in their document lies.
    """

    smoothing: float = 0.0
    by_position: bool = False
    additive: bool = True

    def mask(self, model: Model, marks: Marks) -> Mask:
        """The model's own mask, restricted to one document when rows are packed.

        Raises:
            ConfigError: the model is an encoder, so it sees the tokens that it should predict.
        """
        if model.spec.both_ways:
            raise ConfigError(
                f"objective 'causal' predicts the next token, but a {model.config.family} already sees it: use "
                "objective 'masked', or a causal model (llama, gpt2, ...)"
            )
        return model.mask() if marks.plain else model.mask() & SameSegment()

    def loss(self, model: Model, hidden: Embeddings, batch: Batch) -> Loss:
        targets = batch.targets.flatten()
        if not bool((targets != IGNORED).any()) and quantised(model):  # a chunk without answers: the head stays narrow
            return Loss(0.0 * hidden.sum(), 0)
        total, losses, counted = cross_entropy_by_token(
            model.prepared(hidden.flatten(0, 1)), model.head, targets, self.smoothing, cap=model.logit_cap
        )
        metrics = by_quarter(batch, losses, counted) if self.by_position else {}
        return Loss(total, int(counted.sum()), metrics)


class NextToken(ObjectiveSettings):
    """Predict the next token of real text, of repeated segments, and of answers about facts in the text."""

    name: ClassVar[str] = "causal"
    kinds: ClassVar[tuple[str, ...]] = ("text", "copies", "facts")
    continued: ClassVar[bool] = True
    quarters: ClassVar[bool] = True

    def fits(self, model: Model) -> bool:
        return model.spec.reads == "forward" and model.spec.predicts

    def build(self, model: Model, data: Mapping[str, Any], smoothing: float, by_position: bool) -> Causal:
        return Causal(smoothing, by_position=by_position)


def by_quarter(batch: Batch, losses: Tensor, counted: Tensor) -> dict[str, tuple[float, int]]:
    """(sum, count) of `losses` for each quarter of the row's length.

    `counted` (B * T) marks the targets that `losses` belong to. The position of a target in its document decides its
    quarter.
    """
    targets = batch.targets
    positions = batch.marks().tensors(targets.device)[2].expand_as(targets).flatten()[counted]
    quarter = (positions * 4 // (batch.width or targets.shape[1])).clamp_max(3)
    sums = torch.zeros(4, dtype=torch.float64, device=targets.device)
    sums.index_add_(0, quarter, losses.double())
    counts = torch.bincount(quarter, minlength=4)
    return dict(zip(QUARTERS, zip(sums.tolist(), counts.tolist(), strict=True), strict=True))
