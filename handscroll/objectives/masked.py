"""Masked language modelling, and next-sentence prediction for rows that have labels for it (Devlin et al. 2019)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from handscroll.base.errors import ConfigError
from handscroll.data.batch import Batch
from handscroll.data.masking import MaskedRows, Masking
from handscroll.data.row import Row
from handscroll.data.stream import Stream
from handscroll.models.model import Model
from handscroll.nn.marks import Marks
from handscroll.nn.mask import Mask, SameSegment
from handscroll.nn.shapes import Embeddings
from handscroll.objectives.causal import by_quarter
from handscroll.objectives.head import IGNORE, cross_entropy_by_token
from handscroll.objectives.loss import Loss
from handscroll.objectives.settings import ObjectiveSettings
from handscroll.text.tokenizer import Tokenizer
from handscroll.text.words import Words


@dataclass(frozen=True)
class Masked:
    """Cross-entropy of the hidden tokens (`data/masking.py`), each predicted at its own place.

    When a batch has labels, their cross-entropy is added. One label weighs as much as `pair_share` * row length hidden
    tokens. With `pair_share` = masking rate / pairs per row, this is the paper's sum of two means. `smoothing` and
    `by_position` work as in `Causal`; smoothing does not act on labels.
    """

    smoothing: float = 0.0
    by_position: bool = False
    pair_share: float = 0.15
    additive: bool = True

    def mask(self, model: Model, marks: Marks) -> Mask:
        """The model's own mask, restricted to one document when rows are packed.

        Raises:
            ConfigError: the model is causal, or has no masked-LM head.
        """
        if model.spec.reads != "both":
            raise ConfigError(
                "objective 'masked' needs an encoder with a masked-LM head (bert, roberta), and a "
                f"{model.config.family} is not an encoder: use objective 'causal'"
            )
        model.spec.require("objective 'masked'", head=True)
        return model.mask() if marks.plain else model.mask() & SameSegment()

    def loss(self, model: Model, hidden: Embeddings, batch: Batch) -> Loss:
        """Sum and count of the hidden tokens, with the weighted loss of the labels in the sum.

        Raises:
            ConfigError: the batch has labels, but the model has no next-sentence head.
        """
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

    def _pairs(self, model: Model, hidden: Embeddings, labels: Tensor) -> tuple[Tensor, dict[str, tuple[float, int]]]:
        """Summed cross-entropy of the labels, and its metrics for the record."""
        where = labels != IGNORE
        logits = model.following_logits(hidden[where])
        wanted = labels[where]
        loss = F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), wanted, reduction="sum")
        right = int((logits.argmax(dim=-1) == wanted).sum())
        return loss, {"pair_loss": (float(loss.detach()), len(wanted)), "pair_accuracy": (right, len(wanted))}


class MaskedTokens(ObjectiveSettings):
    """Predict hidden tokens (chosen by `data/masking.py`), and next sentences if the data has rows of pairs.

    words = "chinese" needs the package jieba.
    """

    name: ClassVar[str] = "masked"
    kinds: ClassVar[tuple[str, ...]] = ("text", "pairs")
    quarters: ClassVar[bool] = True
    rate: float = Field(default=Masking.rate, gt=0, lt=1)
    masked: float = Field(default=0.8, ge=0, le=1)
    random: float = Field(default=0.1, ge=0, le=1)
    words: Literal["none", "whole", "chinese"] = Field(default="none", description="hide whole words only")

    def fits(self, model: Model) -> bool:
        return model.spec.reads == "both" and model.spec.predicts

    def build(self, model: Model, data: Mapping[str, Any], smoothing: float, by_position: bool) -> Masked:
        pairs = [rows.pairs for rows in data.values() if rows.kind == "pairs"]
        if pairs:
            model.following_logits(model.head.new_zeros(1, model.config.width))  # raises if there is no such head
        return Masked(smoothing, by_position, pair_share=self.rate / max(pairs, default=1))

    def rows(self, rows: Stream[Row], length: int, seed: int, model: Model, tokenizer: Tokenizer) -> MaskedRows:
        words = None if self.words == "none" else Words(tokenizer, chinese=self.words == "chinese")
        masking = Masking.of(tokenizer, words, rate=self.rate, masked=self.masked, random=self.random)
        return MaskedRows(rows, masking, seed)

    def share(self, data: Mapping[str, Any]) -> float:
        return self.rate
