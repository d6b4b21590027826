"""`Chooser` decides the next token of a row, and whether it is the row's last.

Decoding, verified drafts, conversations, blanks and the engine all use it, so each of them can do what the others can.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from handscroll.base.errors import ConfigError
from handscroll.generate.request import Request
from handscroll.generate.sample import Scores, candidates, generator, pick, seen_in
from handscroll.generate.stream import Decodes, TextStream
from handscroll.models.model import Model


class Scored(NamedTuple):
    """Natural log-probability of a token and of the likeliest ones (id, log-probability), best first.

    They are the model's own: softmax of its unprocessed logits, before constraint, penalty, temperature and cut-offs.
    """

    logprob: float
    top: tuple[tuple[int, float], ...]


class NewToken(NamedTuple):
    """One generated token.

    `finish` is None while the row goes on, else "eos", "stop", "complete" (nothing can follow under the constraint) or
    "length". `scored` is there when log-probabilities were asked for. `text` is what the token adds to the text, where
    a tokenizer was given: whole characters, and nothing that a stop string may begin with.
    """

    row: int
    token: int
    finish: str | None
    scored: Scored | None = None
    text: str = ""


class Chooser:
    """The state of one row: random stream, tokens seen, place in the grammar, text.

    Args:
        request: how tokens are chosen and what ends the row. Its prompt counts as seen.
        row: the number of the row; with the seed it names the random stream.
        tokenizer: without it there is no text, and there can be no stop strings.
        before: the tokens that the new text goes on from; the prompt unless given.

    Raises:
        ConfigError: stop strings without a tokenizer, or a constraint that was compiled for another one.
    """

    def __init__(
        self,
        request: Request,
        model: Model,
        row: int = 0,
        tokenizer: Decodes | None = None,
        before: Sequence[int] | None = None,
    ):
        check_stops(request, tokenizer)
        sampling, vocab = request.sampling, model.config.vocab
        self.request, self.row = request, row
        self.random = generator(sampling.seed, row)
        self.finish: str | None = None
        self._left = sampling.max_tokens
        self._ends = request.end_tokens(model)
        self._seen = seen_in(request.prompt, vocab, model.device) if sampling.repetition_penalty != 1.0 else None
        self._bias = _bias(request, vocab, model.device) if request.bias else None
        self._progress = None if request.constraint is None else request.constraint.start(vocab, self._ends)
        shown = request.prompt if before is None else before
        self._text = None if tokenizer is None else TextStream(tokenizer, shown, sampling.stop)

    def take(self, token: int, logits: Float[Tensor, "V"]) -> NewToken:
        """Make `token` the row's next; `logits` are those of the model, from which it was chosen."""
        assert self.finish is None, "the row has ended"
        self._left -= 1
        if self._seen is not None:
            self._seen[0, token] = True
        ended, text = self._advance(token)
        self.finish = ended or (None if self._left else "length")
        if self.finish is not None and self._text is not None:
            text += self._text.finish()
        if self.finish is not None and self.request.on_finish is not None:
            self.request.on_finish(self.finish)
        return NewToken(self.row, token, self.finish, self._scored(token, logits), text)

    def _advance(self, token: int) -> tuple[str | None, str]:
        """The reason why the row ends with `token`, or None, and the text that the token adds."""
        if token in self._ends:
            return "eos", ""
        if self._progress is not None:
            self._progress.advance(token)
        text = "" if self._text is None else self._text.push(token)
        if self._text is not None and self._text.stopped is not None:
            return "stop", text
        return ("complete" if self._progress is not None and self._progress.complete else None), text

    def _scored(self, token: int, logits: Float[Tensor, "V"]) -> Scored | None:
        count = self.request.logprobs
        if count is None:
            return None
        logprobs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)
        best = logprobs.topk(min(count, len(logprobs)))
        return Scored(float(logprobs[token]), tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True)))


def scores(chooser: Chooser, logits: Scores) -> Scores:
    """The logits (1, V) from whose softmax a row's token is drawn, after its settings and its constraint.


    Raises:
        DataError: no token can follow under the constraint.
    """
    return candidates(_allowed([chooser], logits), chooser.request.sampling, chooser._seen)


def next_tokens(choosers: Sequence[Chooser], logits: Scores) -> list[int]:
    """The next token of every row from logits (B, V), each by its own settings and random stream.

    Raises:
        DataError: no token can follow under a constraint.
    """
    sampling = choosers[0].request.sampling
    if any(one.request.sampling != sampling for one in choosers):
        return [next_tokens([one], logits[row : row + 1])[0] for row, one in enumerate(choosers)]
    seen = [one._seen for one in choosers if one._seen is not None]
    randoms = [one.random for one in choosers]
    return pick(_allowed(choosers, logits), sampling, randoms, torch.cat(seen) if seen else None).tolist()


def _allowed(choosers: Sequence[Chooser], logits: Scores) -> Scores:
    """The logits with the bias of each row, -inf where the constraint of a row does not allow a token."""
    if any(one._bias is not None for one in choosers):
        pairs = zip(choosers, logits, strict=True)
        logits = torch.stack([row if one._bias is None else row + one._bias for one, row in pairs])
    if all(one._progress is None for one in choosers):
        return logits
    every = torch.ones(logits.shape[1], dtype=torch.bool)
    allowed = torch.stack([every if one._progress is None else one._progress.allowed() for one in choosers])
    return logits.masked_fill(~allowed.to(logits.device), -math.inf)


def _bias(request: Request, vocab: int, device: torch.device) -> Tensor:
    """The bias of every token of the vocabulary."""
    found = torch.zeros(vocab, device=device)
    for token, value in (request.bias or {}).items():
        found[token] = value
    return found


def check_stops(request: Request, tokenizer: Decodes | None) -> None:
    """Refuse stop strings where there is no text to look for them in (ConfigError)."""
    if request.sampling.stop and tokenizer is None:
        raise ConfigError("stop strings are looked for in text: give the tokenizer, or use end tokens (ends)")
