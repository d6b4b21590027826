"""Drafts for speculative decoding: the next tokens are guessed by look-up in the text, or by a smaller model."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from handscroll.base.errors import CapacityError, ConfigError
from handscroll.cache.cache import REWIND
from handscroll.cache.table import DEFAULT, footprint
from handscroll.generate.prefill import prefill
from handscroll.generate.sample import Sampling, candidates, draw, seen_in
from handscroll.models.model import Model
from handscroll.nn.finite import finite
from handscroll.nn.marks import Marks

LONGEST = 7  # with the token before them these are 8 rows: one pass of the compiled products (nn/linear.py)


class Proposal(NamedTuple):
    """Guessed tokens, and their distributions (k, V) in float64; None means that each guess was certain."""

    tokens: list[int]
    probabilities: Tensor | None = None


class Draft(Protocol):
    """Guesses the tokens of one row."""

    def propose(self, tokens: Sequence[int], count: int) -> Proposal:
        """Guess up to `count` (at least 1) tokens that follow `tokens`, the prompt and all generated tokens."""
        ...


@dataclass
class Acceptance:
    """Counts over all rows: `forwards` of the target model after the prompt, guessed tokens and accepted ones.

    Guesses after the end of a row are not counted.
    """

    forwards: int = 0
    drafted: int = 0
    accepted: int = 0

    @property
    def rate(self) -> float:
        """The share of guessed tokens that were accepted; 0 if there were no guesses."""
        return self.accepted / self.drafted if self.drafted else 0.0


class Drafts(Protocol):
    """Makes a `Draft` for every row. `longest` bounds the guesses of a forward; `acceptance` counts them."""

    longest: int
    acceptance: Acceptance

    def nbytes(self, total: int) -> int:
        """Bytes that it keeps beside the caches of the model in a request of `total` tokens."""
        ...

    def check(self, target: Model, total: int, beyond: bool) -> None:
        """Raise an error if it cannot guess for `target` in a request of `total` tokens."""
        ...

    def begin(self, sampling: Sampling, stream: torch.Generator, total: int) -> Draft:
        """The draft of one row; its random numbers come from the row's own stream."""
        ...


@dataclass
class Lookup:
    """Prompt look-up: guesses the tokens that followed the previous occurrence of the last `ngram` tokens.

    It searches the prompt and the new text, and needs no model. It saves time where a text repeats itself or its prompt
    (code, quotations, corrections). Source: Saxena 2023, "Prompt lookup decoding"; Yang et al. 2023, "Inference with
    reference", arXiv:2304.04487.
    """

    ngram: int = 3
    longest: int = LONGEST
    acceptance: Acceptance = field(default_factory=Acceptance)

    def __post_init__(self):
        if self.ngram < 1 or self.longest < 1:
            raise ConfigError(
                f"a look-up of {self.ngram} tokens with at most {self.longest} guesses: both must be at least 1"
            )

    def nbytes(self, total: int) -> int:
        return 0

    def check(self, target: Model, total: int, beyond: bool) -> None:
        """Accept every model."""

    def begin(self, sampling: Sampling, stream: torch.Generator, total: int) -> Draft:
        return _LookupDraft(self.ngram)


class _LookupDraft:
    def __init__(self, ngram: int):
        self._ngram = ngram
        self._after: dict[tuple[int, ...], int] = {}  # n-gram -> place of the token after its last occurrence
        self._read = ngram  # the n-grams that end before this place are in `_after`

    def propose(self, tokens: Sequence[int], count: int) -> Proposal:
        for end in range(self._read, len(tokens)):
            self._after[tuple(tokens[end - self._ngram : end])] = end
        self._read = max(self._read, len(tokens))
        start = self._after.get(tuple(tokens[-self._ngram :]))
        return Proposal([] if start is None else list(tokens[start : start + count]))


@dataclass
class DraftModel:
    """A smaller model with the same vocabulary guesses, under the settings of the request but not its constraint."""

    model: Model
    longest: int = LONGEST
    acceptance: Acceptance = field(default_factory=Acceptance)

    def __post_init__(self):
        if self.longest < 1:
            raise ConfigError(f"longest is {self.longest} guessed tokens; it must be at least 1")

    def nbytes(self, total: int) -> int:
        """Those of its own full cache."""
        return footprint(DEFAULT, self.model.config, self.model.cache_dtype.itemsize).held(total)

    def check(self, target: Model, total: int, beyond: bool) -> None:
        """Check vocabulary and context.

        Raises:
            ConfigError: the vocabularies differ. CapacityError: the request exceeds the draft model's context.
        """
        own, theirs = self.model.config, target.config
        self.model.spec.require("a draft model", forward=True, keys=True, one_text=True)
        if own.vocab != theirs.vocab:
            raise ConfigError(
                f"the draft model has {own.vocab} tokens, the model {theirs.vocab}: a draft needs the same vocabulary"
            )
        if total > own.context and not beyond:
            raise CapacityError(
                f"prompt and new tokens are {total}, but the draft model's context is {own.context}; "
                f"lengthen it too (handscroll extend ... --to {total}), or draft by look-up"
            )
        # A learned position table refuses every position past its end. The draft model never reads its last guess.
        self.model.embed(torch.zeros(1, 1, dtype=torch.long, device=self.model.device), Marks.run(total - 2, 1))

    def begin(self, sampling: Sampling, stream: torch.Generator, total: int) -> Draft:
        return _ModelDraft(self.model, sampling, stream, total, self.longest)


class _ModelDraft:
    def __init__(self, model: Model, sampling: Sampling, stream: torch.Generator, total: int, longest: int):
        self._model, self._sampling, self._stream = model, sampling, stream
        self._length = model.spec.declared(total)
        self._cache = model.new_cache(total, rewind=max(REWIND, longest + 1))
        self._fed: list[int] = []  # the tokens that the cache holds
        self._agreed = 0  # how many of them are known to be tokens of the text

    @torch.no_grad()
    def propose(self, tokens: Sequence[int], count: int) -> Proposal:
        agreed = self._agreed
        # The last token is never among the agreed ones: it replaced a guess, or was never fed.
        while agreed < len(self._fed) and self._fed[agreed] == tokens[agreed]:
            agreed += 1
        self._cache.trim(agreed)
        self._fed, self._agreed = [*self._fed[:agreed], *tokens[agreed:]], len(tokens)
        seen = None
        if self._sampling.repetition_penalty != 1.0:
            seen = seen_in(tokens, self._model.config.vocab, self._model.device)
        guesses: list[int] = []
        chances: list[Tensor] = []
        hidden = self._hidden(tokens[agreed:], agreed)
        for place in range(count):
            scores = candidates(finite(self._model.logits(hidden)[:, -1]), self._sampling, seen)
            if self._sampling.temperature == 0.0:
                guess = int(scores.argmax())
            else:
                guess = int(draw(scores, [self._stream]))
                chances.append(scores.double().softmax(dim=-1))
            guesses.append(guess)
            if seen is not None:
                seen[0, guess] = True
            if place < count - 1:
                hidden = self._hidden([guess], len(self._fed))
                self._fed.append(guess)
        return Proposal(guesses, torch.cat(chances) if chances else None)

    def _hidden(self, tokens: Sequence[int], start: int) -> Tensor:
        ids = torch.tensor([list(tokens)], device=self._model.device)
        return prefill(self._model, ids, Marks.run(start, len(tokens)), self._cache, self._length)
