"""Reads a prompt in chunks, so that the size of a chunk bounds the activations for a text of any length."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from handscroll.base.allocator import trim
from handscroll.base.errors import ConfigError
from handscroll.base.portions import PREFILL
from handscroll.cache.cache import Cache
from handscroll.models.model import Model
from handscroll.nn.marks import Marks
from handscroll.nn.mask import SameSegment
from handscroll.nn.shapes import Embeddings, Tokens

CHUNK = PREFILL["cpu"]


def prefill_chunk(device: torch.device) -> int:
    """The default number of tokens in a chunk."""
    return PREFILL["cuda"] if device.type == "cuda" else CHUNK


@torch.no_grad()
def hidden_chunks(
    model: Model, tokens: Tokens, marks: Marks, cache: Cache, length: int | None, chunk: int = CHUNK
) -> Iterator[tuple[int, int, Embeddings]]:
    """Run the model over `tokens` (B, T), `chunk` tokens at a time; each token attends to all before it.

    Yields (first, last, hidden (B, last - first, D)) in order. A chunk is already in `cache` when it is yielded. Peak
    memory is the cache plus the activations of one chunk. `marks` describe all T tokens and continue where the cache
    ends. Rows of different lengths are padded on the right (`Marks.rows`). In packed rows a token sees only its own
    document. `length` is the declared length of the request.
    Limits: there are no gradients, and the hidden states of padding are meaningless.

    Raises:
        ConfigError: `chunk` is below 1, the model reads in both directions, or its scaling needs a declared length and
            none is given. CapacityError: a position is past a learned position table.
    """
    if chunk < 1:
        raise ConfigError(f"the prefill chunk is {chunk} tokens; it must be at least 1 ({CHUNK} is usual)")
    model.spec.require("prefill", forward=True)
    assert tokens.shape[1] == marks.length, (tokens.shape, marks.length)
    cache.expect(marks)
    mask = model.mask() if marks.plain else model.mask() & SameSegment()
    for first in range(0, marks.length, chunk):
        last = min(first + chunk, marks.length)
        here = marks.part(first, last)
        yield first, last, model.hidden(model.embed(tokens[:, first:last], here), here, mask, cache, length)


@torch.no_grad()
def prefill(
    model: Model, tokens: Tokens, marks: Marks, cache: Cache, length: int | None, chunk: int = CHUNK
) -> Embeddings:
    """Fill `cache` with `tokens` (B, T) and return the hidden state (B, 1, D) of each row's last real token.

    `model.logits` of this state predicts the next token; logits of the whole prompt (T x V) are never computed.
    Arguments, errors and limits are those of `hidden_chunks`.
    """
    ends = last_slots(marks, tokens.shape[0]).to(tokens.device)
    kept: Tensor | None = None
    for first, last, hidden in hidden_chunks(model, tokens, marks, cache, length, chunk):
        kept = hidden.new_empty(hidden.shape[0], 1, hidden.shape[2]) if kept is None else kept
        rows = torch.nonzero((ends >= first) & (ends < last)).squeeze(1)
        kept[rows, 0] = hidden[rows, ends[rows] - first]
    assert kept is not None, "prefill of no tokens"
    if marks.length > chunk:  # the holes of the chunks, about 60 MiB, are not needed beside the head
        trim()
    return kept


def last_slots(marks: Marks, batch: int) -> Tensor:
    """Slot (B,) of the last token of each row that is not padding."""
    if marks.index is None:
        return torch.full((batch,), marks.length - 1)
    slots = torch.arange(marks.length, device=marks.index.device)
    ends = torch.where(marks.index >= 0, slots, -1).amax(dim=1)
    assert bool((ends >= 0).all()), "a row that holds only padding has no last token"
    return ends


def shared_beginning(one: Sequence[int], other: Sequence[int]) -> int:
    """The number of tokens with which both begin."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
