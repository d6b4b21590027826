"""Answers that stand in a text: cross-entropy of where an answer begins and of where it ends."""

from dataclasses import dataclass

import torch

from handscroll.base.errors import ConfigError
from handscroll.data.batch import Batch
from handscroll.data.row import IGNORED
from handscroll.models.model import Model
from handscroll.nn.marks import Marks
from handscroll.nn.mask import Mask, SameSegment
from handscroll.nn.shapes import Embeddings
from handscroll.objectives.loss import Loss

BEGINS, ENDS = 1, 2  # the target of a token at which the answer begins, or ends; their sum where it does both


@dataclass(frozen=True)
class Spans:
    """The mean of both cross-entropies of each text (Devlin et al. 2019, section 4.2), times its number of targets.

    `labels` of a row are 0 at the tokens at which an answer may begin or end; the scores of the others play no part.
    The loss needs the whole text at once, so memory strategies that work in chunks refuse it.
    """

    additive: bool = False

    def mask(self, model: Model, marks: Marks) -> Mask:
        """
        Raises:
            ConfigError: the model has no head for answers.
        """
        head = model.spec.head
        if head is None or head.kind != "answer":
            raise ConfigError(f"this model of family '{model.config.family}' has no head for answers in a text")
        return model.mask() & SameSegment()

    def loss(self, model: Model, hidden: Embeddings, batch: Batch) -> Loss:
        assert batch.labels is not None, "rows without the tokens at which an answer may stand"
        outputs = model.judge(hidden)
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32)).flatten(0, 1)
        rows = torch.arange(len(batch.tokens), device=outputs.device)[:, None].expand_as(batch.tokens)
        segment = torch.zeros_like(batch.tokens) if batch.segment is None else batch.segment
        text = (rows * batch.tokens.shape[1] + segment).flatten()
        targets, allowed = batch.targets.flatten(), batch.labels.flatten() != IGNORED
        total, found, right = outputs.new_zeros(()), 0, 0
        for one in text[allowed].unique().tolist():
            inside = allowed & (text == one)
            scores, wanted = outputs[inside].log_softmax(dim=0), targets[inside]
            told = wanted != IGNORED
            begins, ends = told & (wanted & BEGINS > 0), told & (wanted & ENDS > 0)
            assert int(begins.sum()) == int(ends.sum()) == 1, "one answer a text"
            number = int(told.sum())
            total = total - number * (scores[begins, 0].sum() + scores[ends, 1].sum()) / 2
            both = bool(begins[scores[:, 0].argmax()]) and bool(ends[scores[:, 1].argmax()])
            found, right = found + 1, right + both
        return Loss(total, batch.counted, {"accuracy": (float(right), found)})
