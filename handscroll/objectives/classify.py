"""Classification of documents: cross-entropy over labels. The target stands at the token whose state is classified."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from handscroll.base.errors import ConfigError
from handscroll.data.batch import Batch
from handscroll.data.labelled import AtFirst
from handscroll.data.row import IGNORED, Row
from handscroll.data.stream import Stream
from handscroll.models.model import Model
from handscroll.nn.marks import Marks
from handscroll.nn.mask import Mask, SameSegment
from handscroll.nn.shapes import Embeddings
from handscroll.objectives.loss import Loss
from handscroll.objectives.settings import ObjectiveSettings
from handscroll.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Classify:
    """Cross-entropy of the labels of whole documents (`data/labelled.py`), for a model with `classify`.

    The loss adds up over pieces of a row when the model classifies one state (for an encoder: the first token's).
    A model that classifies the mean state needs the whole document, so memory strategies that work in chunks refuse
    it.
    """

    smoothing: float = 0.0
    additive: bool = False

    @classmethod
    def of(cls, model: Model, smoothing: float = 0.0) -> "Classify":
        """The loss for a given model.

        Raises:
            ConfigError: the model is not a classifier.
        """
        if not model.spec.labels:
            raise ConfigError(
                f"this model of family '{model.config.family}' has no labels: it is not a classifier; build it with "
                "the labels that it should tell apart"
            )
        return cls(smoothing, additive=model.spec.pool != "mean")

    def mask(self, model: Model, marks: Marks) -> Mask:
        return model.mask() & SameSegment()

    def loss(self, model: Model, hidden: Embeddings, batch: Batch) -> Loss:
        at = batch.targets != IGNORED
        logits = model.classify(hidden, batch.marks(), at)
        logits, targets = logits.to(torch.promote_types(logits.dtype, torch.float32)), batch.targets[at]
        total = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=self.smoothing)
        count = len(targets)
        return Loss(total, count, {"accuracy": (float((logits.argmax(dim=-1) == targets).sum()), count)})


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
