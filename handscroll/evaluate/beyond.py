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

import torch
from torch import Tensor

from handscroll.base.errors import ConfigError
from handscroll.evaluate.branching import Prefix, begin
from handscroll.evaluate.perplexity import half_width
from handscroll.lm import LM
from handscroll.metrics.scores import Measured
from handscroll.objectives.head import token_losses

FEWEST = 4  # windows that a verdict needs
LEAST = 16  # tokens of far text
ERROR = 0.05  # that one of the intervals of all k misses the true mean


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


def farthest(length: int, scored: int) -> int:
    """The largest k that leaves enough far text in windows of `length` tokens; below 1 where none does."""
    return length - scored - LEAST


def edges_of(length: int, near: Sequence[int], scored: int) -> list[int]:
    """Where the true text begins in windows of `length` tokens, rising, one place for each k.

    Raises:
        ConfigError: near and scored tokens leave fewer than `LEAST` tokens of far text.
    """
    wanted = sorted(set(near), reverse=True)
    if wanted[-1] < 1 or wanted[0] > farthest(length, scored):
        raise ConfigError(
            f"near contexts of {', '.join(map(str, near))} tokens before {scored} scored ones do not fit into windows "
            f"of {length}: the largest must leave at least {LEAST} tokens of far text"
        )
    return [length - scored - k for k in wanted]


def gains(far: Sequence[Far]) -> list[Gain]:
    """What far text saves on average over windows, with intervals over windows (Student's t), for each k.

    The intervals of all k hold together with 95 %: each has an equal share of the error (Bonferroni), because the
    largest k of several is looked for.
    """
    if not far:
        return []
    made, error = [], ERROR / max(1, len(far[0].near))
    for number, near in enumerate(far[0].near):
        shuffled = [float((one.shuffled[number] - one.true).double().mean()) for one in far]
        other = [float((one.other[number] - one.true).double().mean()) for one in far if one.other is not None]
        tokens = sum(len(one.true) for one in far)
        made.append(Gain(near, tokens, _interval(shuffled, error), _interval(other, error) if other else None))
    return made


def used(made: Sequence[Gain]) -> int | None:
    """The largest k beyond which the order of the text still helps for sure: the interval is above 0.

    Fewer than `FEWEST` windows give no verdict.
    """
    lows = [(gain.near, gain.shuffled.low) for gain in made if gain.shuffled.count >= FEWEST]
    return max((near for near, low in lows if low is not None and low > 0), default=None)


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


def _interval(values: Sequence[float], error: float) -> Measured:
    means = torch.tensor(values, dtype=torch.float64)
    value, spread = float(means.mean()), half_width(means, error)
    if spread is None:
        return Measured(value, None, None, len(values), "one window")
    if spread <= 1e-12 * abs(value):
        return Measured(value, None, None, len(values), "all windows give one value")
    return Measured(value, value - spread, value + spread, len(values))
