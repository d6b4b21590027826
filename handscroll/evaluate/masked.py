"""Masked-LM loss by position: what an encoder has in the place of a likelihood (Salazar et al. 2020, "pseudo-log-
likelihood", with several tokens hidden at a time)."""

import torch
from torch import Tensor

from handscroll.base.errors import ConfigError, DataError
from handscroll.lm import LM
from handscroll.models.model import Model
from handscroll.models.sentences import evenly
from handscroll.nn.marks import Marks
from handscroll.objectives.head import token_losses

FOLDS = 7  # a seventh, 14 %, is hidden at a time: about the share of pre-training


@torch.no_grad()
def masked_nll(lm: LM, ids: list[int], window: int | None = None) -> Tensor:
    """Loss (T - 1,) in nats of tokens 1 .. T - 1, float32 on the CPU: each hidden once, the text read seven times.

    Which tokens are hidden together is drawn by their number, the same for every model. Not a likelihood: the losses of
    a text are conditional on its other tokens and do not add up to its probability. With `window` the text is cut into
    parts of at most so many tokens, each behind the first token and read by itself.

    Raises:
        DataError: fewer than two tokens. ConfigError: no encoder with a masked-LM head, no mask token, or a window
            below 2. CapacityError: past the position table without `window`.
    """
    if len(ids) < 2:
        raise DataError(f"a loss needs at least two tokens, got {len(ids)}")
    if window is not None and window < 2:
        raise ConfigError(f"a window of {window} tokens sees nothing; give at least 2")
    if lm.model.spec.reads != "both" or not lm.model.spec.predicts or lm.tokenizer.mask is None:
        raise ConfigError(f"masked loss needs a masked-LM head (bert, roberta) and a mask token; {lm.source} lacks one")
    parts = [ids[1:]] if window is None else evenly(ids[1:], window - 1)
    return torch.cat([_scored(lm.model, torch.tensor([ids[0], *part]), lm.tokenizer.mask) for part in parts])


def _scored(model: Model, ids: Tensor, mask: int) -> Tensor:
    """Seven rows, in each of which another seventh of the tokens is hidden; one at a time, since texts are long."""
    generator = torch.Generator().manual_seed(len(ids))
    fold = torch.randperm(len(ids) - 1, generator=generator) % FOLDS
    losses, marks = torch.empty(len(ids) - 1), Marks.run(0, len(ids))
    for number in range(min(FOLDS, len(fold))):
        places = (fold == number).nonzero().squeeze(1)
        tokens = ids.clone()
        tokens[places + 1] = mask
        hidden = model.hidden(model.embed(tokens[None].to(model.device), marks), marks, model.mask())
        chosen = hidden[0, (places + 1).to(hidden.device)]
        targets = ids[places + 1].to(hidden.device)
        losses[places] = token_losses(model.prepared(chosen), model.head, targets, model.head_bias).float().cpu()
    return losses
