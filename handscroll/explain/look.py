"""Reads a question and a given answer once more over a saved reading: whole, watched, or without some of its keys.

The reading is never read again and never copied: every look is a forward over the tokens of question and answer, whose
cache has the reading as its past.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from handscroll.cache.cache import Cache
from handscroll.cache.table import cache_of
from handscroll.explain.lens import Hiding, Ranges, Watched
from handscroll.generate.check import declared
from handscroll.generate.likelihood import logprobs_of
from handscroll.generate.prefill import prefill_chunk
from handscroll.generate.request import Request
from handscroll.models.model import Model
from handscroll.nn.keeper import Keeper
from handscroll.nn.marks import Marks


@dataclass(frozen=True, eq=False)
class Look:
    """An answer that is looked at: `request` is the question over its reading, `answer` the token ids that follow."""

    model: Model
    request: Request
    answer: tuple[int, ...]

    @property
    def before(self) -> int:
        """Tokens of the reading, which are not read again."""
        return 0 if self.request.reading is None else self.request.reading.length

    @property
    def fed(self) -> list[int]:
        """The tokens that a look reads: the question, and the answer without its last token."""
        return [*list(self.request.prompt)[self.before :], *self.answer[:-1]]

    @property
    def asked(self) -> int:
        """Tokens of the question."""
        return len(self.fed) - len(self.answer) + 1

    def watched(self) -> tuple[Tensor, Tensor]:
        """The hidden states (A, D) that predict each token of the answer, and how its attention spreads over the text:
        float32 (layers, K, S), S tokens read before its end.

        Entry (l, k, s) is the weight of key s in kv head k of layer l, averaged over the tokens that predict the
        answer and over the query heads of k. The mass is gathered tile by tile (`nn/observe.py`), so memory grows with
        S and not with its square. A layer that sees a window gives the keys outside it nothing.
        """
        counts = torch.zeros(len(self.fed), device=self.model.device)
        counts[self.asked - 1 :] = 1.0
        total = self.before + len(self.fed)
        found: dict[int, Tensor] = {}

        def take(layer: int, first: int, mass: Tensor) -> None:
            one = found.setdefault(layer, mass.new_zeros(mass.shape[0], total, dtype=torch.float32))
            one[:, first : first + mass.shape[1]] += mass

        states = self._read(lambda cache: Watched(cache, counts, take))
        stacked = torch.stack([found[layer] for layer in sorted(found)])
        return states, stacked / stacked.sum(dim=-1, keepdim=True).clamp_min(1e-12)

    @torch.no_grad()
    def likelihood(self, hidden: Ranges = ()) -> Tensor:
        """The log-probability (A,) of each token of the answer in nats, without the keys at the `hidden` places."""
        states = self._read((lambda cache: Hiding(cache, hidden)) if hidden else (lambda cache: cache))
        return logprobs_of(self.model, states, torch.tensor(self.answer))[0]

    @torch.no_grad()
    def _read(self, through: Callable[[Cache], Keeper]) -> Tensor:
        model, fed = self.model, self.fed
        past = {} if self.request.reading is None else self.request.reading.past(model.device)
        keeper = through(model.new_cache(len(fed), cache_of(self.request.policy), **past))
        length, _ = declared(model, len(self.request.prompt) + self.request.sampling.max_tokens)
        tokens, marks = torch.tensor([fed], device=model.device), Marks.run(self.before, len(fed))
        states, chunk = list[Tensor](), prefill_chunk(model.device)
        for first in range(0, len(fed), chunk):
            here = marks.part(first, min(first + chunk, len(fed)))
            embedded = model.embed(tokens[:, first : first + chunk], here)
            hidden = model.hidden(embedded, here, model.mask(), keeper, length)[0]
            states.append(hidden[max(0, self.asked - 1 - first) :])
        return torch.cat(states)


def by_passage(attention: Tensor, places: Sequence[tuple[int, int]]) -> list[float]:
    """The share of each passage (first and last + 1 of its tokens) in the answer's attention; they sum to 1.

    Heads that look at one place count more than heads that look everywhere: a head's share of a passage is weighted by
    itself. So the first tokens of a text, to which many heads send what they do not need, weigh little as a passage.
    """
    sums = attention.double().cumsum(dim=-1)
    sums = torch.cat([torch.zeros_like(sums[..., :1]), sums], dim=-1)
    each = torch.stack([sums[..., last] - sums[..., first] for first, last in places], dim=-1)  # (layers, K, P)
    shares = each / each.sum(dim=-1, keepdim=True).clamp_min(1e-12)
    scores = (each * shares).sum(dim=(0, 1))
    return (scores / scores.sum().clamp_min(1e-300)).tolist()
