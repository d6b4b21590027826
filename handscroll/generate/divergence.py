"""What an approximate cache costs against the exact one: distance of the next-token distributions, and three tasks.

Distance: of every window the first tokens are a prompt, read in chunks; the rest is read token by token, as in
decoding, and there the distribution is held to the exact cache's. Tasks, each read and answered under the policy: a
needle is asked for; 40 tokens from the first half of a text are said again at its end, and 8 of them are given; a
few-shot text of two-digit additions goes on with one more. One measure alone deceives: a cache may leave the loss alone
and lose what is asked for (docs/policies.md).
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
from handscroll.generate.chooser import finite
from handscroll.generate.prefill import prefill
from handscroll.models.model import Model
from handscroll.nn.marks import Marks
from handscroll.text.tokenizer import Tokenizer

COPIED, GIVEN = 40, 8
DIGITS = 5  # of a needle's value
SUM = 4  # tokens that an answer to a sum may have
Kind = Callable[..., Cache]


class Distance(NamedTuple):
    """From the exact next-token distributions: KL divergence, mean and worst position, in nats; share of positions with
    the same likeliest token; change of the loss on the text, nats per token.
    """

    kl: float
    worst: float
    same: float
    loss: float


@dataclass(frozen=True)
class Way:
    """How texts are read: the cache's class with its options, tokens of a prompt a forward, the declared length.

    Without a `length` every text has its own, under a scaling that depends on it.
    """

    kind: Kind = FullCache
    chunk: int = 64
    length: int | None = None


@dataclass(frozen=True, eq=False)
class Tasks:
    """Prompts of needles and sums with their answers; rows (B, T) that end with a copy. What has no room is empty."""

    needles: Sequence[tuple[list[int], list[int]]] = ()
    copies: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.long))
    sums: Sequence[tuple[list[int], str]] = ()


class Answers(NamedTuple):
    """Share of needles found and of copied tokens predicted (None: not asked), and what was said to the sums."""

    needle: float | None
    copying: float | None
    sums: list[str]


@torch.no_grad()
def decoded(model: Model, tokens: Tensor, prompt: int, way: Way) -> tuple[Tensor, int]:
    """Log-probabilities (B, T - prompt, V) that predict the tokens after the prompt, and the bytes of the cache.

    tokens: (B, T). Memory: B x (T - prompt) x V float32 numbers.
    """
    length = tokens.shape[1]
    reader = _Reader(model, tokens[:, :prompt], way, length - prompt - 1)
    parts = [reader.scores, *(reader.read(tokens[:, at : at + 1]) for at in range(prompt, length - 1))]
    return torch.cat(parts, dim=1), reader.cache.nbytes


@torch.no_grad()
def said(model: Model, prompt: Sequence[int], new: int, way: Way) -> list[int]:
    """The `new` likeliest tokens one after another."""
    reader = _Reader(model, torch.tensor([list(prompt)]), way, new - 1)
    found = [int(reader.scores.argmax())]
    while len(found) < new:
        found.append(int(reader.read(torch.tensor([[found[-1]]])).argmax()))
    return found


def distance(exact: Sequence[Tensor], found: Iterator[Tensor], targets: Sequence[Tensor]) -> Distance:
    """The distance of log-probabilities (B, T, V) from the exact ones over windows; targets (B, T) are the text.

    `found` is taken one window at a time, so that only the exact ones are all held.
    """
    apart, same, change = [], [], []
    for want, got, target in zip(exact, found, targets, strict=True):
        apart.append((want.exp() * (want - got)).sum(-1).flatten())
        same.append((want.argmax(-1) == got.argmax(-1)).flatten())
        change.append((want - got).gather(2, target.to(want.device)[..., None]).flatten())
    kl = torch.cat(apart).double().clamp_min(0)  # rounding can bring it below
    return Distance(
        float(kl.mean()), float(kl.max()), float(torch.cat(same).double().mean()), float(torch.cat(change).mean())
    )


def tasks(
    tokenizer: Tokenizer, rows: Sequence[list[int]], filler: Sequence[int], needles: Sequence[float], sums: int
) -> Tasks:
    """Tasks of as many tokens as each of `rows` has; copies are put at the end of each row.

    needles: the depth of each. Deterministic. Where the length leaves no room for a task there is none of it.
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
    """What comes out of the tasks under one cache."""
    needle = copying = None
    if given.needles:
        hits = [said(model, prompt, len(answer), way) == answer for prompt, answer in given.needles]
        needle = sum(hits) / len(hits)
    if len(given.copies):
        first = given.copies.shape[1] - COPIED + GIVEN
        found = torch.cat([decoded(model, row[None], first, way)[0].argmax(-1).cpu() for row in given.copies])
        copying = float((found == given.copies[:, first:]).double().mean())
    told = [tokenizer.decode(said(model, prompt, SUM, way)) for prompt, _ in given.sums]
    return Answers(needle, copying, [text.split("\n")[0].strip() for text in told])


def right(given: Tasks, told: Sequence[str]) -> float | None:
    """Share of the sums that are right; None where none was asked."""
    hits = [text == answer for text, (_, answer) in zip(told, given.sums, strict=True)]
    return sum(hits) / len(hits) if hits else None


class _Reader:
    """A text (B, T) as it is read, with room for `new` tokens; `scores` (B, 1, V): log-probabilities of the next."""

    def __init__(self, model: Model, tokens: Tensor, way: Way, new: int):
        count = tokens.shape[1]
        self.model, self.length = model, way.length
        if self.length is None:
            self.length = model.spec.declared(count + new + 1)
        self.cache = model.new_cache(count + new, way.kind)
        tokens = tokens.to(model.device)
        self._scored(prefill(model, tokens, Marks.run(0, count), self.cache, self.length, way.chunk))

    def read(self, token: Tensor) -> Tensor:
        """Read (B, 1) more; the new `scores`."""
        here, model = Marks.run(self.cache.length, 1), self.model
        embedded = model.embed(token.to(model.device), here)
        return self._scored(model.hidden(embedded, here, model.mask(), self.cache, self.length))

    def _scored(self, hidden: Tensor) -> Tensor:
        self.scores = finite(self.model.logits(hidden).float()).log_softmax(-1)
        return self.scores


def _sum(tokenizer: Tokenizer, length: int, draw: random.Random) -> tuple[list[int], str] | None:
    """Additions up to nearly `length` tokens, the last without its answer; None where not even two have room."""
    a, b, shots, found = draw.randrange(10, 50), draw.randrange(10, 50), "", None
    for number in range(length):
        ids = tokenizer.encode(f"{shots}{a} + {b} =")
        if len(ids) > length - SUM:
            return found
        found = (ids, str(a + b)) if number else None
        c, d = draw.randrange(10, 50), draw.randrange(10, 50)
        shots += f"{c} + {d} = {c + d}\n"
    return None
