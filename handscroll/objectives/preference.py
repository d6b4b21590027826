"""Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290), exact on every memory strategy.

The loss of a pair depends on two sums of log-likelihoods only, those of the chosen and of the rejected answer. So its
gradient is a weighted sum of theirs, and the weights are numbers once the sums are known. One forward without gradients
gives the sums; then the pair is trained as two ordinary rows, each with its weight. Long rows may be cut into chunks.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from handscroll.base.config import Config
from handscroll.data.batch import Batch
from handscroll.models.model import Model
from handscroll.nn.marks import Marks
from handscroll.nn.mask import Mask
from handscroll.nn.shapes import Embeddings
from handscroll.objectives.causal import Causal
from handscroll.objectives.head import cross_entropy_by_token
from handscroll.objectives.loss import Loss


class Preference(Config):
    """How a margin becomes a loss.

    The margin m of a pair is how much more the model prefers the chosen answer than the reference does, in nats.
    - "sigmoid": -(1 - smoothing) log sigmoid(beta m) - smoothing log sigmoid(-beta m); with smoothing, that share of
      the pairs is taken to be wrong (Mitchell 2023).
    - "ipo": (m - 1 / (2 beta))^2 (Azar et al. 2023, arXiv:2310.12036).

    With `mean` the log-likelihood of an answer is its mean over the tokens, not its sum, so that long answers do not
    weigh more. The papers take the sum for "sigmoid"; for "ipo" the mean is usual.
    """

    beta: float = Field(default=0.1, gt=0)
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    mean: bool = False

    @model_validator(mode="after")
    def _used(self):
        if self.smoothing and self.loss == "ipo":
            raise ValueError("smoothing is for loss 'sigmoid'; 'ipo' bounds the margin itself")
        return self

    def losses(self, margins: Tensor) -> Tensor:
        """The loss of each margin."""
        if self.loss == "ipo":
            return (margins - 0.5 / self.beta).square()
        sure, wrong = (torch.nn.functional.logsigmoid(sign * self.beta * margins) for sign in (1, -1))
        return -(1 - self.smoothing) * sure - self.smoothing * wrong

    def slopes(self, margins: Tensor) -> Tensor:
        """The derivative of each loss by its margin."""
        if self.loss == "ipo":
            return 2 * (margins - 0.5 / self.beta)
        sure, wrong = (torch.sigmoid(sign * self.beta * margins) for sign in (-1, 1))
        return self.beta * (self.smoothing * wrong - (1 - self.smoothing) * sure)


@dataclass(frozen=True, eq=False)
class Weighted:
    """The cross-entropy of next tokens, times a weight for each row. `weights` are by the row's document."""

    weights: dict[int, float]
    additive: bool = True

    def mask(self, model: Model, marks: Marks) -> Mask:
        """That of next tokens."""
        return Causal().mask(model, marks)

    def loss(self, model: Model, hidden: Embeddings, batch: Batch) -> Loss:
        """The weighted sum, and the count of targets."""
        assert batch.origins is not None, "rows without an origin have no weight"
        total, count = hidden.new_zeros(()), 0
        states = model.prepared(hidden)
        for state, targets, (document, _) in zip(states, batch.targets, batch.origins.tolist(), strict=True):
            own, _, counted = cross_entropy_by_token(state, model.head, targets, cap=model.logit_cap)
            total, count = total + self.weights[document] * own, count + int(counted.sum())
        return Loss(total, count)
