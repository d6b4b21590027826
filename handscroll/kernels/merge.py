"""Attention over disjoint sets of keys, joined exactly by log-sum-exp.

Source: Milakov & Gimelshein 2018, "Online normalizer calculation for softmax".
"""

from collections.abc import Sequence

import torch
from torch import Tensor

NOTHING = 1e30  # a log-sum-exp that makes every weight zero, for queries that see no key


def merge(pieces: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Join attention over disjoint key sets exactly, from the output and log-sum-exp of each."""
    if len(pieces) == 1:
        return pieces[0]
    if len(pieces) == 2:  # the usual case of decoding, in a third of the operations
        (first, first_lse), (second, second_lse) = pieces
        lse = torch.logaddexp(first_lse, second_lse)
        share = torch.exp(second_lse - lse.clamp_min(-NOTHING)).unsqueeze(-1)
        return torch.lerp(first.to(lse.dtype), second.to(lse.dtype), share).to(first.dtype), lse
    lse = torch.logsumexp(torch.stack([piece[1] for piece in pieces]), dim=0)
    finite = lse.clamp_min(-NOTHING)  # for a query without any key: weights become zero instead of NaN
    out = sum(out.to(lse.dtype) * torch.exp(part - finite).unsqueeze(-1) for out, part in pieces)
    assert isinstance(out, Tensor)
    return out.to(pieces[0][0].dtype), lse
