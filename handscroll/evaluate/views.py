"""Views of the loss that a mean hides: key tokens, what far context is worth, repeated text, each document.

Perplexity over all tokens hardly tells whether a model uses its context, because most tokens need none of it. These
views ask it of the tokens that do (`long_ppl`), of the far context itself (`beyond.py`), and of text that stood there
before. They need no labels and no other model, and memory as for one window: losses are formed chunk by chunk, never
T x V logits.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from handscroll.base.config import Config
from handscroll.base.errors import ConfigError, DataError
from handscroll.evaluate.beyond import Far, Gain, edges_of, far_losses, gains, used
from handscroll.evaluate.certificate import certify, together
from handscroll.evaluate.kept import Kept
from handscroll.evaluate.perplexity import default_block, token_nll
from handscroll.evaluate.samples import Sample, fingerprint
from handscroll.lm import LM
from handscroll.metrics.scores import Measured, Scores, measured

Progress = Callable[[int, int], None]
Keys = Sequence[Sequence[int]]
"""For each window, the positions of its key tokens."""


class ViewSettings(Config):
    """What is compared.

    `short` is the context (tokens) of the sliding window that the whole context is compared with. A key token gains
    more than `alpha` nats from the whole context, and its log-probability there is above `beta` (Fang et al. 2024). A
    token is repeated if it ends a run of at least `run` tokens that stood in the window before. `near` are the contexts
    beyond which far text is asked for its worth, on the last `scored` tokens of each window.
    """

    short: int = Field(ge=2)
    alpha: float = 2.0
    beta: float = -2.0
    run: int = Field(default=8, ge=1)
    near: tuple[int, ...] = ()
    scored: int = Field(default=256, ge=1)
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Views:
    """Losses (windows, length - 1) in nats with the whole context and with a short one, and what far text changes."""

    settings: ViewSettings
    samples: Sequence[Sample]
    long: Tensor
    short: Tensor
    far: Sequence[Far]
    keys: Keys | None = None

    def record(self, lm: LM, label: str, resamples: int = 1000) -> dict[str, Any]:
        """The JSON record of all views. `gains` says what its intervals are; the others are bootstraps over windows."""
        length, block = self.long.shape[1] + 1, default_block(self.long.shape[1] + 1)
        worth = gains(self.far)
        return {
            "kind": "views",
            "model": lm.source,
            "label": label,
            "trained": lm.trained,
            "length": length,
            "windows": len(self.samples),
            "short": self.settings.short,
            "mean": float(self.long.double().mean()),
            "mean_short": float(self.short.double().mean()),
            "long_ppl": long_ppl(self.long, self.key_tokens(), self.settings, resamples, given=self.keys is not None),
            "scored": self.settings.scored,
            "beyond": [_gain(gain) for gain in worth],
            "used": used(worth),
            "repeats": self.repeats(resamples),
            "documents": [
                {
                    "source": sample.source,
                    "offset": sample.offset,
                    "mean": float(row.mean()),
                    "quarters": [float(part.mean()) if len(part) else None for part in row.tensor_split(4)],
                    "loss": _blocks(row, block),
                }
                for sample, row in zip(self.samples, self.long.double(), strict=True)
            ],
            "block": block,
            "sources": [f"{sample.source}@{sample.offset}" for sample in self.samples],
            "text_sha256": fingerprint(self.samples),
            "keys": [row.nonzero().flatten().add(1).tolist() for row in self.key_tokens()],
            "certificate": together(certify(sample.ids, length) for sample in self.samples).record(),
        }

    def key_tokens(self) -> Tensor:
        """The mask (windows, length - 1) of the key tokens: those given, or those that the model itself finds."""
        if self.keys is None:
            return key_mask(self.long, self.short, self.settings)
        mask = torch.zeros(self.long.shape, dtype=torch.bool)
        for row, positions in zip(mask, self.keys, strict=True):
            row[torch.tensor(positions, dtype=torch.long) - 1] = True
        return mask

    def repeats(self, resamples: int) -> dict[str, Any]:
        """The loss on tokens that repeat the window's own text, by how far back it stands, and on fresh tokens."""
        back = torch.stack([repeated(sample.ids, self.settings.run)[1:] for sample in self.samples])
        parts: dict[str, Any] = {"run": self.settings.run}
        chosen = {"repeated": back > 0, "fresh": back == 0}
        for name, mask in chosen.items():
            parts[name] = _over(self.long, self.short, mask, resamples, self.settings.seed)
        edges = [1, *(1 << n for n in range(6, 40) if 1 << n < back.shape[1] + 1), back.shape[1] + 1]
        parts["by_distance"] = [
            {"from": low, "to": high - 1, **_over(self.long, self.short, mask, resamples, self.settings.seed)}
            for low, high in itertools.pairwise(edges)
            if bool((mask := (back >= low) & (back < high)).any())
        ]
        return parts


