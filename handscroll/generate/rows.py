"""What decides the next token of every row of a batch, and whether it is the row's last."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from handscroll.base.errors import CheckpointError
from handscroll.generate.constrain import Constraint
from handscroll.generate.sample import Sampling, Scores, candidates, draw, generator


class Scored(NamedTuple):
    """Natural log-probability of a token and of the likeliest ones (id, log-probability), best first.

    They are the model's own: softmax of its unprocessed logits, before constraint, penalty, temperature and cut-offs.
    """

    logprob: float
    top: tuple[tuple[int, float], ...]


class NewToken(NamedTuple):
    """One generated token.

    `finish` is None while the row goes on, else "eos", "stop", "complete" (nothing can follow under the constraint) or
    "length". `scored` is there when log-probabilities were asked for.
    """

    row: int
    token: int
    finish: str | None
    scored: Scored | None = None


@dataclass(frozen=True, eq=False)
class Request:
    """How every row is chosen, how it ends (end tokens, `on_token`), how many alternatives are told (None: none)."""

    sampling: Sampling
    ends: frozenset[int] = frozenset()
    on_token: Callable[[int, int], bool] | None = None
    constraint: Constraint | None = None
    logprobs: int | None = None


class Rows:
    """Rows that are continued together: their numbers in the request, random streams, tokens seen, constraint states.

    `live` are the places of the rows that still go on. Rows do not influence each other.
    """

    def __init__(
        self, request: Request, numbers: Sequence[int], prompts: Sequence[list[int]], vocab: int, device: torch.device
    ):
        self.request = request
        self.numbers = tuple(numbers)
        self.live = list(range(len(self.numbers)))
        sampling, constraint = request.sampling, request.constraint
        self.generators = [generator(sampling.seed, number) for number in numbers]
        self._seen = _seen(prompts, vocab, device) if sampling.repetition_penalty != 1.0 else None
        self._states = None if constraint is None else [constraint.start(vocab, request.ends) for _ in numbers]

    def candidates(self, logits: Scores) -> Scores:
        """What the model's logits become under constraint and settings; softmax of it is what a token is drawn from.

        Raises:
            CheckpointError: logits that are not numbers. DataError: no token can follow under the constraint.
        """
        finite(logits)
        if self._states is not None:
            allowed = torch.ones(logits.shape, dtype=torch.bool)
            for row in self.live:
                allowed[row] = self._states[row].allowed()
            logits = logits.masked_fill(~allowed.to(logits.device), -math.inf)
        return candidates(logits, self.request.sampling, self._seen)

    def pick(self, logits: Scores) -> Int[Tensor, "B"]:
        """The next token of every row, chosen by the settings."""
        scores = self.candidates(logits)
        return scores.argmax(dim=-1) if self.request.sampling.temperature == 0.0 else draw(scores, self.generators)

    def take(self, tokens: Int[Tensor, "B"], logits: Scores, final: bool) -> list[NewToken]:
        """Make `tokens` part of the rows that live; `logits` (B, V) are the model's, `final` ends what goes on."""
        ids, scored = tokens.tolist(), self._scored(tokens, logits)
        emitted = []
        for row in self.live:
            finish = self._finish(row, ids[row]) or ("length" if final else None)
            emitted.append(NewToken(self.numbers[row], ids[row], finish, scored[row]))
        self.live = [row for row, item in zip(self.live, emitted, strict=True) if item.finish is None]
        if self._seen is not None:
            self._seen[torch.arange(len(ids), device=tokens.device), tokens] = True
        return emitted

    def _finish(self, row: int, token: int) -> str | None:
        if token in self.request.ends:
            return "eos"
        state = None if self._states is None else self._states[row]
        if state is not None:
            state.advance(token)
        if self.request.on_token is not None and self.request.on_token(self.numbers[row], token):
            return "stop"
        return "complete" if state is not None and state.complete else None

    def _scored(self, tokens: Tensor, logits: Tensor) -> Sequence[Scored | None]:
        count = self.request.logprobs
        if count is None:
            return [None] * len(tokens)
        logprobs = logits.float().log_softmax(dim=-1)
        chosen = logprobs.gather(1, tokens[:, None])[:, 0].tolist()
        best = logprobs.topk(min(count, logprobs.shape[-1]), dim=-1)
        tops = [
            tuple(zip(*pair, strict=True)) for pair in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
        return [Scored(*pair) for pair in zip(chosen, tops, strict=True)]


def finite(logits: Tensor) -> Tensor:
    """The logits, or a CheckpointError where one is no number."""
    if bool(logits.isnan().any()):
        raise CheckpointError(
            "the model returned logits that are not numbers: the weights are damaged, or overflow in this dtype "
            "(float16 does for some checkpoints); check the files or load with dtype bfloat16 or float32"
        )
    return logits


def _seen(prompts: Sequence[list[int]], vocab: int, device: torch.device) -> Tensor:
    seen = torch.zeros(len(prompts), vocab, dtype=torch.bool, device=device)
    for row, prompt in enumerate(prompts):
        seen[row, torch.tensor(prompt, device=device)] = True
    return seen
