"""Blank infilling: cross-entropy of the spans that fill the blanks (Du et al. 2022, arXiv:2103.10360, equation 1)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from handscroll.data.batch import Batch
from handscroll.models.model import Model
from handscroll.nn.marks import Marks
from handscroll.nn.mask import Mask, SameSegment
from handscroll.nn.shapes import Embeddings
from handscroll.objectives.head import cross_entropy
from handscroll.objectives.loss import Loss
from handscroll.objectives.settings import ObjectiveSettings


@dataclass(frozen=True)
class Infill:
    """Cross-entropy over the rows of `data/blanks.py`: spans and their end tokens are targets, the text is not.

    The loss adds up over positions. But the model reads the text in both directions, so memory strategies that work
    in chunks refuse it.
    """

    smoothing: float = 0.0
    additive: bool = True

    def mask(self, model: Model, marks: Marks) -> Mask:
        return model.mask() & SameSegment()

    def loss(self, model: Model, hidden: Embeddings, batch: Batch) -> Loss:
        total, count = cross_entropy(hidden.flatten(0, 1), model.head, batch.targets.flatten(), self.smoothing)
        return Loss(total, int(count))


class BlankInfilling(ObjectiveSettings):
    """Write the blanked spans of a text. The settings of the rows say how much is blanked."""

    name: ClassVar[str] = "blanks"
    kinds: ClassVar[tuple[str, ...]] = ("blanks",)
    text: ClassVar[bool] = False

    def fits(self, model: Model) -> bool:
        return model.spec.reads == "blanks"

    def build(self, model: Model, data: Mapping[str, Any], smoothing: float, by_position: bool) -> Infill:
        return Infill(smoothing)