def loss_views(
    lm: LM,
    samples: Sequence[Sample],
    settings: ViewSettings,
    keys: Keys | None = None,
    progress: Progress | None = None,
    keep: Path | None = None,
) -> Views:
    """Measure all views of windows of text. `keys` are the key tokens of another record of the same windows.

    Each window is read once as it is, once in short windows, and for `near` once more with its far text in another
    order and once with that of another window, from which every k branches off. Windows are kept in the file `keep` as
    they are made, and a run that was stopped goes on from it.

    Raises:
        ConfigError: the model does not read forward, `short` is not shorter than the windows, or `near` and `scored`
            leave no far text. DataError: `keys` are of other windows. CheckpointError: `keep` holds other ones.
    """
    lm.model.spec.require("a view of the loss", forward=True, one_text=True, head=True)
    length = len(samples[0].ids)
    if settings.short >= length:
        raise ConfigError(f"a short context of {settings.short} tokens is not shorter than windows of {length}")
    if settings.near:
        edges_of(length, settings.near, settings.scored)
    if keys is not None and (len(keys) != len(samples) or max((max(k, default=0) for k in keys), default=0) >= length):
        raise DataError(f"the key tokens are of {len(keys)} other windows; give those of the same text")
    about = {} if keep is None else _about(lm, samples, settings)
    made = []
    with Kept(keep, about) as kept:
        for number in range(len(samples)):
            if str(number) not in kept:
                kept[str(number)] = _window(lm, samples, number, settings)
            made.append({name: _tensors(value) for name, value in kept[str(number)].items()})
            if progress is not None:
                progress(number + 1, len(samples))
    far = [
        Far(settings.near, one["long"][-settings.scored :], one["shuffled"], one.get("other"))
        for one in made
        if settings.near
    ]
    long, short = (torch.stack([one[name] for one in made]) for name in ("long", "short"))
    return Views(settings, samples, long, short, far, keys)


def _window(lm: LM, samples: Sequence[Sample], number: int, settings: ViewSettings) -> dict[str, Any]:
    """The losses of one window, as they are kept."""
    ids = samples[number].ids
    found: dict[str, Any] = {"long": token_nll(lm, ids).tolist(), "short": token_nll(lm, ids, settings.short).tolist()}
    if settings.near:
        other = samples[(number + 1) % len(samples)].ids if len(samples) > 1 else None
        shuffled, strange = far_losses(lm, ids, other, settings.near, settings.scored, f"{settings.seed}/{number}")
        found["shuffled"] = [row.tolist() for row in shuffled]
        if strange is not None:
            found["other"] = [row.tolist() for row in strange]
    return found


def _tensors(value: Sequence[Any]) -> Any:
    return [torch.tensor(row) for row in value] if isinstance(value[0], list) else torch.tensor(value)


def _about(lm: LM, samples: Sequence[Sample], settings: ViewSettings) -> dict[str, Any]:
    """What the file of windows is about."""
    return {
        "kind": "view windows",
        "model": asdict(lm.identity(len(samples[0].ids))),
        "settings": settings.model_dump(mode="json", include={"short", "near", "scored", "seed"}),
        "text_sha256": fingerprint(samples),
    }


def key_mask(long: Tensor, short: Tensor, settings: ViewSettings) -> Tensor:
    """Which tokens are key tokens: the whole context raises their log-probability by more than alpha, to above beta."""
    return (short - long > settings.alpha) & (-long > settings.beta)


def long_ppl(long: Tensor, keys: Tensor, settings: ViewSettings, resamples: int, given: bool = False) -> dict[str, Any]:
    """LongPPL (Fang et al. 2024, arXiv:2410.23771): the perplexity of the key tokens alone, with its interval.

    The key tokens are found by the model that is measured, so by their definition their loss is below -beta: compare
    the share of key tokens too, or measure all models on the keys of one (`given`). Then alpha and beta are not known.
    """
    count = int(keys.sum())
    alpha, beta = (None, None) if given else (settings.alpha, settings.beta)
    about = {"alpha": alpha, "beta": beta, "count": count, "share": count / keys.numel()}
    if not count:
        return {**about, "value": None, "low": None, "high": None, "given": given}
    loss = ratio(_sums(long, keys), _counts(keys), resamples, settings.seed)
    ends = [None if end is None else math.exp(end) for end in (loss.low, loss.high)]
    return {**about, "value": math.exp(loss.value), "low": ends[0], "high": ends[1], "given": given}


def repeated(ids: Sequence[int], run: int) -> Tensor:
    """How far back (T,) the text of the last `run` tokens up to each token stands; 0: nowhere. The nearest counts."""
    seen: dict[tuple[int, ...], int] = {}
    back = torch.zeros(len(ids), dtype=torch.long)
    for end in range(run, len(ids) + 1):
        gram = tuple(ids[end - run : end])
        if gram in seen:
            back[end - 1] = end - seen[gram]
        seen[gram] = end
    return back


def ratio(sums: np.ndarray, counts: np.ndarray, resamples: int, seed: int) -> Measured:
    """The mean of tokens in windows with these sums and counts, with its bootstrap interval over windows."""

    def of(weights: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return (weights @ sums) / (weights @ counts)

    return measured(Scores(len(sums), of), resamples, seed)


def _over(long: Tensor, short: Tensor, mask: Tensor, resamples: int, seed: int) -> dict[str, Any]:
    """Loss of the tokens in `mask` with the whole context and with the short one."""
    count = int(mask.sum())
    if not count:
        return {"count": 0, "loss": None, "low": None, "high": None, "short": None}
    loss = ratio(_sums(long, mask), _counts(mask), resamples, seed)
    narrow = float(_sums(short, mask).sum() / count)
    return {"count": count, "loss": loss.value, "low": loss.low, "high": loss.high, "short": narrow}


def _sums(values: Tensor, mask: Tensor) -> np.ndarray:
    return torch.where(mask, values.double(), 0.0).sum(dim=1).numpy()


def _counts(mask: Tensor) -> np.ndarray:
    return mask.sum(dim=1).double().numpy()


def _gain(gain: Gain) -> dict[str, Any]:
    made: dict[str, Any] = {"near": gain.near, "tokens": gain.tokens}
    for name, found in (("shuffled", gain.shuffled), ("other", gain.other)):
        if found is not None:
            made |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
    return made


def _blocks(row: Tensor, size: int) -> list[float]:
    return [float(row[max(0, first - 1) : first + size - 1].mean()) for first in range(0, len(row) + 1, size)]
