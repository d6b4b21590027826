"""Masked language modelling, and next-sentence prediction where rows have labels for it (Devlin et al. 2019)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from handscroll.base.errors import ConfigError
from handscroll.data.batch import Batch
from handscroll.models.bert import Bert
from handscroll.models.model import Model
from handscroll.nn.marks import Marks
from handscroll.nn.mask import Mask, SameSegment
from handscroll.nn.shapes import Embeddings
from handscroll.objectives.causal import by_quarter
from handscroll.objectives.head import IGNORE, cross_entropy_by_token
from handscroll.objectives.loss import Loss


@dataclass(frozen=True)
class Masked:
    """Cross-entropy of the hidden tokens (`data/masking.py`), each in the place where it stood.

    Where a batch has labels, the cross-entropy of each is added, as heavy as `pair_share` x row length hidden tokens:
    with the rate of masking divided by the pairs of a row this is the paper's sum of two means. `smoothing` and
    `by_position` as in `Causal`; smoothing does not act on labels.
    """

    smoothing: float = 0.0
    by_position: bool = False
    pair_share: float = 0.15
    additive: bool = True

    def mask(self, model: Model, marks: Marks) -> Mask:
        """
        Raises:
            ConfigError: the model is causal, or has no masked-LM head.
        """
        if not isinstance(model, Bert):
            raise ConfigError(
                "objective 'masked' needs an encoder with a masked-LM head (bert, roberta); a "
                f"{model.config.family} is none: use objective 'causal'"
            )
        _ = model.head_bias  # refuses where there is no head
        return model.mask() if marks.plain else model.mask() & SameSegment()

    def loss(self, model: Model, hidden: Embeddings, batch: Batch) -> Loss:
        """Raises ConfigError where the batch has labels and the model no next-sentence head."""
        assert isinstance(model, Bert)
        counted = batch.targets.flatten() != IGNORE
        total, losses, _ = cross_entropy_by_token(
            model.prepared(hidden.flatten(0, 1)[counted]),
            model.head,
            batch.targets.flatten()[counted],
            self.smoothing,
            model.head_bias,
        )
        count = int(counted.sum())
        metrics = by_quarter(batch, losses, counted) if self.by_position else {}
        if batch.labels is not None:
            pairs, found = self._pairs(model, hidden, batch.labels)
            width = batch.width or batch.targets.shape[1]
            total = total + pairs.to(total.dtype) * (self.pair_share * width)
            metrics |= {"masked_loss": (float(losses.double().sum()), count)} | found
        return Loss(total, count, metrics)

    def _pairs(self, model: Bert, hidden: Embeddings, labels: Tensor) -> tuple[Tensor, dict[str, tuple[float, int]]]:
        """Summed cross-entropy of the labels, and what the record says of it."""
        where = labels != IGNORE
        logits = model.following_logits(hidden[where])
        wanted = labels[where]
        loss = F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), wanted, reduction="sum")
        right = int((logits.argmax(dim=-1) == wanted).sum())
        return loss, {"pair_loss": (float(loss.detach()), len(wanted)), "pair_accuracy": (right, len(wanted))}
