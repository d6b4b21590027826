"""Masked-LM loss by position, for encoders, which have no likelihood.

This is the pseudo-log-likelihood of Salazar et al. (2020), but with several tokens hidden at a time.
"""

import torch
from torch import Tensor

from handscroll.base.errors import ConfigError, DataError
from handscroll.lm import LM
from handscroll.models.model import Model
from handscroll.models.sentences import evenly
from handscroll.nn.marks import Marks
from handscroll.objectives.head import token_losses

FOLDS = 7  # each pass hides a seventh of the tokens (14 %), about as many as in pre-training


@torch.no_grad()
def masked_nll(lm: LM, ids: list[int], window: int | None = None) -> Tensor:
    """Loss (T - 1,) in nats of tokens 1 .. T - 1, in float32 on the CPU.

    The model reads the text seven times, and each token is hidden once. The number of tokens alone decides which ones
    are hidden together, so the choice is the same for every model. The losses are not a likelihood: each depends on the
    other tokens of the text, and their sum is not the text's log-probability. With `window` the text is cut into parts
    of at most `window` tokens; each part follows the first token and is read by itself.

    Raises:
        DataError: the text has fewer than two tokens.
        ConfigError: the model is not an encoder with a masked-LM head, the tokenizer has no mask token, or `window` is
            below 2.
        CapacityError: the text is longer than the position table, and no `window` is given.
    """
    if len(ids) < 2:
        raise DataError(f"a loss needs at least two tokens, but the text has {len(ids)}")
    if window is not None and window < 2:
        raise ConfigError(f"a token in a window of {window} sees no other token: give a window of at least 2")
    if lm.model.spec.reads != "both" or not lm.model.spec.predicts or lm.tokenizer.mask is None:
        raise ConfigError(
            f"the masked loss needs a model with a masked-LM head (bert, roberta) and a mask token; {lm.source} lacks "
            "one of them"
        )
    parts = [ids[1:]] if window is None else evenly(ids[1:], window - 1)
    return torch.cat([_scored(lm.model, torch.tensor([ids[0], *part]), lm.tokenizer.mask) for part in parts])


def _scored(model: Model, ids: Tensor, mask: int) -> Tensor:
    """Losses of the tokens after the first, from seven passes; each pass hides another seventh of the tokens.

    Each pass is a batch of one row, because texts may be long.
    """
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
        prepared, vocab = model.prepared(chosen), model.config.vocab
        losses[places] = token_losses(prepared, model.project, vocab, targets, model.head_bias).float().cpu()
    return losses
