"""Loss by position: shows where in a long window a model begins to fail.

Every token is scored exactly once, at its position in a window of `length` tokens. The curve of the mean loss per block
of positions, with a 95 % interval over windows, proves or refutes a context claim. The sliding-window reference scores
the same tokens with a short context that is read again for each step of the window.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from handscroll.base.errors import ConfigError
from handscroll.evaluate.certificate import Certificate, certify, require_whole, together
from handscroll.evaluate.masked import masked_nll
from handscroll.evaluate.samples import Sample, fingerprint
from handscroll.generate.score import nll
from handscroll.lm import LM
from handscroll.metrics.student import quantile
from handscroll.models.model import Model

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Losses:
    """Losses (windows, length - 1) in nats: column t is the loss of predicting the token at position t + 1."""

    label: str
    values: Tensor
    samples: Sequence[Sample]
    window: int | None = None

    def mean(self, first: int = 0, last: int | None = None) -> float:
        """Mean loss of the tokens at positions first .. last - 1 (position 0 is never predicted)."""
        return float(self.values[:, max(0, first - 1) : None if last is None else last - 1].double().mean())

    def blocks(self, size: int) -> dict[str, list[Any]]:
        """Mean loss per block of `size` positions, with a 95 % interval over windows.

        Raises:
            ConfigError: `size` is below 1.
        """
        if size < 1:
            raise ConfigError(f"blocks of {size} positions: give at least 1")
        rows: dict[str, list[Any]] = {"positions": [], "loss": [], "low": [], "high": [], "count": []}
        length = self.values.shape[1] + 1
        for first in range(0, length, size):
            part = self.values[:, max(0, first - 1) : first + size - 1].double()
            means = part.mean(dim=1)
            mean = float(means.mean())
            spread = half_width(means)
            rows["positions"].append(first + min(size, length - first) / 2)
            rows["loss"].append(mean)
            rows["low"].append(None if spread is None else mean - spread)
            rows["high"].append(None if spread is None else mean + spread)
            rows["count"].append(part.numel())
        return rows

    @property
    def certificate(self) -> Certificate:
        """What of the samples was scored: the tokens that have a loss, and the first of each, which has none."""
        seen = self.values.shape[1] + 1
        return together(certify(sample.ids[:seen], len(sample.ids)) for sample in self.samples)

    def record(self, lm: LM, block: int | None = None) -> dict[str, Any]:
        """The JSON record of this curve.

        Raises:
            DataError: a sample was not scored to its end.
        """
        require_whole(self.certificate, f"the loss curve '{self.label}'")
        length = self.values.shape[1] + 1
        block = default_block(length) if block is None else block
        return {
            "kind": "perplexity",
            "model": lm.source,
            "trained": lm.trained,
            "label": self.label,
            "length": length,
            "window": self.window,
            "block": block,
            **self.blocks(block),
            "mean": self.mean(),
            "perplexity": math.exp(min(self.mean(), 700.0)),
            "tokens": self.values.numel(),
            "windows": len(self.samples),
            "sources": [f"{sample.source}@{sample.offset}" for sample in self.samples],
            "text_sha256": fingerprint(self.samples),
            "certificate": self.certificate.record(),
        }


def measure(
    lm: LM, samples: Sequence[Sample], label: str, window: int | None = None, progress: Progress | None = None
) -> Losses:
    """Score every sample, one at a time. The memory needed is one KV cache of a window's length.

    With `window` the samples are scored by the sliding-window reference instead (see `LM.nll`). Encoders are scored by
    `masked_nll`.
    """
    rows = []
    for number, sample in enumerate(samples):
        rows.append(token_nll(lm, sample.ids, window))
        if progress is not None:
            progress(number + 1, len(samples))
    return Losses(label, torch.stack(rows), samples, window)


def measurable(model: Model) -> bool:
    """Whether the model can score texts by position: true for decoders, and for encoders with a masked-LM head."""
    return model.spec.predicts and not model.spec.encoder


def token_nll(
    lm: LM, ids: list[int], window: int | None = None, on_read: Callable[[int], None] | None = None
) -> Tensor:
    """Loss (T - 1,) of tokens 1 .. T - 1.

    For a decoder each token is predicted from the tokens before it; for an encoder, from the tokens not hidden.
    """
    if lm.model.spec.reads == "both":
        return masked_nll(lm, ids, window)
    return nll(lm.model, torch.tensor(ids), window, on_read)


def default_block(length: int) -> int:
    """A block size that gives about 32 blocks: a power of two, at least 16 tokens."""
    return max(16, 1 << max(0, (length // 32) - 1).bit_length())


def half_width(means: Tensor, error: float = 0.05) -> float | None:
    """Half the width of the interval of the mean over windows (Student's t), which misses the true mean with the
    probability `error`; None for fewer than two windows."""
    count = len(means)
    if count < 2:
        return None
    return quantile(count - 1, error) * float(means.std()) / math.sqrt(count)
