"""Measures the cost of an approximate cache against the exact one: distance of distributions, and three tasks.

Distance: the first tokens of each window are a prompt, which is read in chunks. The rest is read token by token, as in
decoding, and its next-token distributions are compared with those of the exact cache. Each task is read and answered
under the policy. Needle: the prompt asks for a hidden value. Copying: 40 tokens from the first half of a text are
repeated at its end; 8 of them are given, and the others are predicted. Sums: a few-shot text of two-digit additions
ends with one to solve. No single measure is enough: a cache may keep the loss and still lose the needle
(docs/policies.md).
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from handscroll.base.errors import DataError
from handscroll.cache.cache import Cache
from handscroll.cache.full import FullCache
from handscroll.data.recall import needle_prompt
from handscroll.generate.prefill import prefill
from handscroll.models.model import Model
from handscroll.nn.finite import finite
from handscroll.nn.marks import Marks
from handscroll.text.tokenizer import Tokenizer

COPIED, GIVEN = 40, 8
DIGITS = 5  # in the value of a needle
SUM = 4  # most tokens of the answer to a sum
Kind = Callable[..., Cache]


class Distance(NamedTuple):
    """Distance from the exact next-token distributions.

    `kl` and `worst` are the mean and the largest KL divergence of a position, in nats. `same` is the share of positions
    with the same likeliest token. `loss` is the change of the loss on the text, in nats per token.
    """

    kl: float
    worst: float
    same: float
    loss: float


@dataclass(frozen=True)
class Way:
    """Settings for reading a text: cache class with options, tokens of a prefill chunk, and declared length.

    Without `length` every text declares its own length. After the prompt `step` tokens are read at a time; more than
    one is faster, but the newest of them see each other's keys before they are rounded or evicted.
    """

    kind: Kind = FullCache
    chunk: int = 64
    length: int | None = None
    step: int = 1


@dataclass(frozen=True, eq=False)
class Tasks:
    """Needle and sum prompts with their answers, and rows (B, T) that end with a copy; tasks without room are empty."""

    needles: Sequence[tuple[list[int], list[int]]] = ()
    copies: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.long))
    sums: Sequence[tuple[list[int], str]] = ()


class Answers(NamedTuple):
    """Shares of needles found and of copied tokens predicted (None without such tasks), and the answers to the sums."""

    needle: float | None
    copying: float | None
    sums: list[str]


@torch.no_grad()
def decoded(model: Model, tokens: Tensor, prompt: int, way: Way) -> tuple[Tensor, int]:
    """Log-probabilities (B, T - prompt, V) that predict the tokens after the prompt, and the bytes of the cache.

    `tokens` is (B, T). The result takes B x (T - prompt) x V float32 numbers.
    """
    length = tokens.shape[1]
    reader = _Reader(model, tokens[:, :prompt], way, length - prompt - 1)
    steps = range(prompt, length - 1, way.step)
    parts = [reader.scores, *(reader.read(tokens[:, at : min(at + way.step, length - 1)]) for at in steps)]
    return torch.cat(parts, dim=1), reader.cache.nbytes


@torch.no_grad()
def said(model: Model, prompt: Sequence[int], new: int, way: Way) -> list[int]:
    """Continue `prompt` greedily by `new` tokens."""
    reader = _Reader(model, torch.tensor([list(prompt)]), way, new - 1)
    found = [int(reader.scores.argmax())]
    while len(found) < new:
        found.append(int(reader.read(torch.tensor([[found[-1]]])).argmax()))
    return found


def distance(exact: Sequence[Tensor], found: Iterator[Tensor], targets: Sequence[Tensor]) -> Distance:
    """The distance of log-probabilities (B, T, V) from the exact ones, over windows; targets (B, T) are the text.

    `found` is consumed one window at a time, so that only the exact ones are all in memory.
    """
    apart, same, change = [], [], []
    for want, got, target in zip(exact, found, targets, strict=True):
        apart.append((want.exp() * (want - got)).sum(-1).flatten())
        same.append((want.argmax(-1) == got.argmax(-1)).flatten())
        change.append((want - got).gather(2, target.to(want.device)[..., None]).flatten())
    kl = torch.cat(apart).double().clamp_min(0)  # rounding can make it negative
    return Distance(
        float(kl.mean()), float(kl.max()), float(torch.cat(same).double().mean()), float(torch.cat(change).mean())
    )


def tasks(
    tokenizer: Tokenizer, rows: Sequence[list[int]], filler: Sequence[int], needles: Sequence[float], sums: int
) -> Tasks:
    """Make tasks as long as each of `rows`; copies are put at the end of each row.

    `needles` are the depths of the needles. The result is deterministic. A task that has no room in this length is left
    out.
    """
    draw, length, copies = random.Random(0), len(rows[0]), []
    for row in rows if length // 2 > COPIED else ():
        first = draw.randrange(length // 2 - COPIED)
        copies.append(row[: length - COPIED] + row[first : first + COPIED])
    try:
        asked = [needle_prompt(tokenizer, filler, length - 1, depth, DIGITS, draw) for depth in needles]
    except DataError:
        asked = []
    added = [_sum(tokenizer, length, draw) for _ in range(sums)]
    copied = torch.tensor(copies) if copies else torch.zeros(0, 0, dtype=torch.long)
    return Tasks(asked, copied, [one for one in added if one is not None])


def answers(model: Model, tokenizer: Tokenizer, given: Tasks, way: Way) -> Answers:
    """Answer the tasks under one cache."""
    needle = copying = None
    if given.needles:
        hits = [said(model, prompt, len(answer), way) == answer for prompt, answer in given.needles]
        needle = sum(hits) / len(hits)
    if len(given.copies):
        first = given.copies.shape[1] - COPIED + GIVEN
        found = torch.cat([decoded(model, row[None], first, way)[0].argmax(-1).cpu() for row in given.copies])
        copying = float((found == given.copies[:, first:]).double().mean())
    texts = [tokenizer.decode(said(model, prompt, SUM, way)) for prompt, _ in given.sums]
    return Answers(needle, copying, [text.split("\n")[0].strip() for text in texts])


def right(given: Tasks, found: Sequence[str]) -> float | None:
    """The share of sums with the right answer; None without sums."""
    hits = [text == answer for text, (_, answer) in zip(found, given.sums, strict=True)]
    return sum(hits) / len(hits) if hits else None


class _Reader:
    """Reads texts (B, T), with room for `new` tokens; `scores` (B, 1, V) are log-probabilities of the next token."""

    def __init__(self, model: Model, tokens: Tensor, way: Way, new: int):
        count = tokens.shape[1]
        self.model, self.length = model, way.length
        if self.length is None:
            self.length = model.spec.declared(count + new + 1)
        self.cache = model.new_cache(count + new, way.kind)
        tokens = tokens.to(model.device)
        self._scored(prefill(model, tokens, Marks.run(0, count), self.cache, self.length, way.chunk))

    def read(self, tokens: Tensor) -> Tensor:
        """Read more tokens (B, n); returns the new `scores`, one for each of them."""
        here, model = Marks.run(self.cache.length, tokens.shape[1]), self.model
        embedded = model.embed(tokens.to(model.device), here)
        return self._scored(model.hidden(embedded, here, model.mask(), self.cache, self.length))

    def _scored(self, hidden: Tensor) -> Tensor:
        self.scores = finite(self.model.logits(hidden).float()).log_softmax(-1)
        return self.scores


def _sum(tokenizer: Tokenizer, length: int, draw: random.Random) -> tuple[list[int], str] | None:
    """Additions of almost `length` tokens, the last without its answer; None if not even two fit."""
    a, b, shots, found = draw.randrange(10, 50), draw.randrange(10, 50), "", None
    for number in range(length):
        ids = tokenizer.encode(f"{shots}{a} + {b} =")
        if len(ids) > length - SUM:
            return found
        found = (ids, str(a + b)) if number else None
        c, d = draw.randrange(10, 50), draw.randrange(10, 50)
        shots += f"{c} + {d} = {c + d}\n"
    return None
