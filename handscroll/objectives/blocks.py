"""Texts that are read in blocks, each by itself: where a head reads the blocks, and how their outputs are joined.

A block is a segment. The target of a text stands at its first block where a head reads first tokens, else at its last,
so the texts that are packed into a row are told apart by their targets.
"""

from typing import Literal

import torch
from torch import Tensor

from handscroll.data.batch import Batch
from handscroll.data.row import IGNORED

Pooling = Literal["mean", "attention"]


def block_places(batch: Batch, first: bool) -> tuple[Tensor, Tensor]:
    """Where each block is read (B, T), at its first or last token, and for each of these N places the number of its
    text."""
    device = batch.tokens.device
    index, segment, _ = (tensor.expand(batch.tokens.shape) for tensor in batch.marks().tensors(device))
    real = index >= 0
    edge = real.new_ones(len(real), 1)
    change = (segment[:, 1:] != segment[:, :-1]) | ~(real[:, 1:] & real[:, :-1])
    at = real & torch.cat([edge, change] if first else [change, edge], dim=1)
    targets = (batch.targets != IGNORED).flatten()
    before = targets.cumsum(0) - (1 if first else targets.to(torch.int64))
    return at, before.view(at.shape)[at]


def pooled(outputs: Tensor, owners: Tensor, count: int, pooling: Pooling) -> Tensor:
    """The outputs (count, L) of texts from those of their blocks (N, L), of which block n belongs to text owners[n].

    mean: the mean over blocks; for a linear head that is the head on their mean state. attention: the last output of a
    block is its score, whose softmax over the text's blocks weights the others, (N, L + 1) (Ilse et al. 2018).
    """
    weights = outputs.new_ones(len(outputs))
    if pooling == "attention":
        scores, outputs = outputs[:, -1], outputs[:, :-1]
        most = scores.new_full((count,), float("-inf")).scatter_reduce(0, owners, scores.detach(), "amax")
        weights = (scores - most[owners]).exp()
    sums = outputs.new_zeros(count, outputs.shape[1]).index_add(0, owners, weights[:, None] * outputs)
    return sums / weights.new_zeros(count).index_add(0, owners, weights)[:, None]
