"""Classification of documents: cross-entropy over labels. The target stands at the token whose state is classified."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from handscroll.base.errors import ConfigError
from handscroll.data.batch import Batch
from handscroll.data.labelled import AtFirst
from handscroll.data.row import IGNORED, Row
from handscroll.data.stream import Stream
from handscroll.models.model import Model
from handscroll.nn.marks import Marks
from handscroll.nn.mask import Mask, SameSegment
from handscroll.nn.shapes import Embeddings
from handscroll.objectives.blocks import Pooling, block_places, pooled
from handscroll.objectives.loss import Loss
from handscroll.objectives.settings import ObjectiveSettings
from handscroll.text.tokenizer import Tokenizer

SEVERAL = 62  # labels of which a text may have several: each is a bit of a target
NUMBER = 1 << 20  # a number y stands in the targets as round(y * NUMBER), since targets are whole


@dataclass(frozen=True)
class Classify:
    """The loss of a head for whole texts. The target stands at the token whose state is read, one a text.

    problem "one": the number of the label; cross-entropy, with a weight for each label if `weights` are given (the
    loss is then divided by the number of texts, not by the sum of their weights). "several": the sum of 2^number over
    the right labels, of which 62 are possible; binary cross-entropy, mean over labels. "number": round(y * 2^20);
    squared error.

    The loss adds up over pieces of a row when the model classifies one state (for an encoder: the first token's).
    A model that classifies the mean state needs the whole document, so memory strategies that work in chunks refuse
    it. So do texts in blocks (`pooling`, `objectives/blocks.py`).
    """

    smoothing: float = 0.0
    additive: bool = False
    problem: str = "one"
    weights: tuple[float, ...] = ()
    pooling: Pooling | None = None

    @classmethod
    def of(
        cls,
        model: Model,
        smoothing: float = 0.0,
        weights: tuple[float, ...] = (),
        pooling: Pooling | None = None,
    ) -> "Classify":
        """The loss for a given model.

        Raises:
            ConfigError: the model has no head for whole texts, or too many labels to choose several of.
        """
        head = model.spec.head
        if head is None or head.kind != "text":
            raise ConfigError(
                f"this model of family '{model.config.family}' has no labels: it is not a classifier; build it with "
                "the labels that it should tell apart"
            )
        if head.problem == "several":
            check_several(head.labels)
        return cls(smoothing, head.pool != "mean" and pooling is None, head.problem, weights, pooling)

    def mask(self, model: Model, marks: Marks) -> Mask:
        return model.mask() & SameSegment()

    def loss(self, model: Model, hidden: Embeddings, batch: Batch) -> Loss:
        at = batch.targets != IGNORED
        outputs = self._outputs(model, hidden, batch, at)
        outputs, targets = outputs.to(torch.promote_types(outputs.dtype, torch.float32)), batch.targets[at]
        count = len(targets)
        if self.problem == "number":
            return Loss((outputs.squeeze(-1) - targets.to(outputs.dtype) / NUMBER).square().sum(), count)
        if self.problem == "several":
            bits = (targets[:, None] >> torch.arange(outputs.shape[1], device=targets.device)) & 1
            total = F.binary_cross_entropy_with_logits(outputs, bits.to(outputs.dtype), reduction="sum")
            right = float(((outputs > 0) == bits.bool()).all(dim=1).sum())
            return Loss(total / outputs.shape[1], count, {"accuracy": (right, count)})
        weight = torch.tensor(self.weights, dtype=outputs.dtype, device=outputs.device) if self.weights else None
        total = F.cross_entropy(outputs, targets, weight, reduction="sum", label_smoothing=self.smoothing)
        return Loss(total, count, {"accuracy": (float((outputs.argmax(dim=-1) == targets).sum()), count)})

    def _outputs(self, model: Model, hidden: Embeddings, batch: Batch, at: Tensor) -> Tensor:
        """The outputs of the head for each text."""
        if self.pooling is None:
            return model.classify(hidden, batch.marks(), at)
        blocks, owners = block_places(batch, model.spec.pool == "first")
        return pooled(model.classify(hidden, batch.marks(), blocks), owners, int(at.sum()), self.pooling)


def check_several(labels: Sequence[str]) -> None:
    """
    Raises:
        ConfigError: there are too many labels to choose several of.
    """
    if len(labels) > SEVERAL:
        raise ConfigError(
            f"several of {len(labels)} labels cannot be learned at once: {SEVERAL} are possible; leave rare ones out, "
            "or tune several models"
        )


class Classification(ObjectiveSettings):
    """Predict the label of a whole document, with a new model or from another model's weights (`model.path`)."""

    name: ClassVar[str] = "classify"
    kinds: ClassVar[tuple[str, ...]] = ("labelled",)
    text: ClassVar[bool] = False

    def fits(self, model: Model) -> bool:
        return bool(model.spec.labels)

    def labels(self, data: Mapping[str, Any]) -> tuple[str, ...]:
        return next((rows.labels for rows in data.values()), ())

    def rows(self, rows: Stream[Row], length: int, seed: int, model: Model, tokenizer: Tokenizer) -> Stream[Row]:
        return AtFirst(rows) if model.spec.pool == "first" else rows

    def check(self, data: Mapping[str, Any], validated: bool) -> None:
        super().check(data, validated)
        if len({rows.labels for rows in data.values()}) > 1:
            raise ValueError(
                "the [data] tables have different labels, but they train one classifier: give all of them the same "
                "labels"
            )

    def build(self, model: Model, data: Mapping[str, Any], smoothing: float, by_position: bool) -> Classify:
        own, wanted = model.spec.labels, self.labels(data)
        if own != wanted:
            raise ConfigError(
                f"the rows have the labels {list(wanted)}, but the model has the labels {list(own)}: make them equal"
            )
        return Classify.of(model, smoothing)
