"""Logits and losses of the tokens of a given text, computed in chunks, so that memory stays bounded."""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from handscroll.base.errors import ConfigError, DataError
from handscroll.generate.chooser import Scored
from handscroll.generate.prefill import hidden_chunks, prefill_chunk
from handscroll.models.model import Model
from handscroll.nn.finite import finite
from handscroll.nn.marks import Marks
from handscroll.objectives.head import chunk_rows, token_losses
from handscroll.objectives.windowed import windowed_losses
from handscroll.text.tokenizer import Tokenizer


@torch.no_grad()
def logits(model: Model, ids: Int[Tensor, "T"], length: int | None = None) -> Float[Tensor, "T V"]:
    """Logits in float32 on the CPU of every position.

    For an encoder these are the masked-LM logits at each position. `length` is the declared length of the request (T by
    default), which a length-dependent scaling needs. The text may exceed the trained length, but not a learned position
    table.

    Raises:
        DataError: there are no tokens. ConfigError: the model is an encoder-decoder.
    """
    model.spec.require("logits", one_text=True, head=True)
    if not len(ids):
        raise DataError("the text has no tokens, so it has no logits; give at least one token")
    return torch.cat([finite(model.logits(hidden)[0]).float().cpu() for _, _, hidden in _chunks(model, ids, length)])


@torch.no_grad()
def nll(
    model: Model, ids: Int[Tensor, "T"], window: int | None = None, on_read: Callable[[int], None] | None = None
) -> Float[Tensor, "T-1"]:
    """Negative log-likelihood in nats of tokens 1 .. T-1, float32 on the CPU; see `LM.nll`.

    Without `window`, `on_read(done)` is called after every chunk.

    Raises:
        DataError: there are fewer than two tokens. CapacityError: without `window`, the text exceeds a learned position
            table. ConfigError: the model is an encoder or encoder-decoder, or the window is below 2.
    """
    model.spec.require("a likelihood", one_text=True, forward=True, head=True)
    if len(ids) < 2:
        raise DataError(f"a loss needs at least two tokens, got {len(ids)}")
    if window is None or len(ids) <= window:
        return losses_at(model, ids, on_read=on_read)
    if window < 2:
        raise ConfigError(f"a window of {window} tokens sees nothing; give at least 2")
    return windowed_losses(model, ids, window)


@torch.no_grad()
def scored(
    model: Model, ids: Sequence[int], top: int = 0, on_read: Callable[[int], None] | None = None
) -> tuple[list[Scored], Float[Tensor, "1 V"]]:
    """Log-probabilities of tokens 1 .. T-1 with the `top` likeliest at each place, and the logits of what follows.

    Logits are made for a few tokens at a time. `on_read(done)` is called after every chunk.

    Raises:
        DataError: there are no tokens. ConfigError: the model does not read from left to right.
    """
    model.spec.require("a likelihood", one_text=True, forward=True, head=True)
    if not ids:
        raise DataError("the text has no tokens; give at least one token")
    whole = torch.tensor(list(ids), device=model.device)
    found: list[Scored] = []
    last = torch.empty(0)
    for first, end, hidden in _chunks(model, whole, len(ids)):
        for part in hidden.split(chunk_rows(model.config.vocab, end - first, model.device.type), dim=1):
            last = finite(model.logits(part)[0])
            targets = whole[len(found) + 1 : len(found) + 1 + len(last)]
            logprobs = last.to(torch.promote_types(last.dtype, torch.float32)).log_softmax(dim=-1)[: len(targets)]
            best = logprobs.topk(min(top, logprobs.shape[1]), dim=1)
            own = logprobs.gather(1, targets[:, None])[:, 0].tolist()
            tops = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            pairs = (tuple(zip(*one, strict=True)) for one in tops)
            found += [Scored(logprob, likeliest) for logprob, likeliest in zip(own, pairs, strict=True)]
        if on_read is not None:
            on_read(end)
    return found, last[-1:]


@torch.no_grad()
def losses_at(
    model: Model,
    ids: Tensor,
    marks: Marks | None = None,
    length: int | None = None,
    wanted: Tensor | None = None,
    on_read: Callable[[int], None] | None = None,
) -> Tensor:
    """`nll` of those of the tokens 1 .. T-1 for which `wanted` (T-1,) is true; all by default.

    `marks` tell where the tokens 0 .. T-2 stand (one after the other by default), and `length` is the declared length
    of the request (T by default). Logits are computed for the wanted tokens only.
    """
    parts = []
    for first, last, hidden in _chunks(model, ids[:-1], length or len(ids), marks):
        states, targets = hidden[0], ids[first + 1 : last + 1].to(hidden.device)
        if wanted is not None:
            here = wanted[first:last].to(hidden.device)
            states, targets = states[here], targets[here]
        if len(targets):
            made = model.prepared(states)
            losses = token_losses(made, model.project, model.config.vocab, targets, cap=model.logit_cap)
            parts.append(losses.float().cpu())
        if on_read is not None:
            on_read(last)
    return torch.cat(parts) if parts else torch.empty(0)


def _chunks(
    model: Model, ids: Tensor, length: int | None, marks: Marks | None = None
) -> Iterator[tuple[int, int, Tensor]]:
    tokens, marks = ids[None].to(model.device), marks or Marks.run(0, len(ids))
    if not model.spec.cached:  # without a cache the text is read at once
        hidden = model.hidden(model.embed(tokens, marks), marks, model.mask(), length=length)
        return iter([(0, len(ids), hidden)])
    cache = model.new_cache(capacity=len(ids))
    return hidden_chunks(model, tokens, marks, cache, length or len(ids), prefill_chunk(tokens.device))


def ids_of(model: Model, tokenizer: Tokenizer, text_or_ids: str | Sequence[int] | Tensor) -> Tensor:
    """The token ids (T,) of a text, or those given, checked.

    Raises:
        DataError: they are no whole numbers, or no tokens of the model.
    """
    given = tokenizer.encode(text_or_ids) if isinstance(text_or_ids, str) else text_or_ids
    ids = torch.as_tensor(given).flatten()
    if ids.is_floating_point() and len(ids):
        raise DataError(f"token ids are whole numbers, not {ids.dtype}")
    ids = ids.to(torch.int64)
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < model.config.vocab:
        raise DataError(f"token ids reach {int(ids.max())}; the vocabulary has {model.config.vocab}")
    return ids
