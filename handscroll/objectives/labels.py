"""What is learned from labels and numbers of whole texts, for any kind of head: one label, several, or a number."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from handscroll.base.errors import ConfigError
from handscroll.data.batch import Batch
from handscroll.data.row import IGNORED
from handscroll.models.model import Model
from handscroll.nn.mask import Mask, SameSegment
from handscroll.nn.shapes import Embeddings
from handscroll.objectives.loss import Loss

NUMBER = 1 << 20  # a number y stands in the targets as round(y * NUMBER), since targets are whole


@dataclass(frozen=True)
class Labels:
    """The loss of a head for texts. The target stands at the token whose state is read, one a text.

    problem "one": the number of the label; cross-entropy, with a weight for each label if `weights` are given (the
    loss is then divided by the number of texts, not by their weights). "several": the sum of 2^number over the right
    labels, at most 62; binary cross-entropy, mean over labels. "number": round(y * 2^20); squared error.
    """

    problem: str
    weights: tuple[float, ...] = ()
    additive: bool = False

    @classmethod
    def of(cls, model: Model, weights: tuple[float, ...] = ()) -> "Labels":
        """The loss for a given model.

        Raises:
            ConfigError: the model has no head for texts, or too many labels to choose several of.
        """
        head = model.spec.head
        if head is None or head.kind != "text":
            raise ConfigError(f"this model of family '{model.config.family}' has no head for labels of texts")
        if head.problem == "several" and len(head.labels) > 62:
            raise ConfigError(f"several of {len(head.labels)} labels cannot be learned at once: 62 are possible")
        return cls(head.problem, weights, additive=head.pool != "mean")

    def mask(self, model: Model, marks) -> Mask:
        return model.mask() & SameSegment()

    def loss(self, model: Model, hidden: Embeddings, batch: Batch) -> Loss:
        at = batch.targets != IGNORED
        outputs = model.classify(hidden, batch.marks(), at)
        outputs, targets = outputs.to(torch.promote_types(outputs.dtype, torch.float32)), batch.targets[at]
        count = len(targets)
        if self.problem == "number":
            errors = (outputs.squeeze(-1) - targets.to(outputs.dtype) / NUMBER).square()
            return Loss(errors.sum(), count)
        if self.problem == "several":
            return self._several(outputs, targets)
        weight = torch.tensor(self.weights, dtype=outputs.dtype, device=outputs.device) if self.weights else None
        total = F.cross_entropy(outputs, targets, reduction="sum", weight=weight)
        return Loss(total, count, {"accuracy": (float((outputs.argmax(dim=-1) == targets).sum()), count)})

    def _several(self, outputs: Tensor, targets: Tensor) -> Loss:
        count = len(targets)
        bits = (targets[:, None] >> torch.arange(outputs.shape[1], device=targets.device)) & 1
        total = F.binary_cross_entropy_with_logits(outputs, bits.to(outputs.dtype), reduction="sum") / outputs.shape[1]
        right = float(((outputs > 0) == bits.bool()).all(dim=1).sum())
        return Loss(total, count, {"all right": (right, count)})
