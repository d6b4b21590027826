"""Beam search: finds likely continuations by keeping a fixed number of the best beginnings at every length."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from handscroll.base.errors import ConfigError
from handscroll.cache.cache import Cache
from handscroll.cache.table import kind_of, listed
from handscroll.generate.decode import read_prompt
from handscroll.generate.request import Request
from handscroll.generate.sample import Sampling
from handscroll.models.model import Model
from handscroll.nn.finite import finite
from handscroll.nn.marks import Marks

Early = Literal["bound", "enough", "never"]


@dataclass(frozen=True)
class Hypothesis:
    """One continuation: its tokens (including the end token), its score, and its end reason, "eos" or "length"."""

    tokens: tuple[int, ...]
    score: float
    finish: str


@dataclass(frozen=True)
class Beams:
    """Settings of a search with `beams` beams.

    The sum of log-probabilities is divided by the number of tokens to the power `length_penalty`; 0 is the plain
    likelihood, and higher values favour long texts. `early` decides when the search stops before max_tokens, once there
    are `beams` results. "enough" stops at once. "never" stops when no beam can still beat the worst result at any
    length. "bound" stops when the best beam would not beat it if it ended here; under a length penalty above 0 it may
    miss longer texts (this is `early_stopping=False` of transformers).

    Raises:
        ConfigError: a number is out of range, or `early` is unknown.
    """

    beams: int = 4
    length_penalty: float = 1.0
    early: Early = "bound"

    def __post_init__(self):
        if self.beams < 1:
            raise ConfigError(f"beams is {self.beams}; it must be at least 1")
        if self.early not in ("bound", "enough", "never") or not math.isfinite(self.length_penalty):
            raise ConfigError(
                f"early is '{self.early}' (bound, enough or never), length_penalty {self.length_penalty} (a number)"
            )


@torch.no_grad()
def beam_search(model: Model, request: Request, settings: Beams = Beams()) -> list[Hypothesis]:
    """The `samples` best continuations that the search finds, best first.

    The score is the sum of the tokens' natural log-probabilities (of the unprocessed logits, including the end token),
    divided by their number to the power `length_penalty`. At every length the best candidates are taken from all
    continuations of all beams: `beams` of them, and as many again for each end token. Candidates that end among the
    first `beams` become results, and the first `beams` that do not end are the next beams. Rules and scores are those
    of `num_beams` in `transformers` 5.

    Memory: the keys and values of the prompt are held once for any number of beams; those of the new tokens are held
    for every beam, and twice while beams change places.

    Raises:
        ConfigError: the request asks for sampling, a constraint, a draft or log-probabilities, which beam search does
            not have, or for a cache that is approximate or cannot be shared. CapacityError, DataError: as `decode`.
    """
    _only_likelihood(request)
    if request.samples > settings.beams:
        raise ConfigError(f"beams is {settings.beams} and count is {request.samples}; count must not exceed beams")
    new = request.sampling.max_tokens
    request, length, hidden, whole = read_prompt(model, request)
    search = _Search(settings, new, request.end_tokens(model))
    logits, cache = finite(model.logits(hidden)[:, -1]), whole.branch(new - 1)
    while True:
        rows = search.step(logits.float().log_softmax(dim=-1))
        if search.over:
            return search.results[: request.samples]
        cache = _reordered(cache, rows)
        new = torch.tensor([[beam[-1]] for beam in search.texts], device=model.device)
        marks = Marks.run(len(request.prompt) + search.length - 1, 1)
        logits = finite(model.logits(model.hidden(model.embed(new, marks), marks, model.mask(), cache, length))[:, -1])


class _Search:
    """The beams (texts and sums of log-probabilities) and the results so far."""

    def __init__(self, settings: Beams, max_tokens: int, ends: frozenset[int]):
        self._beams, self._last, self._ends = settings.beams, max_tokens, ends
        self._penalty, self._early = settings.length_penalty, settings.early
        self.texts: list[tuple[int, ...]] = [()]
        self._sums = [0.0]
        self.results: list[Hypothesis] = []
        self.length = 0
        self.over = False

    def step(self, logprobs: Tensor) -> list[int]:
        """Take the log-probabilities (beams, V) of the next token; returns the row that each new beam continues."""
        self.length += 1
        vocab = logprobs.shape[1]
        sums = torch.tensor(self._sums, dtype=logprobs.dtype, device=logprobs.device)[:, None] + logprobs
        keep = min(max(2, 1 + len(self._ends)) * self._beams, sums.numel())
        values, places = sums.flatten().topk(keep)
        rows: list[int] = []
        texts: list[tuple[int, ...]] = []
        goes_on: list[float] = []
        for rank, (total, place) in enumerate(zip(values.tolist(), places.tolist(), strict=True)):
            row, token = divmod(place, vocab)
            text = (*self.texts[row], token)
            finish = "eos" if token in self._ends else "length" if self.length == self._last else None
            if finish is None and len(rows) < self._beams:
                rows, texts, goes_on = [*rows, row], [*texts, text], [*goes_on, total]
            elif finish is not None and rank < self._beams:
                self._add(Hypothesis(text, total / self.length**self._penalty, finish))
        self.texts, self._sums = texts, goes_on
        self.over = not texts or self._hopeless()
        return rows

    def _add(self, found: Hypothesis) -> None:
        self.results = sorted([*self.results, found], key=lambda item: -item.score)[: self._beams]

    def _hopeless(self) -> bool:
        """Whether the search may stop, by the rule `early`."""
        if len(self.results) < self._beams:
            return False
        longest = self._last if self._early == "never" and self._penalty > 0.0 else self.length
        return self._early == "enough" or self._sums[0] / longest**self._penalty <= self.results[-1].score


def _reordered(cache: Cache, rows: list[int]) -> Cache:
    if not cache.own or rows == list(range(len(rows))):
        return cache
    return cache.take_rows(torch.tensor(rows))


def _only_likelihood(request: Request) -> None:
    """Refuse settings that the search would have to ignore."""
    plain = Sampling(max_tokens=request.sampling.max_tokens, ignore_eos=request.sampling.ignore_eos)
    given = [name for name in Sampling.model_fields if getattr(request.sampling, name) != getattr(plain, name)]
    others = {
        "a constraint": request.constraint is not None,
        "a bias": bool(request.bias),
        "a draft": request.draft is not None,
        "log-probabilities": request.logprobs is not None,
        "a report of the cache": request.on_report is not None,
        "on_finish": request.on_finish is not None,
    }
    given += [what for what, asked in others.items() if asked]
    if given:
        raise ConfigError(f"beam search looks for the likeliest text and goes without {', '.join(given)}")
    kind = kind_of(request.policy)
    if not (kind.exact and kind.rewinds):
        why = "cannot be shared" if kind.exact else "is approximate"
        raise ConfigError(
            f"beam search looks for the likeliest text in an exact cache that all beams share "
            f"({listed('exact', 'rewinds')}), and '{request.policy}' {why}: leave it out"
        )
