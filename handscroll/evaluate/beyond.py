"""What far context is worth: the loss that text older than k tokens saves, in nats a token ("nats from beyond k").

The last tokens of a window are scored four ways: with the whole text before them, and with the text older than k tokens
replaced, once by its own tokens in another order, once by the beginning of another window. The near k tokens and all
positions stay the same, so a difference can only come from what stood beyond k. The other order says what the far text
tells beside its words, the other window what it tells at all. A model that has a long context but does not use it gains
nothing from beyond its used length. No labels are needed.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from handscroll.base.errors import ConfigError
from handscroll.evaluate.branching import Prefix, begin
from handscroll.lm import LM
from handscroll.metrics.scores import Measured, mean, measured
from handscroll.objectives.head import token_losses


@dataclass(frozen=True, eq=False)
class Far:
    """Losses (scored,) of the last tokens of a window: as they are, and for each of `near` with other far text.

    `other` is None where there is one window only.
    """

    near: Sequence[int]
    true: Tensor
    shuffled: Sequence[Tensor]
    other: Sequence[Tensor] | None


@dataclass(frozen=True)
class Gain:
    """Nats a token that the text older than `near` tokens saves, over `tokens` tokens."""

    near: int
    tokens: int
    shuffled: Measured
    other: Measured | None


def far_losses(
    lm: LM, ids: Sequence[int], other: Sequence[int] | None, near: Sequence[int], scored: int, seed: str
) -> tuple[list[Tensor], list[Tensor] | None]:
    """The losses (scored,) of the last tokens of a window with other far text, for each k of `near`.

    First with the far text in another order, then with that of the window `other` of the same length. A token sees at
    least k and fewer than k + `scored` tokens of the true text. The far text of a larger k is the beginning of that of
    a smaller one, so one reading serves all.

    Raises:
        ConfigError: as `edges_of`.
    """
    edges = edges_of(len(ids), near, scored)
    order = [edges.index(len(ids) - scored - k) for k in near]
    far = [_reordered(ids, edges, random.Random(seed)), *([] if other is None else [[ids[0], *other[1:]]])]
    found = [_replaced(lm, ids, text, edges, scored) for text in far]
    picked = [[losses[n] for n in order] for losses in found]
    return picked[0], picked[1] if len(picked) > 1 else None


def edges_of(length: int, near: Sequence[int], scored: int) -> list[int]:
    """Where the true text begins in windows of `length` tokens, rising, one place for each k.

    Raises:
        ConfigError: near and scored tokens leave fewer than 16 tokens of far text.
    """
    wanted = sorted(set(near), reverse=True)
    if wanted[-1] < 1 or wanted[0] + scored + 16 > length:
        raise ConfigError(
            f"near contexts of {', '.join(map(str, near))} tokens before {scored} scored ones do not fit into windows "
            f"of {length}: the largest must leave at least 16 tokens of far text"
        )
    return [length - scored - k for k in wanted]


def gains(far: Sequence[Far], resamples: int, seed: int) -> list[Gain]:
    """What far text saves on average over windows, with bootstrap intervals over windows, for each k."""
    if not far:
        return []
    made = []
    for number, near in enumerate(far[0].near):
        shuffled = [float((one.shuffled[number] - one.true).double().mean()) for one in far]
        other = [float((one.other[number] - one.true).double().mean()) for one in far if one.other is not None]
        tokens = sum(len(one.true) for one in far)
        strange = _interval(other, resamples, seed) if other else None
        made.append(Gain(near, tokens, _interval(shuffled, resamples, seed), strange))
    return made


def used(made: Sequence[Gain]) -> int | None:
    """The largest k beyond which the order of the text still helps for sure (the interval is above 0)."""
    helps = [gain.near for gain in made if gain.shuffled.low is not None and gain.shuffled.low > 0]
    return max(helps, default=None)


def _replaced(lm: LM, ids: Sequence[int], changed: Sequence[int], edges: Sequence[int], scored: int) -> list[Tensor]:
    """The losses behind `changed` up to each of the rising edges, and the true text from there on."""
    base, found = begin(lm.model, len(ids), edges[-1]), []
    for edge in edges:
        base.read(changed[base.length : edge])
        found.append(_losses(base.branch(len(ids) - edge), ids[edge:], scored))
    return found


def _losses(branch: Prefix, ids: Sequence[int], scored: int) -> Tensor:
    """The losses of the last `scored` of the tokens that a branch goes on with."""
    model, targets = branch.model, torch.tensor(ids[-scored:])
    hidden = branch.read(ids[:-1], scored)[0]
    vocab = model.config.vocab
    losses = token_losses(model.prepared(hidden), model.project, vocab, targets.to(hidden.device), cap=model.logit_cap)
    return losses.float().cpu()


def _reordered(ids: Sequence[int], edges: Sequence[int], draw: random.Random) -> list[int]:
    """The tokens in another order between each two edges; the first one, which may begin every text, stays."""
    made, begin_ = [ids[0]], 1
    for edge in edges:
        part = list(ids[begin_:edge])
        draw.shuffle(part)
        made += part
        begin_ = edge
    return made


def _interval(values: Sequence[float], resamples: int, seed: int) -> Measured:
    return measured(mean(np.array(values), share=False), resamples, seed)
