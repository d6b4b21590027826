"""Speculative decoding: one forward verifies several guessed tokens, and the target's distribution is kept.

Source: Leviathan et al. 2023, "Fast inference from transformers via speculative decoding", arXiv:2211.17192, section
2.3 and appendix A.1; Chen et al. 2023, arXiv:2302.01318.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from handscroll.cache.cache import Cache
from handscroll.generate.chooser import Chooser, NewToken, scores
from handscroll.generate.draft import Drafts, Proposal
from handscroll.generate.sample import draw
from handscroll.models.model import Model
from handscroll.nn.finite import finite
from handscroll.nn.marks import Marks
from handscroll.nn.shapes import Embeddings


@torch.no_grad()
def speculate(
    model: Model, hidden: Embeddings, cache: Cache, chooser: Chooser, length: int, drafts: Drafts
) -> Iterator[list[NewToken]]:
    """Continue one row whose prompt is in `cache` and ends with `hidden` (1, 1, D); each item holds one new token.

    Each token has the distribution of plain decoding, given the tokens before it: settings and constraint are applied
    at every place as in plain decoding. Greedy tokens are therefore the same. Sampled tokens differ from those of the
    same seed, because random numbers are used in another way. Both hold up to the rounding of a forward of several
    tokens, which sums attention in another order: two tokens whose logits are closer than that may change places.

    The number of guesses adapts: it doubles after all guesses were accepted, and otherwise becomes one more than the
    number accepted.
    """
    sampling, stream = chooser.request.sampling, chooser.random
    left, count, greedy = sampling.max_tokens, 1 + drafts.longest // 2, sampling.temperature == 0.0
    tokens = list(chooser.request.prompt)
    draft = drafts.begin(sampling, stream, len(tokens) + left)
    guessed = Proposal([])
    while True:
        logits, accepted = finite(model.logits(hidden)[0]), 0
        for place in range(len(guessed.tokens) + 1):
            here = logits[place : place + 1]
            weighed = scores(chooser, here)
            if place == len(guessed.tokens):
                token = int(weighed.argmax()) if greedy else int(draw(weighed, [stream]))
            else:
                guess = guessed.tokens[place]
                chances = None if guessed.probabilities is None else guessed.probabilities[place]
                token = int(weighed.argmax()) if greedy else accept(_target(weighed), guess, chances, stream)
                accepted += token == guess
            left -= 1
            tokens.append(token)
            yield [chooser.take(token, here[0])]
            if chooser.finish is not None or (place < len(guessed.tokens) and token != guessed.tokens[place]):
                break
        drafts.acceptance.drafted += (
            len(guessed.tokens) if chooser.finish is None else min(place + 1, len(guessed.tokens))
        )
        drafts.acceptance.accepted += accepted
        if chooser.finish is not None:
            return
        if guessed.tokens:
            count = min(2 * count, drafts.longest) if accepted == len(guessed.tokens) else accepted + 1
        cache.trim(len(tokens) - 1)
        # The last new token of the row is never read, so a guess for it would be useless.
        guessed = draft.propose(tokens, min(count, left - 1)) if left > 1 else Proposal([])
        fed = torch.tensor([[tokens[-1], *guessed.tokens]], device=model.device)
        marks = Marks.run(len(tokens) - 1, fed.shape[1])
        hidden = model.hidden(model.embed(fed, marks), marks, model.mask(), cache, length)
        drafts.acceptance.forwards += 1


def accept(target: Float[Tensor, "V"], guess: int, chances: Float[Tensor, "V"] | None, stream: torch.Generator) -> int:
    """Accept `guess`, or draw another token, so that the result is distributed as `target`.

    The guess was drawn from `chances` (None means that it was certain). A guess x is accepted with probability
    min(1, p(x) / q(x)); otherwise a token is drawn from max(0, p - q), normalised. Both are probabilities in float64.
    """
    share = float(target[guess]) / (1.0 if chances is None else float(chances[guess]))
    if float(torch.rand(1, generator=stream, dtype=torch.float64)) < share:
        return guess
    rest = residual(target, guess, chances)
    return int(draw(rest.log()[None], [stream]))


def residual(target: Float[Tensor, "V"], guess: int, chances: Float[Tensor, "V"] | None) -> Float[Tensor, "V"]:
    """The distribution after a rejection: max(0, p - q), normalised."""
    if chances is None:
        rest = target.clone()
        rest[guess] = 0.0
    else:
        rest = (target - chances.to(target.device)).clamp_min(0.0)
    total = rest.sum()
    # If p = q up to rounding, only rounding can cause a rejection, and the difference means nothing.
    return rest / total if float(total) > 0.0 else target


def _target(scores: Tensor) -> Tensor:
    return scores[0].double().softmax(dim=-1)
