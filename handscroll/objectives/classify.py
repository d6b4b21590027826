"""Classification of documents: cross-entropy over labels, the target standing at each document's last token."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from handscroll.base.errors import ConfigError
from handscroll.data.batch import Batch
from handscroll.data.row import IGNORED
from handscroll.models.model import Model
from handscroll.nn.marks import Marks
from handscroll.nn.mask import Mask, SameSegment
from handscroll.nn.shapes import Embeddings
from handscroll.objectives.loss import Loss


@dataclass(frozen=True)
class Classify:
    """Labels of whole documents (`data/labelled.py`), by a model with `classify(hidden, marks, ends)`.

    It adds up over pieces of a row where only the state behind the last token counts; a mean over a document that a
    chunk holds in part is another mean, so rungs that work in chunks refuse it.
    """

    smoothing: float = 0.0
    additive: bool = False

    @classmethod
    def of(cls, model: Model, smoothing: float = 0.0) -> "Classify":
        """For a model.

        Raises:
            ConfigError: it is no classifier.
        """
        if not getattr(model.config, "labels", ()):
            raise ConfigError(f"family '{model.config.family}' as it is here has no labels to tell apart")
        return cls(smoothing, additive=model.config.pool == "last")

    def mask(self, model: Model, marks: Marks) -> Mask:
        return model.mask() & SameSegment()

    def loss(self, model: Model, hidden: Embeddings, batch: Batch) -> Loss:
        ends = batch.targets != IGNORED
        logits = model.classify(hidden, batch.marks(), ends)  # type: ignore[operator]
        logits, targets = logits.to(torch.promote_types(logits.dtype, torch.float32)), batch.targets[ends]
        total = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=self.smoothing)
        count = len(targets)
        return Loss(total, count, {"accuracy": (float((logits.argmax(dim=-1) == targets).sum()), count)})
