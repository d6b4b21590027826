"""Trains on pairs: what the model and the reference think of both answers, then one ordinary step with weights."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from handscroll.base.errors import CheckpointError, ConfigError
from handscroll.base.runs import write_file
from handscroll.cache.full import FullCache
from handscroll.data.batch import Batch, collate
from handscroll.data.preferred import Preferred
from handscroll.generate.prefill import hidden_chunks
from handscroll.models.model import Decoder
from handscroll.nn.adapted import Adapted
from handscroll.nn.noise import Noise
from handscroll.objectives.head import token_losses
from handscroll.objectives.loss import Loss
from handscroll.objectives.objective import Objective
from handscroll.objectives.preference import Preference, Weighted
from handscroll.train.step import Step
from handscroll.train.strategies.strategy import Strategy

CHUNK = 1024


@torch.no_grad()
def row_likelihoods(
    model: Decoder, batches: Iterable[Batch], chunk: int = CHUNK, autocast: torch.dtype | None = None
) -> dict[int, float]:
    """The log-likelihood of each row's targets in nats, summed, by the row's document.

    Chunk by chunk: the memory is that of reading, without T x V logits.
    """
    found: dict[int, float] = {}
    for batch in batches:
        assert batch.origins is not None
        here = batch.to(model.device)
        sums = torch.zeros(len(here.tokens), dtype=torch.float64)
        # Keys in the dtype of the training step, which `Model.new_cache` would round for quantised weights.
        cache = FullCache(model.config.layers, windows=model.windows)
        marks, length = here.marks(), here.tokens.shape[1]
        with torch.autocast(model.device.type, dtype=autocast, enabled=autocast is not None):
            for first, last, hidden in hidden_chunks(model, here.tokens, marks, cache, length, chunk):
                targets = here.targets[:, first:last]
                states = model.prepared(hidden).flatten(0, 1)
                losses = token_losses(states, model.project, model.config.vocab, targets.flatten(), cap=model.logit_cap)
                sums -= losses.view(targets.shape).double().sum(dim=1).cpu()
        found |= dict(zip(batch.origins[:, 0].tolist(), sums.tolist(), strict=True))
    return found


@contextmanager
def without_updates(model: Decoder) -> Iterator[None]:
    """The model as it is without the updates that are trained over it: the reference of a LoRA."""
    held = [(module.update, module.update.scale) for module in model.modules() if isinstance(module, Adapted)]
    try:
        for update, _ in held:
            update.scale = 0.0
        yield
    finally:
        for update, scale in held:
            update.scale = scale


def reference_likelihoods(
    model: Decoder, rows: Preferred, file: Path, chunk: int = CHUNK, autocast: torch.dtype | None = None
) -> dict[int, float]:
    """What the untouched model thinks of all rows: read from `file`, or computed and written there.

    Compute it before training. A LoRA is taken off meanwhile, so there it may also be later; a model that is trained
    itself must find the file when it goes on.

    Raises:
        CheckpointError: the file belongs to other pairs, or is damaged.
    """
    if file.exists():
        try:
            stored = json.loads(file.read_text(encoding="utf-8"))
            assert isinstance(stored["likelihoods"], list) and len(stored["likelihoods"]) == len(rows.rows)
            fits = stored["pairs"] == rows.fingerprint
        except (ValueError, KeyError, TypeError, AssertionError):
            raise CheckpointError(f"{file} is damaged; remove it to compute the reference again") from None
        if not fits:
            raise CheckpointError(f"{file} belongs to other pairs; use another run folder")
        return dict(enumerate(stored["likelihoods"]))
    with without_updates(model):
        found = row_likelihoods(model, (collate([row]) for row in rows.rows), chunk, autocast)
    values = [found[number] for number in range(len(rows.rows))]
    write_file(file, json.dumps({"pairs": rows.fingerprint, "likelihoods": values}).encode())
    return found


@dataclass(frozen=True)
class PreferenceStep:
    """A step on pairs; it stands where `Step` stands in a run, and every memory strategy of that serves it.

    The loss is the mean over the pairs of an update. The metrics are `margin` (beta m), `accuracy` (the share of pairs
    of which the model prefers the chosen answer more than the reference does), and the rewards of both sides, beta
    times the distance from the reference.
    """

    step: Step
    settings: Preference
    reference: dict[int, float]
    chunk: int = CHUNK

    def __post_init__(self):
        if self.step.world.size > 1:
            raise ConfigError("preference tuning runs on one rank; leave `parallel` out")

    @property
    def strategy(self) -> Strategy:
        """The memory strategy."""
        return self.step.strategy

    def __call__(
        self,
        model: Decoder,
        batches: Sequence[Batch],
        objective: Objective,
        noise: Noise | None = None,
        pulse: Callable[[float], None] | None = None,
    ) -> Loss:
        """As `Step`; `objective` is not used, since the pairs have their own.

        Raises:
            ConfigError: dropout is on: the sums would be those of another forward than the gradient.
        """
        if noise is not None:
            raise ConfigError("preference tuning is without dropout: set regularise.dropout = 0")
        model.eval()
        found = row_likelihoods(model, batches, self.chunk, self.step.autocast)
        model.train()
        sizes = self._sizes(batches)
        chosen, better, worse = self._rewards(found, sizes)
        margins, pairs = better - worse, len(chosen)
        losses, slopes = self.settings.losses(margins), self.settings.slopes(margins)
        count = sum(batch.counted for batch in batches)  # the step divides by it
        weights: dict[int, float] = {}
        for key, slope in zip(chosen, slopes.tolist(), strict=True):
            for side, sign in ((0, -1), (1, 1)):  # the cross-entropy is the negative log-likelihood
                weights[key + side] = sign * slope * count / (pairs * sizes[key + side])
        self.step(model, batches, Weighted(weights), None, pulse)
        beta = self.settings.beta
        metrics = {
            "margin": (beta * float(margins.sum()), pairs),
            "accuracy": (float((margins > 0).sum()), pairs),
            "reward_chosen": (beta * float(better.sum()), pairs),
            "reward_rejected": (beta * float(worse.sum()), pairs),
        }
        return Loss(losses.mean() * count, count, metrics)

    def measured(self, found: dict[int, float], batches: Sequence[Batch]) -> float:
        """The mean loss of pairs with these log-likelihoods, without a gradient."""
        _, better, worse = self._rewards(found, self._sizes(batches))
        return float(self.settings.losses(better - worse).mean())

    def _rewards(self, found: dict[int, float], sizes: dict[int, int]) -> tuple[list[int], Tensor, Tensor]:
        """The chosen rows, and how much likelier they and the rejected ones became, in nats."""
        change = {key: (value - self.reference[key]) / sizes[key] for key, value in found.items()}
        chosen = sorted(key for key in change if key % 2 == 0)
        assert len(change) == 2 * len(chosen) and all(key + 1 in change for key in chosen), "half a pair in an update"
        better, worse = (torch.tensor([change[key + side] for key in chosen], dtype=torch.float64) for side in (0, 1))
        return chosen, better, worse

    def _sizes(self, batches: Sequence[Batch]) -> dict[int, int]:
        """By what each row's sum is divided."""
        found: dict[int, int] = {}
        for batch in batches:
            assert batch.origins is not None
            counts = (batch.targets >= 0).sum(dim=1).tolist() if self.settings.mean else [1] * len(batch.tokens)
            found |= dict(zip(batch.origins[:, 0].tolist(), counts, strict=True))
        return found
