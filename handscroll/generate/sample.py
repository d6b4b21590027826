"""Choosing the next token: pure functions on logits (B, V) in float32, and the settings that combine them.

The order is repetition penalty, temperature, top-k, top-p, min-p. It is that of `transformers`, so the same settings
give the same distribution there.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Annotated, Self

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from handscroll.base.config import Config
from handscroll.base.errors import ConfigError

Scores = Float[Tensor, "B V"]
Number = Annotated[float, Field(allow_inf_nan=False)]
# What these let through stays finite in float32. Clients send 1e-8 where they mean greedy.
COLDEST, HOTTEST = 1e-10, 1000.0
PENALTIES = (0.01, 100.0)


class Sampling(Config):
    """Settings that choose the tokens of a continuation and end it.

    `temperature` 0 is greedy. `top_k` 0, `top_p` 1, `min_p` 0 and `repetition_penalty` 1 have no effect. A row ends
    after `max_tokens`, at an end token (unless `ignore_eos`), or when its text contains one of the strings `stop`.

    Raises:
        ConfigError: (through `parse`) a value is out of range, or a cut-off is given with greedy decoding, where it has
            no effect.
    """

    max_tokens: int = 256
    temperature: Number = 0.0
    top_k: int = 0
    top_p: Number = 1.0
    min_p: Number = 0.0
    repetition_penalty: Number = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        ranges = (
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            (
                "temperature",
                self.temperature == 0.0 or COLDEST <= self.temperature <= HOTTEST,
                "0 (greedy), or from 1e-10 to 1000; 0.7 to 1 is usual",
            ),
            ("top_k", self.top_k >= 0, "a number of tokens, or 0 for all of them"),
            ("top_p", 0.0 < self.top_p <= 1.0, "above 0 and at most 1 (1 keeps everything)"),
            ("min_p", 0.0 <= self.min_p < 1.0, "from 0 (off) to below 1; 0.05 to 0.1 is usual"),
            (
                "repetition_penalty",
                PENALTIES[0] <= self.repetition_penalty <= PENALTIES[1],
                "from 0.01 to 100 (1 is off; 1.1 to 1.3 is usual)",
            ),
        )
        for name, fine, allowed in ranges:
            if not fine:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be {allowed}")
        if "" in self.stop:
            raise ConfigError("stop holds an empty string, which every text contains; remove it")
        cuts = {"top_k": self.top_k > 0, "top_p": self.top_p < 1.0, "min_p": self.min_p > 0.0}
        without_effect = [name for name, used in cuts.items() if used]
        if self.temperature == 0.0 and without_effect:
            raise ConfigError(
                f"temperature is 0 (greedy), where {' and '.join(without_effect)} would have no effect; "
                "set a temperature above 0, such as 0.8, or remove the cut-off"
            )
        return self


def penalise_repetition(logits: Scores, seen: Bool[Tensor, "B V"], penalty: float) -> Scores:
    """Divide positive logits of the tokens `seen` in the row by `penalty`, and multiply negative ones by it.

    `seen` marks the tokens of the prompt and the generated ones. Source: Keskar et al. 2019, "CTRL", arXiv:1909.05858,
    section 4.1, with the sign rule of `transformers` (the paper's plain division would favour negative logits).
    """
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def divide_by_temperature(logits: Scores, temperature: float) -> Scores:
    """(logits - row maximum) / temperature. The shift changes no probability and keeps results finite."""
    return (logits - logits.amax(dim=-1, keepdim=True)) / temperature


def keep_top_k(logits: Scores, k: int) -> Scores:
    """Keep the k highest logits of a row (and ties with the k-th); the others become -inf."""
    k = min(k, logits.shape[-1])
    return logits.masked_fill(logits < logits.topk(k, dim=-1).values[:, -1:], -math.inf)


def keep_top_p(logits: Scores, p: float) -> Scores:
    """Keep the smallest set of most probable tokens whose mass reaches p, at least one; the others become -inf.

    Source: Holtzman et al. 2020, "The curious case of neural text degeneration", arXiv:1904.09751, section 3.1.
    Among equally probable tokens at the border, the lower id is kept.
    """
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    drop = before >= p
    drop[:, 0] = False
    return logits.masked_fill(torch.zeros_like(drop).scatter_(-1, order, drop), -math.inf)


def keep_min_p(logits: Scores, p: float) -> Scores:
    """Keep tokens that are at least p times as probable as the most probable one; the others become -inf.

    Source: Nguyen et al. 2024, "Turning up the heat: min-p sampling", arXiv:2407.01082, section 3.
    """
    probabilities = logits.softmax(dim=-1)
    return logits.masked_fill(probabilities < p * probabilities.amax(dim=-1, keepdim=True), -math.inf)


def candidates(logits: Scores, sampling: Sampling, seen: Bool[Tensor, "B V"] | None = None) -> Scores:
    """Apply the settings to logits in their order; `draw` samples from the softmax of the result.

    `seen` is needed only with a repetition penalty. Greedy settings leave the logits undivided.
    """
    logits = logits.float()
    if sampling.repetition_penalty != 1.0:
        assert seen is not None, "a repetition penalty needs the tokens seen so far"
        logits = penalise_repetition(logits, seen, sampling.repetition_penalty)
    if sampling.temperature == 0.0:
        return logits
    logits = divide_by_temperature(logits, sampling.temperature)
    if sampling.top_k:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p < 1.0:
        logits = keep_top_p(logits, sampling.top_p)
    if sampling.min_p:
        logits = keep_min_p(logits, sampling.min_p)
    return logits


def generator(seed: int, row: int) -> torch.Generator:
    """The random stream of one row, seeded by a hash of both numbers, so that (0, 1) and (1, 0) are unrelated."""
    digest = hashlib.blake2b(f"{seed}:{row}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest) >> 1)


def draw(logits: Scores, generators: Sequence[torch.Generator]) -> Int[Tensor, "B"]:
    """Draw one token id a row from softmax(logits); row b uses generators[b] alone.

    One uniform number a row is drawn on the CPU and inverted through the cumulative sum on the device of the logits, so
    that a seed gives the same stream on every device and in every batch. A token of probability zero is never drawn.
    """
    uniform = torch.stack([torch.rand(1, generator=g, dtype=torch.float64) for g in generators])
    cumulative = logits.softmax(dim=-1).double().cumsum(dim=-1)
    total = cumulative[:, -1:]
    target = torch.minimum(uniform.to(logits.device) * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True).squeeze(1)


def pick(
    logits: Scores, sampling: Sampling, generators: Sequence[torch.Generator], seen: Bool[Tensor, "B V"] | None = None
) -> Int[Tensor, "B"]:
    """The next token id of every row: the most probable one when greedy, a draw otherwise."""
    logits = candidates(logits, sampling, seen)
    return logits.argmax(dim=-1) if sampling.temperature == 0.0 else draw(logits, generators)


def seen_in(tokens: Sequence[int], vocab: int, device: torch.device) -> Bool[Tensor, "1 V"]:
    """Mark the tokens of the vocabulary that a row holds, for the repetition penalty."""
    seen = torch.zeros(1, vocab, dtype=torch.bool, device=device)
    seen[0, torch.tensor(list(tokens), device=device)] = True
    return seen
